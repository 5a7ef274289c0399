"""Tapped activations against the same forward pass done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from actors.taps import LayerTap, plain_attention
from actors.targets import load_target
from core.errors import LayerError


def images(count: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.inference_mode():
        yield


def test_a_convolutional_layer_is_pooled_before_it_is_changed_in_place() -> None:
    module: Any = load_target("torchvision:resnet18", "random:0").module
    batch = images(3, 64)
    hidden = module.maxpool(F.relu(module.bn1(module.conv1(batch))))
    first = module.layer1[0]
    inner = F.relu(first.bn1(first.conv1(hidden)))
    residual = first.bn2(first.conv2(inner))
    wanted = {"layer1.0.bn2": ("avg", "max", "absmax"), "layer1.0": ("avg",), "fc": ("avg",)}
    with LayerTap(module, wanted) as tap:
        output = module(batch)
        found = tap.collect()
    assert list(found) == [(layer, how) for layer, hows in wanted.items() for how in hows]
    expected = {
        ("layer1.0.bn2", "avg"): residual.mean(dim=(2, 3)),
        ("layer1.0.bn2", "max"): residual.amax(dim=(2, 3)),
        ("layer1.0", "avg"): F.relu(residual + hidden).mean(dim=(2, 3)),
        ("fc", "avg"): output,
    }
    assert (residual.amax(dim=(2, 3)) > 0).any()
    assert (residual.mean(dim=(2, 3)) < 0).any()  # what the later in-place ReLU would hide
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    flat = residual.flatten(2)
    largest = flat.gather(2, flat.abs().argmax(dim=2, keepdim=True))[..., 0]
    torch.testing.assert_close(found["layer1.0.bn2", "absmax"], largest, rtol=1e-4, atol=1e-5)


def test_the_memory_layout_changes_nothing() -> None:
    module = load_target("torchvision:resnet18", "random:0").module
    batch = images(2, 64)
    with LayerTap(module, {"layer3": ("avg", "max")}) as tap:
        plain = tap.run(batch)
        module.to(memory_format=torch.channels_last)
        last = tap.run(batch.contiguous(memory_format=torch.channels_last))
    for key in plain:
        torch.testing.assert_close(last[key], plain[key], rtol=1e-4, atol=1e-5)


def test_two_dimensional_and_token_outputs_do_not_share_memory_with_the_network() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.line, self.act = (
                nn.Linear(4, 6),
                nn.Linear(6, 5),
                nn.ReLU(inplace=True),
            )

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.tokens(x)
            line = self.line(tokens[:, 0])
            tokens.zero_()
            result: Tensor = self.act(line)
            return result

    module, batch = Net().eval(), torch.randn(7, 3, 4)
    tokens = F.linear(batch, module.tokens.weight, module.tokens.bias)
    with LayerTap(module, {"tokens": ("first",), "line": ("avg",)}) as tap:
        found = tap.run(batch)
    torch.testing.assert_close(found["tokens", "first"], tokens[:, 0])
    line = F.linear(tokens[:, 0], module.line.weight, module.line.bias)
    assert (line < 0).any()
    torch.testing.assert_close(found["line", "avg"], line)


def test_tokens_of_a_vision_transformer_are_pooled_over_tokens() -> None:
    module: Any = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
    batch = images(2, 224)
    hidden = module.norm_pre(module.patch_drop(module._pos_embed(module.patch_embed(batch))))
    hidden = module.blocks[0](hidden)
    assert hidden.shape == (2, 197, 192)
    mlp = module.blocks[1].mlp
    middle = hidden + module.blocks[1].attn(module.blocks[1].norm1(hidden))
    fc1 = mlp.fc1(module.blocks[1].norm2(middle))
    wanted = {"blocks.0": ("first", "avg", "max"), "blocks.1.mlp.fc1": ("avg",)}
    with LayerTap(module, wanted) as tap:
        found = tap.run(batch)
        early = tap.run(batch, stop_early=True)
    for key, value in {
        ("blocks.0", "first"): hidden[:, 0],
        ("blocks.0", "avg"): hidden.mean(dim=1),
        ("blocks.0", "max"): hidden.amax(dim=1),
        ("blocks.1.mlp.fc1", "avg"): fc1.mean(dim=1),
    }.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(early[key], found[key])


def test_multi_head_attention_gives_its_first_output() -> None:
    module: Any = load_target("torchvision:vit_b_16", "random:0").module
    batch = images(1, 224)
    hidden = module._process_input(batch)
    hidden = torch.cat([module.class_token.expand(1, -1, -1), hidden], dim=1)
    block = module.encoder.layers[0]
    normal = block.ln_1(hidden + module.encoder.pos_embedding)
    expected, _ = block.self_attention(normal, normal, normal, need_weights=False)
    name = "encoder.layers.encoder_layer_0.self_attention"
    with LayerTap(module, {name: ("first", "avg")}) as tap:
        found = tap.run(batch, stop_early=True)
    torch.testing.assert_close(found[name, "first"], expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[name, "avg"], expected.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_channels_that_come_last_are_still_the_neurons() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.turn = nn.Linear(3, 5), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.turn(self.mix(x.permute(0, 2, 3, 1)))
            return result

    module, batch = Last().eval(), images(2, 8)
    expected = torch.einsum("nchw,kc->nk", batch, module.mix.weight) / 64 + module.mix.bias
    with LayerTap(module, {"mix": ("avg",), "turn": ("avg", "max")}) as tap:
        found = tap.run(batch)
    torch.testing.assert_close(found["mix", "avg"], expected)
    torch.testing.assert_close(found["turn", "avg"], expected)
    assert found["turn", "max"].shape == (2, 5)


class Operations(TorchDispatchMode):
    """Names of the operations that a network uses."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_network_uses_the_same_operations_whichever_layers_are_tapped() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    module = nn.Sequential(layer, nn.Identity()).eval()
    batch = torch.randn(5, 9, 32)

    def used(tapped: dict[str, tuple[str, ...]]) -> set[str]:
        with LayerTap(module, tapped) as tap, Operations() as operations:
            tap.run(batch)
        return operations.names - {"amax"}  # the pooling of the second layer

    few, more = {"1": ("avg",)}, {"1": ("avg",), "0.linear1": ("max",)}
    assert used(few) != used(more)  # PyTorch's fused transformer layer, which a hook turns off
    with plain_attention():
        assert used(few) == used(more)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_layer_that_runs_twice_is_refused() -> None:
    module = load_target("torchvision:resnet18", "random:0").module
    with (
        LayerTap(module, {"layer1.0.relu": ("avg",)}) as tap,
        pytest.raises(LayerError, match=r"'layer1\.0\.relu' runs more than once"),
    ):
        tap.run(images(1, 64))


def test_a_layer_that_does_not_run_is_refused() -> None:
    module = timm.create_model("test_vit").eval()
    with (
        LayerTap(module, {"blocks.0.attn.attn_drop": ("avg",), "blocks.1": ("avg",)}) as tap,
        pytest.raises(LayerError, match="attn_drop' did not run"),
    ):
        tap.run(images(1, 160))


def test_an_unknown_layer_is_refused_before_anything_runs() -> None:
    module = load_target("torchvision:resnet18", "random:0").module
    with pytest.raises(LayerError, match="ResNet has no layer 'layer5'; close names: 'layer4'"):
        LayerTap(module, {"layer5": ("avg",)})


def test_leaving_removes_every_hook_even_after_a_failure() -> None:
    module = load_target("torchvision:resnet18", "random:0").module
    with pytest.raises(LayerError), LayerTap(module, {"layer1": ("first",)}) as tap:
        tap.run(images(1, 64))
    with LayerTap(module, {"layer1": ("avg",)}) as tap:
        tap.run(images(1, 64))
    assert not any(part._forward_hooks for part in module.modules())


def test_an_early_stop_spares_the_rest_of_the_network() -> None:
    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("this layer is not needed")

    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Loud())
    with LayerTap(module, {"0": ("avg",), "1": ("max",)}) as tap:
        assert sorted(tap.run(images(2, 8), stop_early=True)) == [("0", "avg"), ("1", "max")]
        with pytest.raises(AssertionError):
            tap.run(images(2, 8))


def test_bfloat16_outputs_are_pooled_in_float32() -> None:
    module = nn.Sequential(nn.Identity()).to(torch.bfloat16)
    batch = torch.full((2, 3, 40, 40), 1.0, dtype=torch.bfloat16)
    batch[:, :, 0, 0] = 1.0078125  # the next number above 1 in bfloat16
    with LayerTap(module, {"0": ("avg",)}) as tap:
        found = tap.run(batch)["0", "avg"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((2, 3), 1 + 0.0078125 / 1600), rtol=1e-7, atol=0)
