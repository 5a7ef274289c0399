"""Ablation through the whole pipeline, on networks whose neurons are known sums of concepts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ablation_network import EARLY, LATE, PERFECT, Ablated

from core.errors import ConfigError
from core.linear_head import loss_changes
from pipeline import planted
from pipeline.ablate import ablate
from pipeline.ablation_plan import refuse_impossible_ablation
from pipeline.classes import read_classes
from pipeline.cli import main
from pipeline.config import parse_config
from pipeline.engine import recording_workers
from pipeline.expected import expect
from pipeline.planning import prepare
from pipeline.run import execute
from pipeline.rundir import Run

IMAGES = 400
TESTS = Path(__file__).parent
TABLES = ("ablations", "replacements", "importance")
Rows = list[dict[str, Any]]


def config(folder: Path, factory: str = "network", **ablation: Any) -> dict[str, Any]:
    sections: dict[str, Any] = planted.config(folder)
    sections["target"] |= {
        "model": f"python:ablation_network:{factory}",
        "layers": ["early", "late"],
    }
    sections["fit"] = {"tolerance": 1e-4, "folds": 0}
    sections["ablation"] = {"layers": ["early", "late"], "temperature": 1.0} | ablation
    return sections


def carried_out(out: Path, sections: dict[str, Any], *stages: str) -> Run:
    return Run.open(execute(parse_config(sections, base=TESTS), out, stages or None).url)


def rows_of(run: Run, table: str, **where: Any) -> Rows:
    found: Rows = run.read(table).to_pylist()
    return [row for row in found if all(row[key] == value for key, value in where.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ablate")
    planted.write_images(path, IMAGES)
    return path


@pytest.fixture(scope="module")
def run(folder: Path, local_ray: None) -> Run:
    return carried_out(folder / "run", config(folder))


class Truth:
    """What the tables say of test and validation images, and the network's own answer to them."""

    def __init__(self, run: Run) -> None:
        images = run.read("images")
        split = np.array(images["split"].to_pylist())
        ids = images["image_id"].to_pylist()
        cells = planted.levels(IMAGES, seed=3) / np.float32(255)
        self.cells = torch.from_numpy(cells[[int(i[-9:-4]) for i in ids]])
        self.network = Ablated(plain=True)
        self.logits = self.of_cells()
        self.labels = self.logits.argmax(dim=1)
        self.loss = self.losses(self.logits)
        self.split = {name: split == name for name in ("train", "val", "test")}
        table = run.read("activations")
        self.recorded = {
            layer: np.stack(table[f"act.{layer}.avg"].to_numpy()).astype(np.float64)
            for layer in ("early", "late")
        }
        self.scores = np.stack(run.read("concept_scores/cells")["score"].to_numpy()).astype(float)
        self.chosen = {
            (r["layer"], r["neuron"]): r for r in rows_of(run, "explanations", chosen=True)
        }

    def of_cells(self, layer: str = "", shifts: np.ndarray | None = None) -> torch.Tensor:
        """Logits, with a layer's output shifted if asked for, by the formula of the network."""
        net = self.network
        early = net.early(self.cells)
        if layer == "early":
            early = early + torch.from_numpy(shifts).float()
        late = net.late(torch.cat([self.cells, torch.tanh(early)], dim=1))
        if layer == "late":
            late = late + torch.from_numpy(shifts).float()
        return net.head(late).detach().double()

    def losses(self, logits: torch.Tensor) -> np.ndarray:
        found = torch.nn.functional.cross_entropy(logits, self.labels, reduction="none")
        return found.numpy()

    def changes(self, layer: str, neuron: int, values: np.ndarray) -> np.ndarray:
        """Change of each image's loss with a neuron at some values."""
        shifts = np.zeros_like(self.recorded[layer])
        shifts[:, neuron] = values - self.recorded[layer][:, neuron]
        return self.losses(self.of_cells(layer, shifts)) - self.loss

    def simulated(self, layer: str, neuron: int) -> np.ndarray:
        row = self.chosen[layer, neuron]
        columns = [planted.NAMES.index(name) for name in row["concepts"]]
        found: np.ndarray = self.scores[:, columns] @ np.array(row["weights"]) + row["bias"]
        return found

    def normed(self, layer: str, neuron: int) -> np.ndarray:
        """The published `norm`, written out."""
        val = self.split["val"]
        s, q = self.simulated(layer, neuron), self.recorded[layer][:, neuron]
        rho = np.corrcoef(q[val], s[val])[0, 1]
        found: np.ndarray = (s - s[val].mean()) / s[val].std() * q[val].std() * rho + q[val].mean()
        return found

    def mean(self, layer: str, neuron: int) -> float:
        return float(self.recorded[layer][self.split["train"], neuron].mean())


@pytest.fixture(scope="module")
def truth(run: Run) -> Truth:
    return Truth(run)


def test_neurons_that_are_sums_of_concepts_keep_all_of_the_loss(run: Run) -> None:
    for kind in ("norm", "optim"):
        rows = rows_of(run, "ablations", kind=kind)
        perfect = [r for r in rows if r["layer"] == "early" or r["neuron"] < PERFECT]
        assert len(rows) == EARLY + LATE
        assert min(row["score"] for row in perfect) > 0.998
        assert max(row["score"] for row in rows if row not in perfect) < 0.95


@pytest.mark.parametrize("layer", ["early", "late"])
def test_norm_scores_are_those_of_the_formula_with_forward_passes(
    run: Run, truth: Truth, layer: str
) -> None:
    test = truth.split["test"]
    for neuron in (0, 3, 9):
        (row,) = rows_of(run, "ablations", layer=layer, neuron=neuron, kind="norm")
        replaced = truth.changes(layer, neuron, truth.normed(layer, neuron))
        at_mean = truth.changes(layer, neuron, np.full(len(test), truth.mean(layer, neuron)))
        expected = 1 - np.abs(replaced[test]).sum() / np.abs(at_mean[test]).sum()
        assert row["score"] == pytest.approx(expected, abs=1e-4)
        assert (row["images"], row["exact"]) == (test.sum(), True)
        assert row["length"] == truth.chosen[layer, neuron]["length"]


def test_lines_of_optim_are_no_worse_on_validation_than_the_start_and_the_line_of_norm(
    run: Run, truth: Truth
) -> None:
    val = truth.split["val"]
    better = 0
    for neuron in range(LATE):
        rows = {r["kind"]: r for r in rows_of(run, "ablations", layer="late", neuron=neuron)}
        s = truth.simulated("late", neuron)

        def cost(c: float, d: float, s: np.ndarray = s, neuron: int = neuron) -> float:
            return float(np.abs(truth.changes("late", neuron, c * s + d)[val]).sum())

        found, norm = (cost(rows[kind]["c"], rows[kind]["d"]) for kind in ("optim", "norm"))
        assert found <= norm + 1e-3
        assert found <= cost(1.0, 0.0) + 1e-3
        better += found < 0.999 * norm
    assert better >= LATE / 2


def test_stored_logits_are_those_of_the_network_on_validation_and_test_images(
    run: Run, truth: Truth
) -> None:
    table = run.read("logits")
    images = run.read("images")["image_id"].to_pylist()
    kept = truth.split["val"] | truth.split["test"]
    assert table["image_id"].to_pylist() == [i for i, k in zip(images, kept, strict=True) if k]
    stored = np.stack(table["logits"].to_numpy())
    np.testing.assert_allclose(stored, truth.logits.numpy()[kept], atol=1e-4)


@pytest.mark.parametrize("layer", ["early", "late"])
def test_joint_replacement_is_one_forward_pass_with_all_neurons_replaced(
    run: Run, truth: Truth, layer: str
) -> None:
    (row,) = rows_of(run, "replacements", layer=layer)
    test, count = truth.split["test"], truth.recorded[layer].shape[1]
    targets = {
        "replaced": np.stack([truth.normed(layer, n) for n in range(count)], axis=1),
        "mean": np.array([truth.mean(layer, n) for n in range(count)]),
    }
    assert row["loss"] == pytest.approx(truth.loss[test].mean(), abs=1e-5)
    assert row["accuracy"] == 1.0  # against the network's own classes
    for name, values in targets.items():
        logits = truth.of_cells(layer, values - truth.recorded[layer])
        right = (logits.argmax(dim=1) == truth.labels).numpy()
        assert row[f"loss_{name}"] == pytest.approx(truth.losses(logits)[test].mean(), abs=1e-4)
        assert row[f"accuracy_{name}"] == pytest.approx(right[test].mean())
    kept = (row["loss_replaced"] - row["loss_mean"]) / (row["loss"] - row["loss_mean"])
    assert row["loss_kept"] == pytest.approx(kept)
    assert (row["neurons"], row["images"]) == (count, test.sum())


@pytest.mark.parametrize(("layer", "neuron"), [("early", 2), ("late", 5)])
def test_importance_is_the_share_of_impact_when_the_neuron_is_set_to_zero(
    run: Run, truth: Truth, layer: str, neuron: int
) -> None:
    test = truth.split["test"]
    q = truth.recorded[layer][:, neuron]
    shifts = np.zeros_like(truth.recorded[layer])
    shifts[:, neuron] = -q
    logits = truth.of_cells(layer, shifts)
    right = (logits.argmax(dim=1) == truth.labels).numpy()
    lost = (1.0 - right[test]) / test.sum()
    risen = (truth.losses(logits) - truth.loss)[test] / truth.loss[test].sum()
    impact = np.abs(lost + risen) / 2
    ranked = impact[np.argsort(-q[test], kind="stable")]
    for row in rows_of(run, "importance", layer=layer, neuron=neuron):
        count = max(1, int(np.ceil(row["fraction"] * len(ranked))))
        assert row["share"] == pytest.approx(ranked[:count].sum() / ranked.sum(), abs=2e-3)


def test_running_the_rest_again_gives_what_algebra_gives(folder: Path, run: Run) -> None:
    sections = config(folder, "disguised", layers=["late"])
    again = carried_out(folder / "disguised", sections)
    for table in TABLES:
        exact, other = rows_of(run, table, layer="late"), rows_of(again, table)
        assert len(exact) == len(other) > 0
        for ours, theirs in zip(exact, other, strict=True):
            optim = ours.get("kind") == "optim"
            for key, value in ours.items():
                if isinstance(value, float) and not (optim and key in "cd"):
                    # Lines of `optim` are found on curves there, and on exact changes here.
                    close = 0.03 if optim else 1e-4
                    assert theirs[key] == pytest.approx(value, abs=close), (table, key)
                elif not optim:
                    assert theirs[key] == value


def copy_of(run: Run, out: Path) -> Path:
    shutil.copytree(run.folder.url, out)
    return out


def test_with_fewer_images_and_neurons_scores_are_estimates_within_their_errors(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    sections = config(folder, images=20, neurons=4)
    some = carried_out(copy_of(run, tmp_path / "run"), sections, "ablate")
    rows = rows_of(some, "ablations", layer="early", kind="norm")
    assert len(rows) == 4
    for row in rows:
        (whole,) = rows_of(run, "ablations", layer="early", neuron=row["neuron"], kind="norm")
        assert not row["exact"]
        assert row["images"] <= 20
        assert abs(row["score"] - whole["score"]) < 6 * row["standard_error"] + 1e-4
    # Before a linear head nothing is drawn.
    assert rows_of(some, "ablations", layer="late", kind="norm") == rows_of(
        run, "ablations", layer="late", kind="norm"
    )


class KeepsWork(Run):
    """A run whose work in progress is left where it is, as if the stage had been killed at its end."""

    def prune(self, path: str, keep: Any) -> None:
        if not path.startswith("work/"):
            super().prune(path, keep)


def test_a_start_that_was_stopped_is_resumed_by_other_actors_with_the_same_result(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    plan = prepare(parse_config(config(folder), base=TESTS))
    workers, expected = recording_workers(plan.config.ray), expect(plan, "float32")
    out = KeepsWork(copy_of(run, tmp_path / "run"))
    for table in TABLES:
        out.withdraw(table)
    ablate(out, plan, expected, workers)
    work = sorted((tmp_path / "run/work/ablation").glob("*.npz"))
    assert len(work) == 2 * len(run.parts("logits"))
    lost, kept = work[::2], work[1::2]
    times = [part.stat().st_mtime_ns for part in kept]
    for part in lost:
        part.unlink()
    for table in TABLES:
        out.withdraw(table)
    ablate(out, plan, expected, replace(workers, actors=2))
    assert all(part.exists() for part in lost)
    assert [part.stat().st_mtime_ns for part in kept] == times
    for table in TABLES:
        assert out.folder.read(f"{table}.parquet") == run.folder.read(f"{table}.parquet")
    ablate(
        Run(out.folder), plan, expected, workers
    )  # all is fresh: nothing to do, nothing withdrawn
    assert set(TABLES) <= set(out.tables())


def test_losses_may_be_measured_against_the_labels_of_the_images(
    folder: Path, run: Run, truth: Truth, tmp_path: Path
) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(["odd", "even", "a", "b", "c"]))
    chosen = {"layers": ["late"], "classes": str(names), "importance": False}
    out = copy_of(run, tmp_path / "run")
    labelled = carried_out(out, config(folder, temperature=2.0, **chosen), "ablate")
    assert "importance" not in labelled.tables()
    labels = np.array([r["label"] for r in rows_of(labelled, "images")])
    right = truth.logits.argmax(dim=1).numpy() == np.where(labels == "odd", 0, 1)
    (row,) = rows_of(labelled, "replacements")
    assert row["accuracy"] == pytest.approx(right[truth.split["test"]].mean())
    score = rows_of(labelled, "ablations", neuron=9, kind="norm")[0]["score"]
    logits, test = truth.logits[truth.split["test"]], truth.split["test"]
    weights = truth.network.head.weight.detach()[:, 9:10]
    told = torch.from_numpy(np.where(labels == "odd", 0, 1)[test])
    q = truth.recorded["late"][test, 9:10]
    found = [
        loss_changes(logits, told, weights, torch.from_numpy(v - q), 2.0).abs().sum()
        for v in (truth.normed("late", 9)[test, None], np.full_like(q, truth.mean("late", 9)))
    ]
    assert score == pytest.approx(float(1 - found[0] / found[1]), abs=1e-4)
    # Labels that the network knows nothing of fit best with no certainty at all.
    with pytest.raises(ConfigError, match="no temperature between"):
        carried_out(out, config(folder, temperature="auto", **chosen), "ablate")


def test_without_the_section_tables_of_an_earlier_configuration_are_withdrawn(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    sections = config(folder) | {"ablation": None}
    plain = carried_out(copy_of(run, tmp_path / "run"), sections, "ablate")
    assert not {*TABLES, "logits"} & set(plain.tables())
    assert "explanations" in plain.tables()


def test_a_neuron_is_shown_with_its_ablation_scores(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", run.folder.url, "late:9"]) == 0
    shown = capsys.readouterr().out
    for row in rows_of(run, "ablations", layer="late", neuron=9):
        assert f"ablation score by itself (fit check), {row['kind']}: {row['score']:.3f} ±" in shown


def refusal(folder: Path, changed: dict[str, Any]) -> str:
    sections = config(folder, **changed.pop("ablation", {}))
    sections["target"] |= changed.pop("target", {})
    with pytest.raises(ConfigError) as caught:
        refuse_impossible_ablation(prepare(parse_config(sections | changed, base=TESTS)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ablation": {"layers": ["lat"]}}, "'lat' matches none of the layers that target.layers"),
        ({"ablation": {"temperature": "auto"}}, "classes is 'predicted'"),
        ({"ablation": {"scores": ["norm", "norm"]}}, "names one twice"),
        ({"recordings": {"keep": "test"}}, "needs activations and embeddings of validation images"),
    ],
)
def test_what_cannot_be_ablated_is_refused_before_any_work(
    folder: Path, changed: dict[str, Any], words: str
) -> None:
    assert words in refusal(folder, changed)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ["odd", "even", "a"],
            "names 3 classes, and 'python:ablation_network:network' has 5 outputs",
        ),
        (["odds", "even", "a", "b", "c"], "the first is 'odd'; close names: 'odds'"),
        (["odd", "odd", "a", "b", "c"], "names 'odd' for two outputs"),
    ],
)
def test_classes_that_do_not_fit_are_refused_before_any_work(
    folder: Path, tmp_path: Path, lines: list[str], words: str
) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    assert words in refusal(folder, {"ablation": {"classes": str(tmp_path / "classes.txt")}})


def test_classes_of_a_hierarchy_are_known_by_id_and_by_text_where_that_is_one_class(
    tmp_path: Path,
) -> None:
    classes = [("n1", "crane"), ("n2", "crane"), ("n3", "tench")]
    data = [{"index": n, "wnid": w, "label": t} for n, (w, t) in enumerate(classes)]
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": data[::-1]}))
    assert read_classes(str(path)) == ({"n1": 0, "n2": 1, "n3": 2, "tench": 2}, 3)
    path.write_text(json.dumps({"classes": data[1:]}))
    with pytest.raises(ConfigError, match="indices are not 0 to 1"):
        read_classes(str(path))
    path.write_text("[]")
    with pytest.raises(ConfigError, match="not of the expected shape"):
        read_classes(str(path))
