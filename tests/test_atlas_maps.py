"""Where in pictures neurons are active: maps of a network, and the shards that hold them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
import torch
from atlas_planted import Layer, cells_of, planted
from atlas_reading import built, records, value_of
from PIL import Image
from torch import nn
from torchvision import transforms

from actors.heat_maps import BATCH, HeatMapper, has_map, map_shape, seen_share
from actors.layers import describe_layers
from actors.preprocessing import split_transform
from actors.targets import Target


class Network(nn.Module):
    """Maps of 28 cells, of 7 cells that a later layer changes in place, and none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 5, 2, stride=2)
        self.late = nn.Conv2d(5, 6, 4, stride=4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.late(self.early(images))).mean(dim=(2, 3)))


@pytest.fixture
def target() -> Target:
    torch.manual_seed(0)
    steps = [transforms.Resize(64), transforms.CenterCrop(56), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.25] * 3)])
    return Target(Network().eval(), transform, "python:net")


def test_maps_are_the_layers_outputs_averaged_down_within_an_eight_bit_step(target: Target) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 56, 56, 3), dtype=np.uint8)
    rng = np.random.default_rng(1)
    wanted = {
        "early": (rng.integers(0, 9, 20), rng.integers(0, 5, 20)),
        "late": (rng.integers(0, 9, 30), rng.integers(0, 6, 30)),
    }
    batch = split_transform(target.transform).normalise(torch.from_numpy(images))
    with torch.inference_mode():
        early = target.module.early(batch)
        late = target.module.late(early)
    # 28 cells to 14: means of two by two, taken here by another road.
    small = {"early": early.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)), "late": late}
    found = HeatMapper(target, list(wanted)).maps(images, wanted)
    for layer, (rows, neurons) in wanted.items():
        expected = small[layer][torch.from_numpy(rows), torch.from_numpy(neurons)].numpy()
        maps = found[layer]
        assert maps.cells.shape == expected.shape
        span = (maps.high - maps.low)[:, None, None]
        restored = maps.low[:, None, None] + span * (maps.cells / 255)
        assert np.abs(restored - expected).max() <= span.max() * 0.51 / 255
        assert maps.low == pytest.approx(expected.min(axis=(1, 2)), rel=1e-5)
        assert maps.high == pytest.approx(expected.max(axis=(1, 2)), rel=1e-5)


def test_a_map_does_not_depend_on_the_images_beside_it(target: Target) -> None:
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 56, 56, 3), dtype=np.uint8)
    mapper = HeatMapper(target, ["early", "late"])

    def maps(rows: np.ndarray, place: int) -> Any:
        pair = np.array([place]), np.array([3])
        return mapper.maps(images[rows], {"early": pair, "late": pair})

    alone, together = maps(np.array([41]), 0), maps(np.arange(BATCH), 41)
    for layer in alone:
        assert np.array_equal(alone[layer].cells, together[layer].cells)
        assert np.array_equal(alone[layer].low, together[layer].low)


def test_layers_with_rows_and_columns_have_maps_and_others_none(target: Target) -> None:
    infos = {info.name: info for info in describe_layers(target.module, (56, 56))}
    assert [name for name, info in infos.items() if has_map(info)] == ["early", "late", "relu"]
    assert map_shape(infos["early"]) == (14, 14)
    assert map_shape(infos["late"]) == (7, 7)


@pytest.mark.parametrize(("resize", "crop"), [(64, 56), (64, 64), (256, 224)])
def test_the_share_of_a_picture_that_the_network_sees_is_that_of_its_crop(
    resize: int, crop: int
) -> None:
    steps = [transforms.Resize(resize), transforms.CenterCrop(crop), transforms.ToTensor()]
    view = split_transform(transforms.Compose(steps)).view
    assert view.apply(Image.new("RGB", (300, 200))).shape == (crop, crop, 3)
    assert seen_share(view) == pytest.approx(crop / resize, abs=0.02)


def test_every_picture_of_a_neuron_has_its_map_in_the_shard_of_the_same_number() -> None:
    data = planted(images=300, layers=(Layer("conv_head", 70), Layer("fc", 12)))
    files = built(data)
    overview = value_of(files, "overview")
    assert overview["maps"] == {"inset": 0.0625, "shapes": [[7, 7], None]}
    assert not any(path.startswith("data/maps/1/") for path in files)
    size = overview["neurons_per_shard"]
    for (layer, _, neuron), (record, _) in records(files, overview).items():
        if layer == "fc":
            continue
        stored = value_of(files, f"maps/0/{neuron // size}")[neuron % size]
        shown = set(record["values"]["rows"]) if record["values"] else set()
        for own in record["by"]:
            sides = [side for one in own["worst"] or [] if one for side in one]
            shown |= {row for side in sides for row, _, _ in side}
        shown -= {5}  # the planted image that cannot be read again
        if not shown:
            assert stored is None
            continue
        rows, low, high, cells = stored
        assert rows == sorted(shown)
        assert (low, high) == ([-1.0] * len(rows), [neuron] * len(rows))
        found = np.frombuffer(base64.b64decode(cells), np.uint8).reshape(-1, 7, 7)
        expected = cells_of("conv_head", np.array(rows), np.full(len(rows), neuron))
        assert np.array_equal(found, expected)


def test_an_atlas_without_maps_says_so_and_has_none() -> None:
    files = built(planted(layers=(Layer("conv_head", 12),), pictures=False))
    assert value_of(files, "overview")["maps"] is None
    assert not any(path.startswith("data/maps/") for path in files)
