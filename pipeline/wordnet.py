"""Nouns of WordNet, read from its own database files; no data comes with this package.

The files are those of WordNet 3.0 and 3.1 (`data.noun`), as Debian's package `wordnet-base`, NLTK's
corpus `wordnet` and Princeton's archive hold them. Only what is under "physical entity" counts, and no
names of single persons or places: what can be seen on a picture is among it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConceptError

#: The noun that all others must be a kind of.
ROOT = "physical entity"

#: Kinds that a superclass has at least.
LEAST_KINDS = 2

_FILE = "data.noun"


@dataclass(frozen=True)
class Nouns:
    """Nouns for kinds of things, in the order of WordNet's file, each text once."""

    nouns: list[str]
    """All of them."""
    superclasses: list[str]
    """Those that have at least two kinds of their own."""


def wordnet_folder() -> Path:
    """Where the files are: `WNSEARCHDIR`, else NLTK's and the usual places.

    Raises:
        ConceptError: They are nowhere.
    """
    told = [Path(os.environ["WNSEARCHDIR"])] if "WNSEARCHDIR" in os.environ else []
    nltk = [Path(p) for p in os.environ.get("NLTK_DATA", "").split(os.pathsep) if p]
    nltk += [Path.home() / "nltk_data", Path("/usr/share/nltk_data"), Path("/usr/lib/nltk_data")]
    usual = [Path("/usr/share/wordnet"), Path("/usr/local/WordNet-3.0/dict")]
    places = told or [*(one / "corpora" / "wordnet" for one in nltk), *usual]
    for place in places:
        if (place / _FILE).is_file():
            return place
    raise ConceptError(
        f"WordNet's file {_FILE} is in none of {', '.join(map(str, places))}; install Debian's package "
        "wordnet-base, or NLTK's corpus (python -m nltk.downloader wordnet, unpacked), or set "
        "WNSEARCHDIR to the folder that holds it"
    )


def read_nouns(folder: Path) -> Nouns:
    """Nouns under `ROOT`, by their first word; instances are left out.

    Raises:
        ConceptError: The file is not of WordNet's format.

    Source:
        Format: wndb(5WN). C. Fellbaum (ed.), *WordNet: An Electronic Lexical Database*, 1998.
    """
    path = folder / _FILE
    words: dict[str, str] = {}
    kinds: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("  "):  # the licence
                    continue
                number, word, parents = _entry(line)
                words[number] = word
                for parent in parents:
                    kinds.setdefault(parent, []).append(number)
    except (OSError, ValueError, IndexError) as error:
        raise ConceptError(
            f"{path} cannot be read as WordNet's nouns ({type(error).__name__}: {error}); expected "
            "the database format of WordNet 3"
        ) from error
    roots = [number for number, word in words.items() if word == ROOT]
    if not roots:
        raise ConceptError(f"{path} has no noun {ROOT!r}; expected WordNet 3.0 or 3.1")
    below = Counter(_below(kinds, roots[0]))
    inside = [number for number in words if number in below and number != roots[0]]
    broad = [n for n in inside if len(set(_below(kinds, n, LEAST_KINDS + 1))) > LEAST_KINDS]
    return Nouns(_once(words, inside), _once(words, broad))


def _entry(line: str) -> tuple[str, str, list[str]]:
    """Number, first word and hypernyms of an entry."""
    fields = line.partition(" | ")[0].split()
    after = 4 + 2 * int(fields[3], 16)
    pointers = fields[after + 1 : after + 1 + 4 * int(fields[after])]
    parents = [
        number
        for symbol, number in zip(pointers[::4], pointers[1::4], strict=True)
        if symbol == "@"
    ]
    return fields[0], fields[4].replace("_", " "), parents


def _below(kinds: dict[str, list[str]], root: str, most: int | None = None) -> Iterator[str]:
    """Everything that is a kind of something, itself first, each once; at most so many."""
    seen, waiting = {root}, [root]
    while waiting:
        number = waiting.pop()
        yield number
        if most is not None and len(seen) >= most:
            yield from waiting
            return
        new = [kind for kind in kinds.get(number, ()) if kind not in seen]
        seen.update(new)
        waiting += new


def _once(words: dict[str, str], numbers: list[str]) -> list[str]:
    return list(dict.fromkeys(words[number] for number in numbers))
