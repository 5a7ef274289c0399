"""Values of the atlas's shards: escaping, rounding, typed columns."""

from __future__ import annotations

import base64
import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.atlas.encode import (
    column,
    correlation_column,
    correlations,
    half_precision,
    plain,
    script,
    significant,
    smallest_unsigned,
    to_json,
    weight_kind,
)


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_plain_ascii_without_markup_and_reads_back(value: object) -> None:
    text = to_json(value)
    assert text.isascii()
    assert not set(text) & set("<>&\n\u2028")
    assert json.loads(text) == value


def test_json_refuses_values_that_a_browser_could_not_read() -> None:
    for value in (float("nan"), float("inf"), [1.0, float("-inf")]):
        with pytest.raises(ValueError, match="Out of range"):
            to_json(value)


def test_a_shard_is_one_call_that_holds_its_key_and_value() -> None:
    text = script("neurons/0/1", {"a": "</script>"}).decode("ascii")
    assert text.startswith('atlas.put("neurons/0/1",')
    assert text.endswith(");\n")
    assert "</" not in text


@given(st.floats(1e-280, 1e280), st.sampled_from([-1, 1]))
def test_significant_rounding_keeps_five_digits(size: float, sign: int) -> None:
    value = size * sign
    (rounded,) = significant(np.array([value]))
    assert rounded is not None
    assert abs(rounded - value) <= 0.5000001e-4 * abs(value)
    if 1e-15 < size < 1e15:
        assert len(Decimal(repr(rounded)).normalize().as_tuple().digits) <= 5


def test_values_that_are_not_finite_become_null() -> None:
    values = np.array([np.nan, 1.0, np.inf, -0.0])
    assert significant(values) == [None, 1.0, None, 0.0]
    assert correlations(values[:2]) == [None, 1.0]
    assert plain({"a": [float("nan"), np.float32(0.5), {"x"}]}) == {"a": [None, 0.5, ["x"]]}


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i2", "f2", "f4"])
def test_typed_columns_read_back_exactly(kind: str) -> None:
    values = np.array([0, 1, 77, 200])
    stored = column(values, kind)
    read = np.frombuffer(base64.b64decode(stored["data"]), dtype=np.dtype(kind).newbyteorder("<"))
    assert stored["type"] == kind
    assert np.array_equal(read, values)


def test_correlation_columns_keep_four_places_and_mark_missing_ones() -> None:
    values = np.array([0.12344, -1.0, 1.0, np.nan])
    read = np.frombuffer(base64.b64decode(correlation_column(values)["data"]), dtype="<i2")
    assert read.tolist() == [1234, -10000, 10000, -32768]


def test_half_precision_text_holds_the_very_bits() -> None:
    values = np.array([0.1, -65504, 6e-8, 0], np.float16)
    read = np.frombuffer(base64.b64decode(half_precision(values)), "<f2")
    assert read.tobytes() == values.tobytes()


def test_columns_use_the_narrowest_kind_that_loses_nothing() -> None:
    assert [smallest_unsigned(n) for n in (255, 256, 65535, 65536)] == ["u1", "u2", "u2", "u4"]
    assert weight_kind(np.array([1.5, -300.0, 0.0])) == "f2"
    assert weight_kind(np.array([1.5, 70000.0])) == "f4"
    assert weight_kind(np.array([1.5, 1e-6])) == "f4"
    assert weight_kind(np.array([])) == "f2"
