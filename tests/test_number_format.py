"""What a number format costs, on planted rounding."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.number_format import compare_formats, format_note


def test_the_column_that_agrees_least_is_told_with_its_neurons() -> None:
    rng = np.random.default_rng(0)
    full = {name: rng.standard_normal((64, 5)).astype(np.float16) for name in ("a", "b", "c")}
    noise = rng.standard_normal((64, 5))
    short = dict(full) | {"b": (full["b"] + 0.5 * noise).astype(np.float16)}
    short["b"] = short["b"][:48]  # fewer images
    trial = compare_formats("bfloat16", 3.0, short, full)
    known = [np.corrcoef(short["b"][:, k], full["b"][:48, k])[0, 1] for k in range(5)]
    assert trial is not None
    assert (trial.layer, trial.images) == ("b", 48)
    assert trial.median == pytest.approx(np.median(known), abs=1e-6)
    assert trial.least == pytest.approx(min(known), abs=1e-6)
    (said,) = format_note(trial)
    assert "3.0 times as fast" in said
    assert "dtype: float32" in said
    (said,) = format_note(compare_formats("bfloat16", 3.0, full, full))
    assert "dtype: float32" not in said


def test_neurons_that_never_vary_say_nothing() -> None:
    rng = np.random.default_rng(0)
    full = rng.standard_normal((8, 2)).astype(np.float16)
    full[:, 1] = 2
    trial = compare_formats("bfloat16", 1.0, {"a": full}, {"a": full})
    assert trial is not None
    assert trial.least == pytest.approx(1)
    assert compare_formats("bfloat16", 1.0, {"a": full[:, 1:]}, {"a": full[:, 1:]}) is None
    assert format_note(None) == []
