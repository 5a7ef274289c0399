"""Two runs compared, as a page: which neurons changed meaning, by how much, with links into both atlases.

The folder is as free of servers as an atlas. ``data/compare.js`` holds the one shard ``compare``:

* ``places`` and ``links``: where the runs are, and the addresses of their atlases seen from the page, or
  null; ``settings``: keys of run.yaml that differ, with both values; ``missing`` and ``unread``: notes;
* ``groups``: ``[layer, pooling, explainer, counts of the changes, mean similarity]``, and ``scores``:
  ``[group, simulator, neurons, mean in A, mean in B, mean change, low, high, neurons whose own two
  intervals do not overlap]``;
* columns over the neurons (see `pipeline.atlas.encode.column`): ``group``, ``neuron``, ``change`` (index
  into ``changes``), ``similarity``, ``agreement`` and, for each of ``simulators``, both ``correlations``;
  ``sides``: for A and B ``status`` (index into ``statuses``), ``length``, ``term`` (index into
  ``concepts``), ``weight`` and ``bias``.
"""

from __future__ import annotations

import hashlib
import os.path
import posixpath
from importlib import resources
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pyarrow as pa

from core.comparison import paired_difference
from pipeline.atlas.build import STYLE, Write, page_of
from pipeline.atlas.catalogue import STATUSES
from pipeline.atlas.encode import (
    column,
    correlation_column,
    script,
    smallest_unsigned,
    weight_kind,
)
from pipeline.diff import CHANGES, SAME, Diff

FORMAT = 1
"""Version of the shard; the page refuses others."""

SCRIPTS = ("store.js", "format.js", "dom.js", "equation.js", "compare.js")


def build_comparison(diff: Diff, out: str, write: Write) -> None:
    """Write the page of a comparison.

    Args:
        diff: Of two runs.
        out: Where the page will be, a path or URL: links into the atlases are relative to it where
            they can be, so that runs and page may move together.
        write: Stores one file: a path relative to the page's folder and its bytes.
    """
    digest = hashlib.blake2b(digest_size=8)

    def put(path: str, content: bytes) -> None:
        digest.update(path.encode() + b"\0" + content)
        write(path, content)

    put("data/compare.js", script("compare", comparison_shard(diff, out)))
    assets = resources.files("pipeline.atlas") / "assets"
    for name in (STYLE, *SCRIPTS):
        put(f"assets/{name}", (assets / name).read_bytes())
    put("index.html", page_of("compare.html", "What changed", SCRIPTS, digest.hexdigest()))


def comparison_shard(diff: Diff, out: str) -> dict[str, object]:
    """The value of the shard ``compare``."""
    table = diff.table
    keys = list(
        zip(*(table[n].to_pylist() for n in ("layer", "pooling", "explainer")), strict=True)
    )
    names = list(dict.fromkeys(keys))
    group = np.array([names.index(key) for key in keys], np.int64)
    change = np.array([CHANGES.index(one) for one in table["change"].to_pylist()], np.int64)
    similarity, agreement = _floats(table["similarity"]), _floats(table["agreement"])
    concepts: dict[str, int] = {}
    scores = []
    for place in range(len(names)):
        inside = group == place
        for number, simulator in enumerate(diff.simulators):
            a, b = (_floats(table[f"correlation_{run}.{simulator}"])[inside] for run in "ab")
            gap = paired_difference(b, a).difference
            if not gap.count:
                continue
            both = np.isfinite(a) & np.isfinite(b)
            overlap = np.array(table[f"intervals_overlap.{simulator}"].to_pylist(), object)[inside]
            means = [a[both].mean(), b[both].mean(), gap.mean, gap.low, gap.high]
            apart = sum(one is False for one in overlap)
            scores.append([place, number, gap.count, *map(_short, means), apart])
    return {
        "format": FORMAT,
        "same": SAME,
        "places": list(diff.places),
        "links": [atlas_link(place, out) for place in diff.places],
        "settings": [list(one) for one in diff.settings],
        "missing": diff.missing,
        "unread": [[name, why] for name, why in diff.unread.items()],
        "changes": list(CHANGES),
        "statuses": list(STATUSES),
        "simulators": diff.simulators,
        "groups": [
            [
                *name,
                np.bincount(change[group == place], minlength=len(CHANGES)).tolist(),
                _short(_mean(similarity[group == place])),
            ]
            for place, name in enumerate(names)
        ],
        "scores": scores,
        "group": column(group, "u2"),
        "neuron": column(np.array(table["neuron"].to_pylist(), np.int64), "u4"),
        "change": column(change, "u1"),
        "similarity": correlation_column(similarity),
        "agreement": correlation_column(agreement),
        "correlations": [
            [correlation_column(_floats(table[f"correlation_{run}.{name}"])) for run in "ab"]
            for name in diff.simulators
        ],
        "sides": [_side(table, run, concepts) for run in "ab"],
        "concepts": list(concepts),
    }


def atlas_link(place: str, out: str) -> str | None:
    """The address of a run's atlas as seen from a page.

    Args:
        place: The run's folder, a path or URL.
        out: The page's folder, a path or URL.

    Returns:
        Relative where both are on one disk or in one bucket; the run's own address where it is on the
        web; None where a browser cannot get from one to the other.
    """
    here, there = urlsplit(out), urlsplit(place)
    if "://" not in place and "://" not in out:
        target = os.path.relpath(Path(place) / "atlas/index.html", out)
        return quote(target.replace(os.sep, "/"))
    if (here.scheme, here.netloc) == (there.scheme, there.netloc):
        return quote(posixpath.relpath(posixpath.join(there.path, "atlas/index.html"), here.path))
    return f"{place.rstrip('/')}/atlas/index.html" if there.scheme in ("http", "https") else None


def _side(table: pa.Table, run: str, concepts: dict[str, int]) -> dict[str, object]:
    lists = [one or [] for one in table[f"concepts_{run}"].to_pylist()]
    terms = np.array(
        [concepts.setdefault(text, len(concepts)) for one in lists for text in one], np.int64
    )
    weights = np.array([w for one in table[f"weights_{run}"].to_pylist() for w in one or []], float)
    lengths = np.array([len(one) for one in lists], np.int64)
    bias = np.nan_to_num(_floats(table[f"bias_{run}"]))
    status = [STATUSES.index(one) for one in table[f"status_{run}"].to_pylist()]
    return {
        "status": column(np.array(status, np.int64), "u1"),
        "length": column(lengths, smallest_unsigned(int(lengths.max(initial=0)))),
        "term": column(terms, "u4"),
        "weight": column(weights, weight_kind(weights)),
        "bias": column(bias, weight_kind(bias)),
    }


def _floats(values: pa.ChunkedArray) -> np.ndarray:
    return np.array(values.to_pylist(), dtype=np.float64)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _short(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
