"""Directions of a layer: their arithmetic, their files, and runs in which they are explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import core.directions
from actors.directions import DirectionSet, directions_fingerprint, load_directions
from actors.recorder import Recorder, TargetPart
from actors.taps import LayerTap
from actors.targets import load_target
from core.directions import Directions
from core.errors import ConfigError, LayerError

TESTS = Path(__file__).parent
NEURONS, COUNT = 7, 11


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def directions(kind: Any = "none", k: int = 0) -> Directions:
    return Directions(drawn(COUNT, NEURONS), drawn(COUNT), drawn(NEURONS, seed=1), kind, k)


def by_hand(x: np.ndarray, some: Directions) -> np.ndarray:
    """One token at a time, in double precision."""
    assert some.bias is not None
    assert some.centre is not None
    value = some.weight.numpy().astype(np.float64) @ (x - some.centre.numpy()) + some.bias.numpy()
    if some.nonlinearity == "none":
        return value
    value = np.maximum(value, 0)
    if some.nonlinearity == "topk":
        value[np.argsort(-value)[some.k :]] = 0
    return value


@pytest.mark.parametrize(("kind", "k"), [("none", 0), ("relu", 0), ("topk", 3), ("topk", COUNT)])
def test_activations_are_those_of_one_token_at_a_time(kind: str, k: int) -> None:
    some, tokens = directions(kind, k), drawn(4, 5, NEURONS, seed=2)
    expected = np.array([[by_hand(x, some) for x in image] for image in tokens.numpy()])
    np.testing.assert_allclose(some.of(tokens), expected, atol=1e-5)
    assert kind != "topk" or int((some.of(tokens) != 0).sum(-1).max()) <= k


@pytest.mark.parametrize("pooling", ["avg", "max", "absmax", "first"])
@pytest.mark.parametrize("at_once", [1, 1 << 28])
def test_tokens_are_pooled_after_the_nonlinearity(
    pooling: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core.directions, "_AT_ONCE", at_once)
    some, tokens = directions("relu"), drawn(4, 6, NEURONS, seed=2)
    each = np.array([[by_hand(x, some) for x in image] for image in tokens.numpy()])
    reduced = {"avg": each.mean(1), "max": each.max(1), "absmax": each.max(1), "first": each[:, 0]}
    found = some.pooled(tokens, pooling, by_token=True)
    np.testing.assert_allclose(found, reduced[pooling], atol=1e-5)
    if pooling != "first":
        places = tokens.transpose(1, 2).reshape(4, NEURONS, 2, 3)
        torch.testing.assert_close(some.pooled(places, pooling, by_token=True), found)


def test_pooled_layers_are_read_after_pooling() -> None:
    some, tokens = directions("relu"), drawn(4, 6, NEURONS, seed=2)
    expected = np.array([by_hand(x, some) for x in tokens.numpy().mean(1)])
    np.testing.assert_allclose(some.pooled(tokens, "avg", by_token=False), expected, atol=1e-5)
    flat = tokens[:, 0]
    torch.testing.assert_close(some.pooled(flat, "avg", by_token=True), some.of(flat))
    with pytest.raises(LayerError, match="first"):
        some.pooled(tokens.reshape(4, NEURONS, 2, 3), "first", by_token=True)


# Files ------------------------------------------------------------------------------------------


def written(path: Path, **arrays: Tensor) -> str:
    if path.suffix == ".npz":
        np.savez(path, **{key: values.numpy() for key, values in arrays.items()})
    else:
        from safetensors.torch import save_file

        save_file({key: values.contiguous() for key, values in arrays.items()}, path)
    return str(path)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("transposed", [False, True])
def test_files_of_either_kind_and_layout_hold_the_same_directions(
    tmp_path: Path, suffix: str, transposed: bool
) -> None:
    some = directions()
    assert some.bias is not None
    assert some.centre is not None
    weight = some.weight.T if transposed else some.weight
    arrays = {"enc": weight, "bias": some.bias.half().float(), "mid": some.centre}
    path = written(tmp_path / f"file.{suffix}", **arrays)
    found = load_directions(path, NEURONS, weight="enc", centre="mid")
    torch.testing.assert_close(found.weight, some.weight, rtol=0, atol=0)
    assert found.bias is not None
    torch.testing.assert_close(found.bias, some.bias.half().float(), rtol=0, atol=0)
    same = load_directions(path, NEURONS, weight="enc", bias="bias", centre="mid")
    assert directions_fingerprint(same, True) == directions_fingerprint(found, True)
    others = [
        directions_fingerprint(found, False),
        directions_fingerprint(load_directions(path, NEURONS, weight="enc"), True),
        directions_fingerprint(
            load_directions(path, NEURONS, weight="enc", centre="mid", nonlinearity="relu"), True
        ),
    ]
    assert len({*others, directions_fingerprint(found, True)}) == 4


def test_faulty_files_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    weight, bias = drawn(COUNT, NEURONS), drawn(COUNT)
    good = written(tmp_path / "good.npz", weight=weight, bias=bias)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not tensors")
    (tmp_path / "broken.npz").write_bytes(b"PK not a zip")
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, weight=np.array([{"code": 1}], dtype=object))
    nan = written(tmp_path / "nan.npz", weight=weight / 0)
    whole = written(tmp_path / "whole.npz", weight=weight.to(torch.int64))
    wide = written(tmp_path / "wide.npz", weight=weight, bias=drawn(3))
    faults: list[tuple[str, int, dict[str, Any], str]] = [
        (str(tmp_path / "none.npz"), NEURONS, {}, "no file of directions"),
        (str(tmp_path / "file.pt"), NEURONS, {}, "expected a file .safetensors or .npz"),
        (good, NEURONS, {"weight": "weigth"}, "no 'weigth'; close names: 'weight'"),
        (good, NEURONS + 1, {}, r"shape \(11, 7\), expected \(directions, 8\)"),
        (good, NEURONS, {"nonlinearity": "topk", "k": COUNT + 1}, "k is 12, expected 1 to 11"),
        (str(broken), NEURONS, {}, "no safetensors file"),
        (str(tmp_path / "broken.npz"), NEURONS, {}, "cannot be read"),
        (str(pickled), NEURONS, {}, "cannot be read as plain arrays"),
        (nan, NEURONS, {}, "not finite"),
        (whole, NEURONS, {}, "expected floating point"),
        (wide, NEURONS, {}, r"bias of 11 directions over 7 neurons has shape \(3,\)"),
    ]
    for path, neurons, settings, message in faults:
        with pytest.raises(LayerError, match=message):
            load_directions(path, neurons, **settings)


# Networks ---------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Channels first, channels last, and tokens, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, NEURONS, 4, stride=4)
        self.last = nn.LayerNorm(NEURONS)
        self.tokens = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.last(self.first(images).movedim(1, 3))
        out: Tensor = self.tokens(maps.flatten(1, 2))
        return out


def test_a_tap_reads_directions_of_every_layout() -> None:
    network, some = Tokens().eval(), directions("relu")
    sets = [
        DirectionSet(f"of {layer}", layer, ("avg", "max"), True, some, "")
        for layer in ("first", "last", "tokens")
    ]
    images = drawn(2, 3, 16, 16, seed=5)
    with torch.inference_mode(), LayerTap(network, {"tokens": ("max",)}, sets) as tap:
        found = tap.run(images)
        maps = network.first(images)
    of = {"of first": maps, "of last": network(images), "of tokens": network(images)}
    assert list(found) == [("tokens", "max"), *((d.name, p) for d in sets for p in d.poolings)]
    for (name, pooling), values in found.items():
        if name != "tokens":
            expected = some.pooled(of[name], pooling, by_token=True)
            torch.testing.assert_close(values, expected)
    with pytest.raises(LayerError, match="no layer 'frist'; close names: 'first'"):
        LayerTap(network, {}, [DirectionSet("d", "frist", ("avg",), True, some, "")])


def test_a_linear_head_read_as_directions_is_the_head() -> None:
    """The classifier of a real network, applied to its pooled last layer, is what it computes."""
    target = load_target("timm:tf_efficientnet_lite0", "random:0")
    head: Any = target.module.get_submodule("classifier")
    some = Directions(head.weight.detach().clone(), head.bias.detach().clone())
    sets = [
        DirectionSet(name, "bn2", ("avg",), by_token, some, "")
        for name, by_token in (("pooled", False), ("tokens", True))
    ]
    part = TargetPart(target, {"classifier": ("avg",)}, sets)
    recorder = Recorder([part], dtype="float32", batch_size=4)
    (view,) = recorder.views.values()
    pixels = np.random.default_rng(1).integers(0, 256, (5, *view.shape)).astype(np.uint8)
    found = {name: v for (name, _), v in recorder.record({view.key: pixels}).activations.items()}
    assert np.ptp(found["classifier"], axis=0).min() > 0
    for name in ("pooled", "tokens"):
        np.testing.assert_allclose(found[name], found["classifier"], atol=2e-3, rtol=2e-3)


# Runs -------------------------------------------------------------------------------------------


def test_directions_are_explained_as_the_neurons_that_they_are(
    tmp_path: Path, local_ray: None
) -> None:
    import planted_cells

    from pipeline import planted
    from pipeline.config import parse_config
    from pipeline.expected import STAGES
    from pipeline.run import execute
    from pipeline.rundir import Run

    planted.write_images(tmp_path, 200)
    chosen = [20, 3, 7]
    width = planted_cells.NEURONS + 1
    # Powers of two, so that what is stored in float16 is an exact multiple as well.
    weight = 4 * torch.eye(width)[chosen]
    path = written(tmp_path / "some.npz", weight=weight)
    wanted = {"name": "some", "layer": "neurons", "path": path, "nonlinearity": "relu"}
    sections = planted.config(tmp_path) | {
        "target": {
            "model": "python:planted_cells:network",
            "layers": ["neurons"],
            "directions": [wanted],
            "dtype": "float32",
        },
        "fit": {"folds": 2, "max_length": 3},
    }
    upto = STAGES[: STAGES.index("fit") + 1]
    execute(parse_config(sections, base=TESTS), tmp_path / "run", upto)
    run = Run.open(tmp_path / "run")
    recorded = run.read("activations")
    ours, theirs = (
        np.stack(recorded[f"act.{name}.avg"].to_numpy()) for name in ("some", "neurons")
    )
    assert np.array_equal(ours, 4 * np.maximum(theirs[:, chosen], 0))
    rows = run.read("explanations").to_pylist()
    found = {(row["layer"], row["neuron"]): row for row in rows if row["chosen"]}
    for place, neuron in enumerate(chosen):
        mine, other = found["some", place], found["neurons", neuron]
        assert mine["concepts"] == other["concepts"]
        np.testing.assert_allclose(mine["weights"], 4 * np.array(other["weights"]), rtol=1e-5)

    first = run.tables()["activations"].fingerprint
    written(Path(path), weight=2 * weight)
    execute(parse_config(sections, base=TESTS), tmp_path / "run", ["record"])
    assert run.tables()["activations"].fingerprint != first
    halved = np.stack(run.read("activations")["act.some.avg"].to_numpy())
    assert np.array_equal(halved, 2 * ours)

    refusals: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"name": "neurons"}, LayerError, "as a layer of the network is"),
        ({"layer": "neuron"}, LayerError, "no layer 'neuron'; close names: 'neurons'"),
        ({"pooling": ["max"]}, LayerError, "pooling 'max' does not fit"),
        ({"k": 3}, ConfigError, "'topk' needs k"),
        ({"nonlinearity": "topk"}, ConfigError, "'topk' needs k"),
        ({"pooling": ["mean"]}, ConfigError, "unknown pooling 'mean'"),
    ]
    for change, error, message in refusals:
        sections["target"]["directions"] = [wanted | change]  # type: ignore[index]
        with pytest.raises(error, match=message):
            execute(parse_config(sections, base=TESTS), tmp_path / "refused", ["record"])
    assert not (tmp_path / "refused").exists()
