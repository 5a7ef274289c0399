"""What changed between two runs, on runs in which every change was planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from core.errors import ConfigError
from core.sharpness import NATIVE, Sharpness
from pipeline.cli import main
from pipeline.columns import vectors
from pipeline.diff import CHANGES, Diff, diff_lines, diff_runs, similarity
from pipeline.rundir import Run, part_name

TEXTS = ["dog", "cat", "grass", "canine", "sky", "unseen"]
NEURONS, IMAGES = 8, 300
SHARPNESS = {"a": Sharpness(0.5), "b": Sharpness(2.0, 1.0)}
SETTINGS: dict[str, Any] = {
    "images": {"path": "there", "split": {"seed": 0}},
    "target": {"model": "timm:net", "layers": ["fc"]},
    "concepts": [
        {"name": "clip", "kind": "open_clip", "model": "m", "calibration": "auto"},
    ],
    "simulators": [],
    "fit": {"tolerance": 0.02},
}

Row = dict[str, Any]


def explanation(neuron: int, terms: list[tuple[str, float, float]], **more: Any) -> Row:
    """A row of explanations; a term is a concept, its weight and its share."""
    concepts, weights, shares = ([term[n] for term in terms] for n in range(3))
    row = {"layer": "fc", "pooling": "avg", "neuron": neuron, "explainer": "clip", "status": "ok"}
    row |= {"chosen": True, "concepts": concepts, "weights": weights, "shares": shares}
    return row | {"length": len(terms), "bias": 0.5, "val_correlation": 0.4} | more


def logits() -> np.ndarray:
    """Logits of all concepts but the last; `canine` is another word for `dog`."""
    values = np.random.default_rng(3).normal(-1, 1.5, (IMAGES, 5))
    values[:, 3] = values[:, 0]
    return values


def made(
    folder: Path,
    rows: list[Row],
    sharpness: Sharpness = NATIVE,
    change: Callable[[Any], Any] = lambda data: data,
    scores: list[Row] | None = None,
    keep: str = "all",
) -> Run:
    """A run of hand-written tables."""
    run = Run(folder)
    run.folder.write(
        "run.yaml", yaml.safe_dump(change(yaml.safe_load(yaml.safe_dump(SETTINGS)))).encode()
    )
    # The other lengths of a path must not take part.
    others = [row | {"chosen": False, "length": 9, "concepts": [], "weights": []} for row in rows]
    types = {"concepts": pa.list_(pa.string())}
    types |= dict.fromkeys(("weights", "shares"), pa.list_(pa.float64()))
    types |= dict.fromkeys(("bias", "val_correlation"), pa.float64())
    content = {name: [row[name] for row in [*rows, *others]] for name in rows[0]}
    table = pa.table({name: pa.array(v, types.get(name)) for name, v in content.items()})
    run.write("explanations", "explanations.parquet", table, "made")
    about = {"explainer": "clip", "layer": "fc", "pooling": "avg", "val_correlation": None}
    both = (sharpness, Sharpness(7.0, -1.0))
    tried = [about | one._asdict() | {"chosen": one == sharpness} for one in both]
    run.write("sharpness", "sharpness.parquet", pa.Table.from_pylist(tried), "made")
    known = TEXTS[:5]
    listed = {"explainer": ["clip"] * 5, "position": range(5), "concept": known}
    run.write("concepts", "concepts.parquet", pa.table(listed), "made")
    ids = [f"image {n}" for n in range(IMAGES)]
    split = ["test" if n % 3 == 0 else "train" for n in range(IMAGES)]
    values = expit(logits()).astype(np.float16)
    for table_name, content in (
        ("images", pa.table({"image_id": ids, "split": split})),
        ("concept_scores/clip", pa.table({"image_id": ids, "score": vectors(values)})),
    ):
        for part, start in enumerate(range(0, IMAGES, 77)):
            rows_of_part = content.slice(start, 77)
            if table_name != "images" and keep == "test":
                mask = pa.array([s == "test" for s in split[start : start + 77]])
                rows_of_part = rows_of_part.filter(mask)
            path = f"recordings/{table_name}"
            run.folder.write_table(part_name(path, part, "a" * 12), rows_of_part)
        run.commit(table_name, f"recordings/{table_name}", "made", IMAGES)
    if scores is not None:
        run.write("scores", "scores.parquet", pa.Table.from_pylist(scores), "made")
    return run


BEFORE = [
    explanation(0, [("dog", 2.0, 0.3), ("sky", -1.0, 0.1)]),  # stays
    explanation(1, [("dog", 2.0, 0.3)]),  # turns its sign
    explanation(2, [("dog", 2.0, 0.3), ("sky", -1.0, 0.1)]),  # another word for the same
    explanation(3, [("dog", 2.0, 0.3)]),  # dies
    explanation(4, [], status="dead", val_correlation=None, bias=0.0),  # comes to life
    explanation(5, [], val_correlation=None),  # no concept tells anything
    explanation(6, [("unseen", 2.0, 0.3)]),  # by a concept that B does not know
    explanation(7, [("cat", 1.0, 0.2), ("grass", 1.0, 0.2)]),  # loses a half
]
AFTER = [
    explanation(0, [("dog", 2.2, 0.31), ("sky", -0.9, 0.1)]),
    explanation(1, [("dog", -2.0, 0.3)]),
    explanation(2, [("canine", 2.0, 0.3), ("sky", -1.1, 0.1)]),
    explanation(3, [], status="dead", val_correlation=None, bias=0.0),
    explanation(4, [("cat", 1.5, 0.2)]),
    explanation(5, [], val_correlation=None),
    explanation(6, [("cat", 1.5, 0.2)], val_correlation=0.3),
    explanation(7, [("cat", 1.0, 0.2)]),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("diff")
    return (
        made(folder / "a", BEFORE, SHARPNESS["a"], scores=scored(0)),
        made(folder / "b", AFTER, SHARPNESS["b"], lambda d: d | {"fit": {"ridge": 0.1}}, scored(1)),
    )


@pytest.fixture(scope="module")
def found(runs: tuple[Run, Run]) -> Diff:
    return diff_runs(*runs)


def scored(run: int) -> list[Row]:
    """Scores of both runs by the explainer itself, and by a simulator of each run's own."""
    rng = np.random.default_rng(run)
    rows = []
    for simulator, neurons in (("explainer", range(3)), (f"clip-{run}", range(3))):
        for neuron in neurons:
            value = float(rng.uniform(0.2, 0.6))
            row = {"layer": "fc", "pooling": "avg", "neuron": neuron, "explainer": "clip"}
            row |= {"simulator": simulator, "length": 2, "chosen": True, "correlation": value}
            half = 0.2 if neuron else 1e-6
            rows.append(row | {"ci_low": value - half, "ci_high": value + half})
            rows.append(row | {"length": 3, "chosen": False, "correlation": 9.0})
    return rows


# Similarity -------------------------------------------------------------------------------------

TERMS = st.dictionaries(
    st.sampled_from(TEXTS), st.tuples(st.floats(-3, 3), st.floats(0, 1)), min_size=1
).map(lambda terms: explanation(0, [(text, *values) for text, values in terms.items()]))


def test_similarity_is_the_share_in_common_over_the_share_in_either() -> None:
    one = explanation(0, [("dog", 1.0, 0.3), ("cat", -2.0, 0.1)])
    other = explanation(0, [("cat", -1.0, 0.2), ("dog", 5.0, 0.1), ("sky", 1.0, 0.1)])
    # dog .75 and .25, cat .25 and .5, sky 0 and .25
    assert similarity(one, other) == pytest.approx((0.25 + 0.25) / (0.75 + 0.5 + 0.25))


@settings(max_examples=60, deadline=None)
@given(one=TERMS, other=TERMS, scale=st.floats(0.1, 5))
def test_similarity_is_symmetric_and_one_for_the_same_terms_and_zero_for_none_in_common(
    one: Row, other: Row, scale: float
) -> None:
    alike = similarity(one, other)
    assert 0 <= alike <= 1
    assert alike == pytest.approx(similarity(other, one), abs=1e-12)
    assert similarity(one, one) == pytest.approx(1.0)
    fitted_better = one | {"shares": [share * scale for share in one["shares"]]}
    if sum(one["shares"]) > 1e-100:
        assert similarity(fitted_better, other) == pytest.approx(alike, abs=1e-9)
    turned = one | {"weights": [1.0 if weight < 0 else -1.0 for weight in one["weights"]]}
    assert similarity(one, turned) == 0
    renamed = other | {"concepts": [f"not {text}" for text in other["concepts"]]}
    assert similarity(one, renamed) == 0


def test_terms_without_any_share_count_alike() -> None:
    nothing = explanation(0, [("dog", 1.0, 0.0), ("cat", 1.0, 0.0)])
    assert similarity(nothing, explanation(0, [("dog", 1.0, 0.4)])) == pytest.approx(0.5 / 1.5)


# Changes ----------------------------------------------------------------------------------------


def test_every_planted_change_is_told_from_the_others(found: Diff) -> None:
    rows = found.table.to_pylist()
    assert [row["neuron"] for row in rows] == list(range(NEURONS))
    planted = ["same", "changed", "reworded", "lost", "gained", "neither", "changed", "changed"]
    assert [row["change"] for row in rows] == planted
    assert set(planted) == set(CHANGES)
    assert [row["similarity"] is None for row in rows] == [n in (3, 4, 5) for n in range(NEURONS)]
    for before, after, row in zip(BEFORE, AFTER, rows, strict=True):
        for name in ("status", "concepts", "weights", "bias", "shares", "val_correlation"):
            assert (row[f"{name}_a"], row[f"{name}_b"]) == (before[name], after[name])


def test_agreement_is_the_correlation_of_what_both_predict_of_the_test_images_of_b(
    found: Diff,
) -> None:
    levels = logits()[::3]
    for row in found.table.to_pylist():
        if row["neuron"] in (3, 4, 5, 6):
            assert row["agreement"] is None
            continue
        predicted = []
        for run in "ab":
            used = [TEXTS.index(text) for text in row[f"concepts_{run}"]]
            factor, shift = SHARPNESS[run]
            predicted.append(expit(factor * levels[:, used] + shift) @ row[f"weights_{run}"])
        # Scores are stored in half precision, hence the tolerance.
        assert row["agreement"] == pytest.approx(np.corrcoef(*predicted)[0, 1], abs=2e-4)
    turned = found.table["agreement"][1].as_py()
    assert turned < -0.8, "a weight that turned its sign predicts the opposite"


def test_agreement_is_the_same_where_b_kept_test_images_alone(
    tmp_path: Path, runs: tuple[Run, Run], found: Diff
) -> None:
    other = made(tmp_path, AFTER, SHARPNESS["b"], keep="test")
    again = diff_runs(runs[0], other).table
    assert again["agreement"].to_pylist() == found.table["agreement"].to_pylist()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "other"}, "its model differs"),
        ({"calibration": {"a": 2.0, "b": 0.1}}, "its calibration differs"),
        ({"kind": "table"}, "its kind differs"),
    ],
)
def test_predictions_of_explainers_that_differ_are_not_compared(
    tmp_path: Path, runs: tuple[Run, Run], change: dict[str, Any], why: str
) -> None:
    def changed(data: Any) -> Any:
        return data | {"concepts": [data["concepts"][0] | change]}

    diff = diff_runs(runs[0], made(tmp_path, AFTER, SHARPNESS["b"], changed))
    assert diff.unread == {"clip": why}
    assert diff.table["agreement"].null_count == NEURONS
    assert diff.table["change"].to_pylist().count("reworded") == 0
    assert any(why in line for line in diff_lines(diff, 0))


def test_a_run_is_the_same_as_itself(runs: tuple[Run, Run]) -> None:
    diff = diff_runs(runs[0], runs[0])
    explained = [bool(row["concepts"]) for row in BEFORE]
    assert [change == "same" for change in diff.table["change"].to_pylist()] == explained
    assert diff.settings == []
    assert diff.missing == []


def test_what_one_run_alone_has_is_said(tmp_path: Path) -> None:
    more = [*BEFORE, BEFORE[0] | {"neuron": 8}, BEFORE[0] | {"layer": "conv"}]
    a, b = made(tmp_path / "a", BEFORE), made(tmp_path / "b", more)
    assert diff_runs(a, b).missing == [
        "fc (avg) by clip, in B alone: 1 neurons",
        "conv (avg) by clip, in B alone: all of it",
    ]
    assert diff_runs(b, a).table.num_rows == NEURONS


def test_settings_that_differ_are_named_by_key_with_both_values(tmp_path: Path) -> None:
    def changed(data: Any) -> Any:
        data["concepts"][0]["calibration"] = {"a": 2.0, "b": 0.1}
        data["concepts"].append({"name": "label", "kind": "labels"})
        data["target"]["layers"] = ["fc", "conv*"]
        return data | {"fit": {"ridge": 0.1}}

    a, b = made(tmp_path / "a", BEFORE), made(tmp_path / "b", BEFORE, change=changed)
    expected = [
        ("target.layers", '["fc"]', '["fc", "conv*"]'),
        ("concepts.clip.calibration", "auto", "—"),
        ("concepts.clip.calibration.a", "—", "2.0"),
        ("concepts.clip.calibration.b", "—", "0.1"),
        ("concepts.label.kind", "—", "labels"),
        ("fit.tolerance", "0.02", "—"),
        ("fit.ridge", "—", "0.1"),
    ]
    assert sorted(diff_runs(a, b).settings) == sorted(expected)


# Scores and lines -------------------------------------------------------------------------------


def test_scores_of_simulators_of_both_runs_are_set_side_by_side(found: Diff) -> None:
    assert found.simulators == ["explainer"]
    own = [[r for r in scored(n) if r["chosen"] and r["simulator"] == "explainer"] for n in (0, 1)]
    a, b = ({r["neuron"]: r for r in rows} for rows in own)
    for row in found.table.to_pylist():
        pair = a.get(row["neuron"]), b.get(row["neuron"])
        for run, score in zip("ab", pair, strict=True):
            assert row[f"correlation_{run}.explainer"] == (score and score["correlation"])
        # The intervals of neuron 0 are narrow, those of the others wide.
        overlap = {0: False, 1: True, 2: True}.get(row["neuron"])
        assert row["intervals_overlap.explainer"] == overlap


def test_the_mean_change_of_scores_has_the_interval_of_a_paired_t_test(found: Diff) -> None:
    a, b = (np.array(found.table[f"correlation_{run}.explainer"].to_pylist()[:3]) for run in "ab")
    interval = stats.ttest_rel(b, a).confidence_interval(0.95)
    line = next(line for line in diff_lines(found, 0) if "itself" in line)
    gap = f"{(b - a).mean():+.3f} ({interval.low:+.3f} … {interval.high:+.3f})"
    assert line.split("itself")[1].split() == [
        *("3", f"{a.mean():.3f}", f"{b.mean():.3f}", *gap.split(), "1")
    ]


def test_the_neurons_that_changed_most_come_first_with_both_explanations(found: Diff) -> None:
    def listed(limit: int) -> list[int]:
        lines = diff_lines(found, limit)
        return [int(line.split(":")[1].split()[0]) for line in lines if line.startswith("  fc:")]

    # The opposite; then what shares nothing and cannot be predicted; then what half is left of.
    assert listed(20) == [1, 6, 7]
    assert listed(2) == [1, 6]
    assert listed(0) == []
    lines = diff_lines(found, 20)
    first = next(n for n, line in enumerate(lines) if line.startswith("  fc:1 "))
    assert lines[first + 1 : first + 3] == ["    A  0.40  2·dog + 0.5", "    B  0.40  −2·dog + 0.5"]


def test_the_command_lists_settings_first_and_writes_the_table(
    tmp_path: Path, runs: tuple[Run, Run], found: Diff, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [run.folder.url for run in runs]
    assert main(["diff", *places, "--out", str(tmp_path / "new" / "diff.parquet")]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[3:6] == [
        "Settings that differ, A → B:",
        "  fit.tolerance: 0.02 → —",
        "  fit.ridge: — → 0.1",
    ]
    counts = next(line.split() for line in said.splitlines() if line.startswith("  fc"))
    assert counts[:-1] == ["fc", "clip", "8", "1", "1", "3", "1", "1", "1"]
    assert pq.read_table(tmp_path / "new" / "diff.parquet").equals(found.table)


def test_runs_that_cannot_be_compared_end_with_code_2(
    tmp_path: Path, runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    here = runs[0].folder.url
    assert main(["diff", here, str(tmp_path / "none")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert main(["diff", here, here, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "is a folder" in said.err
    assert said.out == ""
    empty = Run(tmp_path / "empty")
    empty.commit("images", "recordings/images", "made", 1)
    with pytest.raises(ConfigError, match="has no explanations yet"):
        diff_runs(runs[0], empty)
    other = made(tmp_path / "other", [row | {"layer": "conv"} for row in BEFORE])
    with pytest.raises(ConfigError, match=r"no layer in common.* has fc · avg · clip.* has conv"):
        diff_runs(runs[0], other)
    other.folder.delete("run.yaml")
    with pytest.raises(ConfigError, match=r"has no run\.yaml"):
        diff_runs(runs[0], other)
