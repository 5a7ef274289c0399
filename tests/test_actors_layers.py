"""Patterns, descriptions and refusals, on real networks."""

from __future__ import annotations

import fnmatch

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from actors.layers import (
    LayerInfo,
    assign_poolings,
    check_layers,
    describe_layers,
    match_layers,
)
from actors.targets import load_target
from core.errors import LayerError

NAMES = [
    "stem",
    "blocks",
    "blocks.0",
    "blocks.0.conv",
    "blocks.1",
    "blocks.1.conv",
    "blocks.10",
    "head",
]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["head", "stem"], ["stem", "head"]),
        (["blocks.*"], ["blocks.0", "blocks.1", "blocks.10"]),
        (["blocks.?"], ["blocks.0", "blocks.1"]),
        (["blocks.[1-9]"], ["blocks.1"]),
        (["blocks.[!1]"], ["blocks.0"]),
        (["*"], ["stem", "blocks", "head"]),
        (["**"], NAMES),
        (["**.conv"], ["blocks.0.conv", "blocks.1.conv"]),
        (["blocks.**"], ["blocks.0", "blocks.0.conv", "blocks.1", "blocks.1.conv", "blocks.10"]),
        (["blocks.*.conv", "blocks.0.*"], ["blocks.0.conv", "blocks.1.conv"]),
        (["**", "!blocks**"], ["stem", "head"]),
    ],
)
def test_patterns_choose_layers_in_the_order_of_the_network(
    patterns: list[str], expected: list[str]
) -> None:
    assert match_layers(NAMES, patterns) == expected


@given(
    names=st.lists(
        st.lists(st.text("ab.1", min_size=1, max_size=3), min_size=1, max_size=4).map(".".join),
        unique=True,
    ),
    parts=st.lists(st.text("ab1*?", min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_one_star_never_crosses_a_dot(names: list[str], parts: list[str]) -> None:
    pattern = ".".join(part.replace("**", "*").replace("**", "*") for part in parts)

    def fits(name: str) -> bool:  # part by part, so that nothing can cross a dot
        pieces, wanted = name.split("."), pattern.split(".")
        return len(pieces) == len(wanted) and all(map(fnmatch.fnmatchcase, pieces, wanted))

    expected = [name for name in names if fits(name)]
    if expected:
        assert match_layers(names, [pattern]) == expected
    else:
        with pytest.raises(LayerError):
            match_layers(names, [pattern])


def test_a_pattern_without_a_layer_is_refused_with_close_names() -> None:
    with pytest.raises(LayerError, match=r"no layer matches 'block\.0'; close names: 'blocks\.0'"):
        match_layers(NAMES, ["stem", "block.0"])
    with pytest.raises(LayerError, match="leave no layer"):
        match_layers(NAMES, ["stem", "!stem"])
    with pytest.raises(LayerError, match="no layer matches"):
        match_layers(NAMES, ["stem+"])  # a name is looked up, not read as a regular expression


def test_poolings_are_given_to_all_layers_or_by_the_last_pattern() -> None:
    assert assign_poolings(["a", "b.c"], ["avg", "max", "avg"]) == dict.fromkeys(
        ["a", "b.c"], ("avg", "max")
    )
    by_pattern = {"**": ["avg"], "b.*": ["max"]}
    assert assign_poolings(["a", "b.c"], by_pattern) == {"a": ("avg",), "b.c": ("max",)}
    with pytest.raises(LayerError, match=r"unknown pooling 'mxa'; close names: .*'max'"):
        assign_poolings(["a"], ["mxa"])
    with pytest.raises(LayerError, match=r"layer 'b\.c' has no pooling"):
        assign_poolings(["a", "b.c"], {"a": ["avg"]})
    with pytest.raises(LayerError, match="no layer matches 'z'"):
        assign_poolings(["a"], {"z": ["avg"]})


def by_name(infos: list[LayerInfo]) -> dict[str, LayerInfo]:
    return {info.name: info for info in infos}


@pytest.fixture(scope="module")
def resnet() -> list[LayerInfo]:
    return describe_layers(load_target("torchvision:resnet18", "random:0").module, 64)


def test_a_description_tells_kind_shape_neurons_and_calls(resnet: list[LayerInfo]) -> None:
    found = by_name(resnet)
    assert found["layer4"] == LayerInfo("layer4", "Sequential", (512, 2, 2), 512, 1)
    assert found["conv1"] == LayerInfo("conv1", "Conv2d", (64, 32, 32), 64, 1)
    assert found["fc"] == LayerInfo("fc", "Linear", (1000,), 1000, 1)
    assert found["layer2.0.relu"].calls == 2
    assert found["layer2.0.relu"].neurons == 0
    module = load_target("torchvision:resnet18", "random:0").module
    assert [info.name for info in resnet] == [name for name, _ in module.named_modules() if name]


def test_a_description_costs_no_arithmetic_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = timm.create_model("vit_large_patch16_384").eval()
    found = by_name(describe_layers(module, 384))
    assert found["blocks.23.mlp.fc1"] == LayerInfo(
        "blocks.23.mlp.fc1", "Linear", (577, 4096), 4096, 1
    )


def test_all_faults_of_a_choice_are_refused_before_any_work(resnet: list[LayerInfo]) -> None:
    with pytest.raises(LayerError) as caught:
        check_layers(resnet, {"layer2.0.relu": ["avg"], "layer4": ["first"], "fc": ["max"]})
    message = str(caught.value)
    assert "layer 'layer2.0.relu' (ReLU) cannot be recorded: it runs 2 times" in message
    assert "pooling 'first' does not fit layer 'layer4'" in message
    assert "use avg or max or absmax" in message
    assert (
        "pooling 'max' does not fit layer 'fc', whose output is (1000,) per image; use avg"
        in message
    )


def test_a_good_choice_is_resolved_in_the_order_of_the_network(resnet: list[LayerInfo]) -> None:
    wanted = {"fc": ["avg"], "layer[1-4]": ["avg"], "layer4": ["max"]}
    assert list(check_layers(resnet, wanted).items()) == [
        ("layer1", ("avg",)),
        ("layer2", ("avg",)),
        ("layer3", ("avg",)),
        ("layer4", ("avg", "max")),
        ("fc", ("avg",)),
    ]
    with pytest.raises(LayerError, match="no layer matches 'layer5'; close names: 'layer4'"):
        check_layers(resnet, {"layer5": ["avg"]})


def test_layers_of_a_vision_transformer_are_described_by_tokens() -> None:
    found = by_name(describe_layers(timm.create_model("test_vit").eval(), 160))
    assert found["blocks.0"].shape == (101, 64)
    assert found["blocks.0"].neurons == 64
    assert found["blocks.0.attn.attn_drop"].reason == "it never runs in a forward pass"
    with pytest.raises(LayerError, match=r"attn_drop' .Dropout. cannot be recorded: it never runs"):
        check_layers(list(found.values()), {"blocks.0.attn.*": ["avg"]})


def test_multi_head_attention_is_known_by_its_first_output() -> None:
    module = load_target("torchvision:vit_b_16", "random:0").module
    found = by_name(describe_layers(module, 224))
    attention = found["encoder.layers.encoder_layer_0.self_attention"]
    assert (attention.kind, attention.shape, attention.neurons) == (
        "MultiheadAttention",
        (197, 768),
        768,
    )
    # Its projection is used without being called, so that nothing could be recorded there.
    assert found["encoder.layers.encoder_layer_0.self_attention.out_proj"].calls == 0


class Odd(nn.Module):
    """Layers whose outputs cannot be recorded, or are easily misread."""

    class Table(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x}

    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).reshape(len(x) * 4, -1, 3)

    class Volume(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, None]

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1).contiguous()

    def __init__(self) -> None:
        super().__init__()
        self.table, self.windows, self.volume = self.Table(), self.Windows(), self.Volume()
        self.last, self.unused, self.linear = self.Last(), nn.Identity(), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.table(x)
        self.windows(x)
        self.volume(x)
        result: Tensor = self.linear(self.last(x))
        return result


def test_outputs_of_other_kinds_have_no_neurons_and_a_reason() -> None:
    found = by_name(describe_layers(Odd(), 8))
    assert found["table"].reason == "it gives dict, not a tensor"
    assert found["windows"].reason == "its output begins with 8 rows for 2 images"
    assert found["volume"].reason == "its output has 5 axes, expected 2, 3 or 4"
    assert found["unused"].reason == "it never runs in a forward pass"
    assert {name: info.neurons for name, info in found.items() if info.neurons} == {
        "last": 3,
        "linear": 8,
    }


def test_channels_are_found_where_a_network_keeps_them_last() -> None:
    options = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 1)}
    module = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, **options).eval()
    found = by_name(describe_layers(module, 56))
    assert (found["layers.0"].shape, found["layers.0"].neurons) == ((14, 14, 12), 12)
    assert found["layers.1.blocks.0.mlp.fc1"].neurons == 96
    # Attention inside windows has several rows an image.
    assert "rows for 2 images" in found["layers.0.blocks.0.attn"].reason


def test_images_that_the_network_cannot_take_are_refused() -> None:
    with pytest.raises(LayerError, match=r"does not run on a batch of shape \(2, 3, 100, 100\)"):
        describe_layers(timm.create_model("test_vit").eval(), 100)


def test_describing_leaves_no_hook_behind(resnet: list[LayerInfo]) -> None:
    module = Odd()
    describe_layers(module, 8)
    with pytest.raises(LayerError):
        describe_layers(nn.Sequential(module, nn.Linear(2, 2)), 8)
    assert not any(part._forward_hooks for part in module.modules())
