"""How values are written into the atlas's ``.js`` shards.

A page that is opened from disk may not fetch files, but it may add ``<script>`` elements. So a
shard is a script of one call, ``atlas.put(key, value)``, and the value is JSON in plain ASCII.

Rounding, declared once for the whole atlas:

* correlations and shares: ``CORRELATION_PLACES`` decimal places;
* weights, biases and statistics of activations: ``SIGNIFICANT_DIGITS`` significant digits;
* activations: the exact float16 that the run recorded; concept scores: float16.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence, Set

import numpy as np

CORRELATION_PLACES = 4
SIGNIFICANT_DIGITS = 5

_TYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "i2": np.int16, "f4": np.float32}
_TYPES_AND_HALF = {**_TYPES, "f2": np.float16}


def to_json(value: object) -> str:
    """JSON that is safe inside a script, an HTML attribute and any encoding: plain ASCII.

    ``<``, ``>`` and ``&`` are written as escapes, so no text can end a script element; line
    separators (U+2028, U+2029) and all else beyond ASCII are escaped by the JSON writer.

    Raises:
        ValueError: The value holds NaN or an infinity; write those as None.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script(key: str, value: object) -> bytes:
    """One shard: a script that hands ``value`` to the page under ``key``."""
    return f"atlas.put({to_json(key)},{to_json(value)});\n".encode("ascii")


def column(values: np.ndarray, kind: str) -> dict[str, str]:
    """A typed array as little-endian bytes in base64.

    Args:
        values: Any shape; stored flat, in C order.
        kind: ``u1``, ``u2``, ``u4``, ``i2``, ``f2`` or ``f4``.
    """
    dtype = np.dtype(_TYPES_AND_HALF[kind]).newbyteorder("<")
    return {"type": kind, "data": base64.b64encode(values.astype(dtype).tobytes()).decode("ascii")}


def half_precision(values: np.ndarray) -> str:
    """float16 values as base64 text, for a shard that says elsewhere what they are."""
    return base64.b64encode(values.astype("<f2").tobytes()).decode("ascii")


def correlation_column(values: np.ndarray) -> dict[str, str]:
    """Correlations as 16-bit integers of 1/10,000; undefined ones as -32,768."""
    scaled = np.round(values * 10**CORRELATION_PLACES)
    return column(np.where(np.isfinite(scaled), scaled, -32768.0), "i2")


def smallest_unsigned(largest: int) -> str:
    """The narrowest unsigned kind of `column` that holds ``largest``."""
    return "u1" if largest < 1 << 8 else "u2" if largest < 1 << 16 else "u4"


def weight_kind(weights: np.ndarray) -> str:
    """``f2`` where every weight keeps three digits in half precision, otherwise ``f4``."""
    sizes = np.abs(weights[weights != 0.0])
    fits = sizes.size == 0 or (sizes.max() < 65504.0 and sizes.min() > 6.2e-5)
    return "f2" if fits else "f4"


def significant(values: np.ndarray, digits: int = SIGNIFICANT_DIGITS) -> list[float | None]:
    """Values rounded to so many significant digits; not-finite ones become None."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    finite = np.isfinite(flat)
    safe = np.where(finite & (flat != 0.0), flat, 1.0)
    exponent = digits - 1 - np.floor(np.log10(np.abs(safe))).astype(np.int64)
    # Dividing by an exact power of ten gives the float nearest to the short decimal, so JSON
    # writes few digits. Beyond 1e22 powers are not exact and a few more digits are harmless.
    up = 10.0 ** np.clip(exponent, 0, 300)
    down = 10.0 ** np.clip(-exponent, 0, 300)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.round(safe * up / down) / up * down
    result = np.where(finite, np.where(flat == 0.0, 0.0, rounded), np.nan)
    return _with_none(result, finite)


def correlations(values: np.ndarray) -> list[float | None]:
    """Correlations rounded to the declared places; not-finite ones become None."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return _with_none(np.round(flat, CORRELATION_PLACES) + 0.0, np.isfinite(flat))


def ten_thousandths(values: np.ndarray) -> list[int | None]:
    """Correlations and shares as whole numbers of 1/10,000, a third shorter; None if not finite."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    finite = np.isfinite(flat)
    scaled = np.round(np.where(finite, flat, 0.0) * 10**CORRELATION_PLACES).astype(np.int64)
    return [one if there else None for one, there in zip(scaled.tolist(), finite, strict=True)]


def plain(value: object) -> object:
    """Any Python value as JSON can hold it: mappings, lists, numbers, text; the rest as text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, int):
        # Integers beyond 2**53 change when a browser reads them as numbers.
        return value if abs(value) <= 1 << 53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Set):
        return sorted(str(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item) for item in value]
    return str(value)


def _with_none(values: np.ndarray, finite: np.ndarray) -> list[float | None]:
    listed: list[float | None] = values.tolist()
    if not finite.all():
        for place in np.flatnonzero(~finite).tolist():
            listed[place] = None
    return listed
