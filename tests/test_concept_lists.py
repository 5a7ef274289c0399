"""Concept lists by name, their unions, and where they are from."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConceptError
from pipeline.cli import main
from pipeline.concept_lists import provenance, read_concepts, union
from pipeline.config import parse_config
from pipeline.wordnet import read_nouns

HEAD = "  1 This software and database is being provided to you, the LICENSEE  \n"


def entry(number: int, words: list[str], parents: list[int], symbol: str = "@") -> str:
    pointers = " ".join(f"{symbol} {parent:08d} n 0000" for parent in parents)
    named = " ".join(f"{word} 0" for word in words)
    return (
        f"{number:08d} 03 n {len(words):02x} {named} {len(parents):03d} {pointers} | a gloss | b\n"
    )


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A WordNet of a few nouns, in its own format."""
    entries = [
        entry(1, ["entity"], []),
        entry(2, ["physical_entity"], [1]),
        entry(3, ["abstraction"], [1]),
        entry(4, ["animal", "beast"], [2]),
        entry(5, ["big_cat", "cat"], [4]),
        entry(6, ["lion"], [5]),
        entry(7, ["tiger"], [5]),
        entry(8, ["liger"], [6, 7]),
        entry(9, ["Elsa"], [6], symbol="@i"),
        entry(10, ["idea"], [3]),
    ]
    (tmp_path / "data.noun").write_text(HEAD + "".join(entries))
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    return tmp_path


def test_nouns_are_kinds_of_things_and_superclasses_have_kinds_of_their_own(wordnet: Path) -> None:
    found = read_nouns(wordnet)
    assert found.nouns == ["animal", "big cat", "lion", "tiger", "liger"]
    assert found.superclasses == ["animal", "big cat"]
    (listed,) = read_concepts("wordnet:superclasses")
    assert (listed.concepts, listed.licence) == (["animal", "big cat"], "WordNet")


def test_wordnet_that_is_not_there_or_not_wordnet_is_refused_with_what_to_do(
    wordnet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (wordnet / "data.noun").write_text("not of this format\n")
    with pytest.raises(ConceptError, match="cannot be read as WordNet's nouns"):
        read_concepts("wordnet:nouns")
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "empty"))
    with pytest.raises(ConceptError, match=r"is in none of .*empty; install .* wordnet-base"):
        read_concepts("wordnet:nouns")
    with pytest.raises(ConceptError, match="no part of WordNet; expected wordnet:nouns or"):
        read_concepts("wordnet:verbs")


def test_labels_are_those_that_the_weights_carry() -> None:
    from torchvision.models import ResNet18_Weights
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    imagenet, coco = read_concepts(
        ["imagenet1k", "torchvision:FasterRCNN_ResNet50_FPN_Weights.COCO_V1"]
    )
    assert imagenet.concepts == ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    known = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert set(known) - set(coco.concepts) == {"__background__", "N/A"}
    assert len(coco.concepts) == 80
    assert "ResNet50_Weights.IMAGENET1K_V2, torchvision 0" in imagenet.source
    with pytest.raises(ConceptError, match=r"no weights 'ResNet50_Weights.V9'; close names: "):
        read_concepts("torchvision:ResNet50_Weights.V9")


def test_words_are_the_commonest_first_and_of_letters_alone() -> None:
    wordfreq = pytest.importorskip("wordfreq", reason="the extra neuroscribe[words] is not here")
    (few,), (many,) = read_concepts("words:100"), read_concepts("words:20000")
    assert many.concepts[:100] == few.concepts
    assert len(set(many.concepts)) == len(many.concepts) == 20_000
    assert all(word.isalpha() for word in many.concepts)
    assert {"dog", "water", "striped"} <= set(many.concepts)
    frequencies = [wordfreq.zipf_frequency(word, "en") for word in many.concepts]
    assert frequencies == sorted(frequencies, reverse=True)
    for wrong in ("words:", "words:0", "words:many"):
        with pytest.raises(ConceptError, match="no number of words; expected for instance"):
            read_concepts(wrong)


def test_words_without_their_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "wordfreq":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConceptError, match=r"pip install 'neuroscribe\[words\]'"):
        read_concepts("words:20000")


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines))
    return str(path)


def test_a_union_keeps_each_concept_once_in_the_order_of_the_lists(tmp_path: Path) -> None:
    first = write(tmp_path / "first.txt", "striped", "Dog", "long neck")
    second = write(tmp_path / "second.txt", "cat", "dog", "striped", "Striped")
    lists = read_concepts([first, second])
    assert union(lists) == ["striped", "Dog", "long neck", "cat"]
    assert union(lists[1:]) == ["cat", "dog", "striped", "Striped"]  # one list stays as it is
    told = provenance(lists)
    assert [(row["list"], row["concepts"], row["added"]) for row in told] == [
        (first, 3, 3),
        (second, 4, 1),
    ]
    assert union(lists) == union([*lists, *lists])


def test_names_of_a_hierarchy_are_a_list(tmp_path: Path, shared: Path) -> None:
    path = shared / "data/imagenet-hierarchy.json"
    known = json.loads(path.read_text())
    (found,) = read_concepts(f"hierarchy:{path}")
    texts = {c["label"] for c in known["classes"]} | set(known["superclasses"])
    assert set(found.concepts) == texts
    assert len(found.concepts) == len(texts)


def test_paths_of_lists_are_relative_to_the_configuration_and_names_are_not(tmp_path: Path) -> None:
    names = ["own.txt", "imagenet1k", "words:300", "hierarchy:h.json", "wordnet:nouns"]
    explainer = {"name": "c", "kind": "open_clip", "model": "ViT-B-32/openai", "concepts": names}
    data = {
        "images": {"path": "."},
        "target": {"model": "timm:resnet18", "layers": ["fc"]},
        "concepts": [explainer],
    }
    expected = [f"{tmp_path}/own.txt", *names[1:3], f"hierarchy:{tmp_path}/h.json", names[4]]
    assert parse_config(data, tmp_path).concepts[0].concepts == expected


def test_the_command_prints_a_list_and_where_it_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write(tmp_path / "own.txt", "tench", "zeppelin mast")
    assert main(["concepts", "imagenet1k", own]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "tench"
    assert printed.out.splitlines()[-1] == "zeppelin mast"
    assert "imagenet1k: 1,000 concepts, 1,000 of them new" in printed.err
    assert "licence: BSD-3-Clause" in printed.err
    assert "2 concepts, 1 of them new" in printed.err
    assert main(["concepts", str(tmp_path / "missing.txt")]) == 2
