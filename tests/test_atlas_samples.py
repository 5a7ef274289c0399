"""Shards of concepts and images that the pages of many neurons share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from atlas_reading import Files, half, records, value_of

from core.sharpness import NATIVE, Sharpness
from pipeline.atlas.catalogue import catalogue_of
from pipeline.atlas.data import AtlasData
from pipeline.atlas.samples import concept_shards, sample_rows, spread_rows


def positions_of(data: AtlasData, explainer: str) -> dict[str, int]:
    return {
        row["concept"]: row["position"]
        for row in data.concepts.to_pylist()
        if row["explainer"] == explainer
    }


def test_concept_scores_and_spreads_are_those_at_each_sharpness(
    data: AtlasData, files: Files, overview: Any
) -> None:
    train = np.array(data.images["split"].to_pylist()) == "train"
    size = overview["concepts_per_shard"]
    seen = []
    for number, explainer in enumerate(overview["explainers"]):
        texts = value_of(files, f"index/{number}")["concepts"]
        positions = positions_of(data, explainer["name"])
        assert len(texts) == explainer["used"]
        told = explainer["sharpness"]
        pairs = zip(told["factors"], told["shifts"], strict=True)
        for level, sharpness in enumerate(Sharpness(*pair) for pair in pairs):
            groups = [
                (group["layer"], group["pooling"])
                for group, own in zip(overview["groups"], told["levels"], strict=True)
                if own == level
            ]
            used = {
                text
                for row in data.explanations.to_pylist()
                if row["explainer"] == explainer["name"]
                and (row["layer"], row["pooling"]) in groups
                for text in row["concepts"]
            }
            recorded = np.asarray(data.concept_scores(explainer["name"], sharpness))
            written = set()
            for shard in range(-(-len(texts) // size)):
                value = value_of(files, f"concepts/{number}/{level}/{shard}")
                for concept, spread, scores in zip(
                    value["concepts"], value["spread"], value["scores"], strict=True
                ):
                    assert concept // size == shard
                    written.add(texts[concept])
                    column = recorded[:, positions[texts[concept]]]
                    wanted = column[overview["sample"]].astype(np.float16)
                    assert np.array_equal(half(scores), wanted)
                    std = column[train].astype(np.float64).std()
                    assert spread == pytest.approx(std, rel=1e-4)
            assert written == used
            seen.append((explainer["name"], *sharpness))
    assert seen == [
        ("attributes", 1.0, 0.0),
        ("clip", 2.0, 0.0),
        ("clip", 1.0, 0.0),
        ("clip", 0.5, 1.0),
    ]


def test_what_a_page_predicts_equals_weights_times_scores_at_the_sharpness_of_the_layer(
    data: AtlasData, files: Files, overview: Any
) -> None:
    found = records(files, overview)
    names = [explainer["name"] for explainer in overview["explainers"]]
    groups = [(group["layer"], group["pooling"]) for group in overview["groups"]]
    chosen = {
        (row["explainer"], row["layer"], row["pooling"]): (row["factor"], row["shift"])
        for row in data.sharpness.to_pylist()
        if row["chosen"]
    }
    size = overview["concepts_per_shard"]
    softened = 0
    for row in data.explanations.to_pylist():
        if row["status"] != "ok" or row["length"] not in (2, 6):
            continue
        # As the page does it: terms of the path, scores of the shards of the layer's level.
        number = names.index(row["explainer"])
        place = groups.index((row["layer"], row["pooling"]))
        level = overview["explainers"][number]["sharpness"]["levels"][place]
        own = found[row["layer"], row["pooling"], row["neuron"]][0]["by"][number]
        (entry,) = [one for one in own["path"] if one[0] == row["length"]]
        predicted = np.full(len(overview["sample"]), entry[1])
        for term, weight in zip(entry[4], entry[5], strict=True):
            concept = own["concepts"][term]
            shard = value_of(files, f"concepts/{number}/{level}/{concept // size}")
            predicted += weight * half(shard["scores"][shard["concepts"].index(concept)])
        # From the run: the model's logits times the layer's factor and shifted, through a sigmoid.
        factor, shift = chosen[row["explainer"], row["layer"], row["pooling"]]
        scores = data.concept_scores(row["explainer"], NATIVE)[overview["sample"]].astype(
            np.float64
        )
        if factor != 1.0:
            scores = 1 / (1 + np.exp(-factor * np.log(scores / (1 - scores)) - shift))
            softened += 1
        places = [positions_of(data, row["explainer"])[text] for text in row["concepts"]]
        expected = scores[:, places] @ np.array(row["weights"]) + row["bias"]
        assert predicted == pytest.approx(expected, abs=0.004 * np.abs(row["weights"]).sum())
        worse = data.concept_scores(row["explainer"], NATIVE)[overview["sample"]][:, places]
        if factor != 1.0:
            away = worse @ np.array(row["weights"]) + row["bias"] - expected
            assert np.abs(away).max() > 0.004 * np.abs(row["weights"]).sum()
    assert softened > 100


def test_concept_shards_do_not_depend_on_the_blocks_they_are_read_by(data: AtlasData) -> None:
    split = np.array(data.images["split"].to_pylist())
    sample, training = sample_rows(split), spread_rows(split)
    explainer = catalogue_of(data).explainers[1]
    scores = data.concept_scores(explainer.name, explainer.sharpness[2])
    used = len(explainer.used_at(2))
    whole, parts = (
        list(concept_shards(explainer, 2, scores, training, sample, len(split), block_bytes))
        for block_bytes in (1 << 30, 7 * 8 * used)
    )
    for (number, part), (same, one) in zip(parts, whole, strict=True):
        assert number == same
        assert part["scores"] == one["scores"]
        assert part["spread"] == pytest.approx(one["spread"], rel=1e-4)


def test_only_needed_rows_and_concepts_are_read_and_the_spread_of_many_images_is_sampled(
    data: AtlasData,
) -> None:
    split = np.array(["train", "train", "train", "val", "test"] * 5000, dtype=object)
    sample, training = sample_rows(split), spread_rows(split)
    assert len(training) == 10_000
    assert (split[training] == "train").all()
    assert np.diff(training).max() <= 4
    explainer = catalogue_of(data).explainers[1]
    scores = np.random.default_rng(3).random((len(split), 60), np.float32)
    read = []

    class Watched:
        shape = scores.shape

        def __getitem__(self, places: tuple[np.ndarray, ...]) -> np.ndarray:
            read.append(places[0].ravel())
            assert set(places[1].ravel()) <= set(explainer.positions.tolist())
            return scores[places]

    shards = list(concept_shards(explainer, 0, Watched(), training, sample, len(split), 1 << 20))
    assert np.array_equal(np.concatenate(read), np.union1d(sample, training))
    for _, shard in shards:
        positions = explainer.positions[shard["concepts"]]
        exact = scores[split == "train"][:, positions].std(axis=0, dtype=np.float64)
        assert shard["spread"] == pytest.approx(exact, rel=0.02)
        for position, stored in zip(positions, shard["scores"], strict=True):
            assert np.array_equal(half(stored), scores[sample, position].astype(np.float16))


def test_every_image_that_is_shown_has_a_name_and_a_picture(
    data: AtlasData, files: Files, overview: Any
) -> None:
    shown = set(overview["sample"])
    for record, _ in records(files, overview).values():
        shown.update(record["values"]["rows"] if record["values"] else [])
        worst = [one for own in record["by"] for one in own["worst"] or [] if one]
        shown.update(row for sides in worst for side in sides for row, _, _ in side)
    pictures = {
        int(path.rsplit("/", 1)[1].removesuffix(".jpg")): path
        for path in files
        if path.startswith("thumbs/")
    }
    assert set(pictures) == shown
    assert all(path == f"thumbs/{row % 256:02x}/{row}.jpg" for row, path in pictures.items())
    named = value_of(files, "images/0")
    assert named["rows"] == sorted(shown)
    rows = data.images.to_pylist()
    splits = [name for name, _ in overview["images"]["splits"]]
    for place, row in enumerate(named["rows"]):
        assert named["ids"][place] == rows[row]["image_id"]
        assert named["paths"][place] == rows[row]["path"]
        assert named["label"][place] == rows[row]["label"]
        assert splits[named["split"][place]] == rows[row]["split"]
