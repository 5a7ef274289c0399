"""Pooling: one float32 number per image and neuron."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import LayerError
from core.pooling import POOLINGS, pool, poolings_for


def spatial(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 7, 6, 4, generator=generator).to(dtype)


def tokens() -> torch.Tensor:
    return torch.randn(5, 9, 7, generator=torch.Generator().manual_seed(1))


def plainly(values: list[float], pooling: str) -> float:
    """The pooling of one neuron's values, in words of one syllable."""
    if pooling == "avg":
        return sum(values) / len(values)
    if pooling == "max":
        return sorted(values)[-1]
    if pooling == "first":
        return values[0]
    return sorted(values, key=abs)[-1]


@pytest.mark.parametrize("pooling", ["avg", "max", "absmax"])
def test_spatial_outputs_are_pooled_over_height_and_width(pooling: str) -> None:
    output = spatial()
    found = pool(output, pooling)
    assert found.shape == (5, 7)
    for image in range(5):
        for neuron in range(7):
            expected = plainly(output[image, neuron].flatten().tolist(), pooling)
            assert found[image, neuron].item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_token_outputs_are_pooled_over_tokens(pooling: str) -> None:
    output = tokens()
    found = pool(output, pooling)
    assert found.shape == (5, 7)
    for image in range(5):
        for neuron in range(7):
            expected = plainly(output[image, :, neuron].tolist(), pooling)
            assert found[image, neuron].item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_absmax_keeps_the_sign() -> None:
    output = torch.tensor([[1.0, -3.0, 2.0]]).reshape(1, 1, 1, 3)
    assert pool(output, "absmax").item() == -3.0


def test_flat_outputs_are_taken_as_they_are_by_avg_only() -> None:
    output = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(pool(output, "avg"), output)
    for pooling in ("max", "absmax", "first"):
        with pytest.raises(LayerError, match="nothing to pool"):
            pool(output, pooling)


def test_means_of_bfloat16_outputs_are_accumulated_in_float32() -> None:
    output = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) + 1).bfloat16()
    found = pool(output, "avg")
    exact = output.double().numpy().mean(axis=(2, 3))
    assert found.dtype == torch.float32
    # Sums in bfloat16 would be wrong in the third digit.
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-6)


@pytest.mark.parametrize("pooling", ["avg", "max", "absmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_is_pooled_to_the_same_bits_in_any_batch_and_memory_format(
    pooling: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(4)
    output = torch.randn(33, 40, 13, 11, generator=generator).to(dtype)
    whole = pool(output, pooling)
    assert torch.equal(pool(output.to(memory_format=torch.channels_last), pooling), whole)
    for image in (0, 17, 32):
        assert torch.equal(pool(output[image : image + 1], pooling)[0], whole[image])


def test_every_pooling_that_is_offered_for_a_shape_works_and_no_other() -> None:
    for shape in [(2, 3, 4, 5), (2, 3, 4), (2, 3)]:
        output = torch.zeros(shape)
        for pooling in POOLINGS:
            if pooling in poolings_for(shape):
                assert pool(output, pooling).shape[0] == 2
            else:
                with pytest.raises(LayerError, match="does not fit"):
                    pool(output, pooling)


def test_an_output_of_unknown_layout_is_refused() -> None:
    assert poolings_for((2, 3, 4, 5, 6)) == ()
    with pytest.raises(LayerError, match="cannot be pooled"):
        pool(torch.zeros(2, 3, 4, 5, 6), "avg")
    with pytest.raises(LayerError, match="unknown pooling 'mean'"):
        pool(torch.zeros(2, 3), "mean")
