"""Lists of concepts by name, and unions of them, each with where it is from and its licence.

`imagenet1k` are the labels that torchvision's ImageNet weights carry, `torchvision:WEIGHTS` those of any
other of its weights, `words:N` the commonest English words, `wordnet:nouns` and `wordnet:superclasses`
WordNet's nouns for things, `hierarchy:FILE` the names in a hierarchy of classes; anything else is a text
file, one concept a line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from core.errors import ConceptError, close_names
from core.labels import Hierarchy
from pipeline.fingerprints import fingerprint
from pipeline.wordnet import read_nouns, wordnet_folder

IMAGENET = "imagenet1k"
_IMAGENET_WEIGHTS = "ResNet50_Weights.IMAGENET1K_V2"
TORCHVISION, WORDS, WORDNET, HIERARCHY = "torchvision:", "words:", "wordnet:", "hierarchy:"

FORMS = (
    f"{IMAGENET!r}, 'torchvision:WEIGHTS.NAME', 'words:20000', 'wordnet:nouns', "
    "'wordnet:superclasses', 'hierarchy:FILE' or a text file with one concept a line"
)

#: Labels that stand for no thing.
_NOTHING = ("__background__", "N/A")


@dataclass(frozen=True)
class ConceptList:
    """Concepts and where they are from."""

    name: str
    """As it was asked for."""
    concepts: list[str]
    """Texts, all different."""
    source: str
    """Who made it, and which version."""
    licence: str
    """Terms that the list comes under, as far as they are known."""

    @property
    def digest(self) -> str:
        """Fingerprint of the concepts in their order."""
        return fingerprint("concepts", self.concepts)


def is_file(name: str) -> bool:
    """Whether a list is a text file and not known by name."""
    return name != IMAGENET and not name.startswith((TORCHVISION, WORDS, WORDNET, HIERARCHY))


def read_concepts(names: str | Sequence[str]) -> list[ConceptList]:
    """Lists of concepts, in the order given.

    Raises:
        ConceptError: One is unknown, cannot be read, or what it needs is not installed.
    """
    return [_read(name) for name in ([names] if isinstance(names, str) else names)]


def union(lists: Sequence[ConceptList]) -> list[str]:
    """Concepts of several lists, the first list's first, each once; capitals make no difference."""
    return [concept for concepts in _new(lists) for concept in concepts]


def _new(lists: Sequence[ConceptList]) -> list[list[str]]:
    """Of each list the concepts that no list before it has. A list by itself stays as it is."""
    seen: set[str] = set()
    new = []
    for one in lists:
        new.append([concept for concept in one.concepts if concept.casefold() not in seen])
        seen.update(concept.casefold() for concept in one.concepts)
    return new


def provenance(lists: Sequence[ConceptList]) -> list[dict[str, str | int]]:
    """Of each list its name, source, licence, digest, number of concepts, and how many were new."""
    return [
        {
            "list": one.name,
            "source": one.source,
            "licence": one.licence,
            "digest": one.digest,
            "concepts": len(one.concepts),
            "added": len(added),
        }
        for one, added in zip(lists, _new(lists), strict=True)
    ]


def _read(name: str) -> ConceptList:
    if name == IMAGENET:
        return _torchvision(name, _IMAGENET_WEIGHTS)
    if name.startswith(TORCHVISION):
        return _torchvision(name, name.removeprefix(TORCHVISION))
    if name.startswith(WORDS):
        return _words(name)
    if name.startswith(WORDNET):
        return _wordnet(name)
    if name.startswith(HIERARCHY):
        return _hierarchy(name)
    return ConceptList(name, read_concept_file(name), f"file {name}", "the user's own, not stated")


def _torchvision(name: str, weights: str) -> ConceptList:
    """Labels that a set of weights carries."""
    import torchvision
    from torchvision import models

    enum, _, member = weights.partition(".")
    known = {
        str(one): one for model in models.list_models() for one in models.get_model_weights(model)
    }
    one = known.get(f"{enum}.{member}")
    if one is None:
        raise ConceptError(
            f"torchvision has no weights {weights!r}{close_names(weights, known)}; expected for "
            f"instance {TORCHVISION}{_IMAGENET_WEIGHTS}"
        )
    labels = one.meta.get("categories", ())
    concepts = list(dict.fromkeys(label for label in labels if label not in _NOTHING))
    if not concepts:
        raise ConceptError(f"the weights {weights!r} carry no labels; choose others, or a file")
    version = torchvision.__version__.partition("+")[0]
    source = f"labels of {weights}, torchvision {version}"
    return ConceptList(name, concepts, source, "BSD-3-Clause")


def _words(name: str) -> ConceptList:
    """The commonest English words made of letters alone."""
    text = name.removeprefix(WORDS)
    if not text.isdecimal() or not int(text):
        raise ConceptError(f"{name!r} has no number of words; expected for instance 'words:20000'")
    try:
        from wordfreq import top_n_list
    except ImportError:
        raise ConceptError(
            f"{name!r} needs the package wordfreq; pip install 'neuroscribe[words]'"
        ) from None
    count = int(text)
    # Numbers and contractions are about one in fifty.
    ranked = top_n_list("en", count + count // 10 + 100, wordlist="best")
    words = list(dict.fromkeys(word for word in ranked if word.isalpha() and len(word) > 1))[:count]
    if len(words) < count:
        raise ConceptError(
            f"{name!r}: wordfreq knows {len(words):,} English words of letters alone"
        )
    version = metadata.version("wordfreq")
    source = f"the {count:,} commonest English words of letters alone, wordfreq {version}"
    return ConceptList(name, words, source, "Apache-2.0 (code), CC BY-SA 4.0 (data)")


def _wordnet(name: str) -> ConceptList:
    part = name.removeprefix(WORDNET)
    if part not in ("nouns", "superclasses"):
        raise ConceptError(
            f"{name!r} is no part of WordNet; expected wordnet:nouns or wordnet:superclasses"
        )
    folder = wordnet_folder()
    found = read_nouns(folder)
    concepts = found.nouns if part == "nouns" else found.superclasses
    return ConceptList(
        name, concepts, f"WordNet, {part} under physical entity, {folder}", "WordNet"
    )


def _hierarchy(name: str) -> ConceptList:
    """Names of classes and superclasses."""
    known = read_hierarchy(name.removeprefix(HIERARCHY))
    concepts = list(dict.fromkeys([*known.classes.values(), *known.superclasses]))
    source = f"classes and superclasses of {name.removeprefix(HIERARCHY)}"
    return ConceptList(name, concepts, source, "the user's own, not stated")


def read_hierarchy(path: str) -> Hierarchy:
    """Classes and superclasses from a JSON file.

    Raises:
        ConceptError: The file is missing or not of that shape.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return Hierarchy(
            classes={str(c["wnid"]): str(c["label"]) for c in data["classes"]},
            superclasses={
                str(name): frozenset(map(str, ids)) for name, ids in data["superclasses"].items()
            },
        )
    except OSError as error:
        raise ConceptError(
            f"hierarchy {path!r} cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConceptError(
            f"hierarchy {path!r} is not of the expected shape ({type(error).__name__}: {error}); "
            'expected {"classes": [{"wnid": …, "label": …}], "superclasses": {name: [wnid, …]}}'
        ) from error


def read_concept_file(path: str) -> list[str]:
    """Concepts from a text file, one a line.

    Raises:
        ConceptError: The file is missing, empty, or has blank or repeated lines.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConceptError(f"concept list {path!r} cannot be read: {error}") from error
    concepts = [line.strip() for line in lines]
    if not concepts:
        raise ConceptError(f"concept list {path!r} is empty; expected one concept a line")
    if blank := [number for number, concept in enumerate(concepts, 1) if not concept]:
        raise ConceptError(
            f"concept list {path!r} has {len(blank)} blank lines, the first is line {blank[0]}; "
            "remove them"
        )
    first: dict[str, int] = {}
    for number, concept in enumerate(concepts, 1):
        if concept in first:
            raise ConceptError(
                f"concept list {path!r} has {concept!r} on lines {first[concept]} and {number}, "
                f"and {len(concepts) - len(set(concepts))} repeated lines in all; keep each once"
            )
        first[concept] = number
    return concepts
