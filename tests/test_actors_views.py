"""Views against the whole preprocessing of timm, open_clip and torchvision, on real photographs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip import image_transform
from PIL import Image
from timm.data import create_transform
from torchvision import transforms as tv
from torchvision.models import get_model_weights
from torchvision.transforms import v2

from actors.decode import decode
from actors.fingerprint import state_fingerprint
from actors.preprocessing import split_transform
from actors.targets import load_target
from core.errors import ModelError, UnreadableImage

ROOT = Path(__file__).resolve().parents[1]
GREY = ((0.5,) * 3, (0.5,) * 3)


def timm_eval(size: int, crop_pct: float, interpolation: str = "bicubic", **options: Any) -> Any:
    return create_transform(
        (3, size, size), interpolation=interpolation, crop_pct=crop_pct, **options
    )


SPLIT = {
    "timm centre": timm_eval(224, 0.875),
    "timm bilinear": timm_eval(224, 0.9, "bilinear"),
    "timm squash": timm_eval(224, 0.9, crop_mode="squash"),
    "timm border": timm_eval(160, 1.0, crop_mode="border"),
    "open_clip shortest": image_transform(224, is_train=False, mean=GREY[0], std=GREY[1]),
    "open_clip longest": image_transform(224, is_train=False, resize_mode="longest"),
    "open_clip squash": image_transform(256, is_train=False, resize_mode="squash"),
    "torchvision resnet": get_model_weights("resnet18").DEFAULT.transforms(),
    "torchvision vit_h": get_model_weights("vit_h_14").DEFAULT.transforms(),
    "hand made": tv.Compose([tv.Resize(70), tv.CenterCrop(64), tv.ToTensor()]),
    "padded crop": tv.Compose([tv.Resize(50), tv.CenterCrop((64, 80)), tv.ToTensor()]),
}


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[Image.Image]:
    """Photographs of several sizes and shapes, grey ones and thin strips among them."""
    folders = sorted((shared / "data" / "imagenet-sample").iterdir())[::125]
    images = [decode(next(folder.iterdir()).read_bytes()) for folder in folders]
    with tarfile.open(shared / "data" / "tiny-imagenet" / "tiny-imagenet-000.tar") as archive:
        members = [member for member in archive.getmembers() if member.name.endswith(".jpg")][:200]
        for member in members[::50]:
            file = archive.extractfile(member)
            assert file is not None
            images.append(decode(file.read()))
    images += [images[0].convert("L").convert("RGB"), images[1].crop((0, 0, 201, 33))]
    images += [
        images[2].crop((0, 0, 41, 256)),
        images[3].resize((777, 501)),
        images[4].resize((3, 5)),
    ]
    return images


@pytest.mark.parametrize("name", SPLIT)
def test_split_preprocessing_equals_the_authors_on_photographs(
    name: str, photographs: list[Image.Image]
) -> None:
    whole, split = SPLIT[name], split_transform(SPLIT[name])
    assert not split.view.whole
    arrays = [split.view.apply(image) for image in photographs]
    assert {array.dtype for array in arrays} == {np.dtype(np.uint8)}
    found = split.normalise(torch.from_numpy(np.stack(arrays)))
    expected = torch.stack([whole(image) for image in photographs])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_equal_geometry_has_one_key_whichever_library_says_it() -> None:
    from torchvision.transforms._presets import ImageClassification

    mode = tv.InterpolationMode.BICUBIC
    same = [
        timm_eval(224, 1.0),
        image_transform(224, is_train=False, mean=GREY[0], std=GREY[1]),
        ImageClassification(crop_size=224, resize_size=224, interpolation=mode),
        tv.Compose([tv.Resize([224], mode), tv.CenterCrop((224, 224)), tv.ToTensor()]),
    ]
    parts = [split_transform(one) for one in same]
    assert {part.view.key for part in parts} == {"resize(224,bicubic)+crop(224x224)"}
    assert len({part.key for part in parts}) == 4 - 1  # two of them share mean and std too
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 300, 3), dtype=np.uint8))
    arrays = [part.view.apply(image) for part in parts]
    for array in arrays[1:]:
        np.testing.assert_array_equal(array, arrays[0])


def test_different_geometry_has_different_keys() -> None:
    keys = [split_transform(transform).view.key for transform in SPLIT.values()]
    assert len(set(keys)) == len(keys)
    mean = timm_eval(224, 0.875, mean=(0.1, 0.2, 0.3))
    assert split_transform(mean).view.key == split_transform(SPLIT["timm centre"]).view.key
    assert split_transform(mean).key != split_transform(SPLIT["timm centre"]).key


def invert(tensor: torch.Tensor) -> torch.Tensor:
    return 1 - tensor


def unsplittable(shift: float) -> tv.Compose:
    steps = [tv.Resize((40, 40)), tv.ToTensor(), tv.Lambda(lambda image: image * 2 + shift)]
    return tv.Compose(steps)


@pytest.mark.parametrize(
    "transform",
    [
        unsplittable(0.5),
        tv.Compose([tv.Resize((40, 40)), tv.ToTensor(), invert]),
        tv.Compose([tv.ToTensor(), tv.Resize((40, 40), antialias=True)]),
        v2.Compose([v2.ToImage(), v2.Resize((40, 40)), v2.ToDtype(torch.float32, scale=True)]),
        lambda image: torch.from_numpy(np.asarray(image.resize((9, 9))) / np.float32(7)).permute(
            2, 0, 1
        ),
    ],
)
def test_other_preprocessing_is_kept_whole_and_passes_through(
    transform: Any, photographs: list[Image.Image]
) -> None:
    parts = split_transform(transform)
    assert parts.view.whole
    for image in photographs[:3]:
        array = parts.view.apply(image)
        assert array.dtype == np.float32
        found = parts.normalise(torch.from_numpy(array)[None])[0]
        assert torch.equal(found, torch.as_tensor(transform(image)))


def test_a_subclass_that_changes_a_step_is_kept_whole() -> None:
    class Resize(tv.Resize):  # the name of a step that could be split, doing something else
        def forward(self, img: Any) -> Any:
            return super().forward(img).transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    parts = split_transform(tv.Compose([Resize((32, 32)), tv.ToTensor()]))
    assert parts.view.whole


def test_the_key_of_whole_preprocessing_follows_its_settings_and_code() -> None:
    keys = [split_transform(unsplittable(shift)).view.key for shift in (0.5, 0.5, 0.25)]
    assert keys[0] == keys[1] != keys[2]
    double = split_transform(lambda image: tv.ToTensor()(image.resize((8, 8))) * 2).view.key
    triple = split_transform(lambda image: tv.ToTensor()(image.resize((8, 8))) * 3).view.key
    assert double != triple


PROGRAM = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_actors_views
print(json.dumps(test_actors_views.names_of_content()))
"""


def names_of_content() -> list[str]:
    """Keys of preprocessing and the fingerprint of a network, as one process sees them."""
    whole, border = split_transform(unsplittable(0.5)), split_transform(SPLIT["timm border"])
    network = load_target("timm:test_vit", "random:0").module
    return [whole.key, border.key, state_fingerprint(network)]


def test_keys_and_fingerprints_are_the_same_in_another_process() -> None:
    program = PROGRAM.format(root=str(ROOT), tests=str(ROOT / "tests"))
    environment = os.environ | {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == names_of_content()


def test_views_survive_pickling(photographs: list[Image.Image]) -> None:
    for name in SPLIT:
        view = split_transform(SPLIT[name]).view
        copy = pickle.loads(pickle.dumps(view))
        assert copy == view
        np.testing.assert_array_equal(copy.apply(photographs[0]), view.apply(photographs[0]))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (tv.Compose([tv.Resize(40), tv.ToTensor()]), "different sizes.*centre crop"),
        (tv.Compose([tv.RandomCrop(64), tv.ToTensor()]), "random"),
        (tv.Compose([tv.Resize((40, 40))]), "gives Image, expected a float32 tensor"),
        (tv.Compose([tv.Resize((40, 40)), tv.PILToTensor()]), "gives torch.uint8 .3, 40, 40."),
        (tv.Compose([tv.Grayscale(), tv.Resize((40, 40)), tv.ToTensor()]), r"\(1, 40, 40\)"),
        (tv.Compose([tv.Normalize(0.5, 0.5)]), "fails on an RGB image: TypeError"),
    ],
)
def test_preprocessing_that_cannot_serve_is_refused(transform: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        split_transform(transform)


def test_an_endless_strip_is_refused_before_it_fills_the_memory() -> None:
    view = split_transform(SPLIT["timm centre"]).view
    with pytest.raises(UnreadableImage, match="too elongated"):
        view.apply(Image.new("RGB", (60_000, 2)))
    assert view.apply(Image.new("RGB", (2_000, 20))).shape == (224, 224, 3)


def test_a_failure_on_one_image_becomes_its_reason() -> None:
    def picky(image: Image.Image) -> torch.Tensor:
        if image.width == 7:
            raise ZeroDivisionError
        return torch.zeros(3, 8, 8)

    view = split_transform(picky).view
    with pytest.raises(UnreadableImage, match="preprocessing failed: ZeroDivisionError"):
        view.apply(Image.new("RGB", (7, 9)))
