"""Build the atlas: a folder of static files that opens from disk, a web server or a bucket.

=====================================  ==========================================================
file                                   holds
=====================================  ==========================================================
``index.html``                         the page; written last, so it stands for a whole atlas
``assets/``                            style and scripts
``data/overview.js``                   the network at a glance (`pipeline.atlas.overview`)
``data/index/<explainer>.js``          the table of neurons (`pipeline.atlas.index`)
``data/neurons/<group>/<number>.js``   64 neurons in detail (`pipeline.atlas.details`)
``data/maps/<group>/<number>.js``      where in pictures the same 64 are active (`.maps`)
``data/concepts/<e>/<level>/<n>.js``   concept scores on the shared sample (`.samples`)
``data/images/<number>.js``            names, splits and labels of images (`.samples`)
``thumbs/<xx>/<row>.jpg``              small pictures; ``xx`` is row modulo 256, in hex
=====================================  ==========================================================

Groups (a layer under a pooling) and explainers are numbered as the overview lists them, so no
name of a layer or a model ever becomes a file name. Equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np

from core.errors import RecordingError, ShapeError
from pipeline.atlas.bands import bands_for
from pipeline.atlas.catalogue import Catalogue, NeuronGroup, catalogue_of
from pipeline.atlas.data import AtlasData
from pipeline.atlas.details import neuron_shards
from pipeline.atlas.encode import script
from pipeline.atlas.index import index_shard
from pipeline.atlas.maps import put_maps
from pipeline.atlas.others import Others
from pipeline.atlas.overview import overview_of
from pipeline.atlas.predictions import Predictions
from pipeline.atlas.samples import concept_shards, image_shards, sample_rows, spread_rows

STYLE = "atlas.css"
LICENSES = "vendor/licenses.html"
LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
"""D3 and Observable Plot, as their projects publish them; their licences go with them."""

SCRIPTS = (
    *LIBRARIES,
    "store.js",
    "format.js",
    "dom.js",
    "drawing.js",
    "equation.js",
    "search.js",
    "charts.js",
    "plots.js",
    "sharpness.js",
    "measures.js",
    "effects.js",
    "overview.js",
    "table.js",
    "terms.js",
    "area.js",
    "failures.js",
    "others.js",
    "explanation.js",
    "pictures.js",
    "neuron.js",
    "app.js",
)
"""In the order in which the page loads them."""

Write = Callable[[str, bytes], None]


def build_atlas(data: AtlasData, write: Write) -> None:
    """Write the whole atlas of a run.

    Args:
        data: Tables, arrays and pictures of the run.
        write: Stores one file: a path relative to the atlas's folder, with ``/``, and its bytes.

    Raises:
        RecordingError: Tables that contradict each other.
        ShapeError: Arrays that do not have the rows or columns that the tables speak of.
    """
    digest = hashlib.blake2b(digest_size=8)

    def put(path: str, content: bytes) -> None:
        digest.update(path.encode() + b"\0" + content)
        write(path, content)

    if len(data.images) == 0:
        raise RecordingError(
            "the run has no images, so there is nothing to show; record some first"
        )
    catalogue = catalogue_of(data)
    split = np.array(data.images["split"].to_pylist(), dtype=object)
    sizes = _split_sizes(split)
    names = [name for name, _ in sizes]
    bands = bands_for(len(split))
    sample = sample_rows(split)

    predictions = Predictions(data, catalogue, split)
    others = Others(data.others, catalogue)

    def put_shard(key: str, value: object) -> None:
        put(f"data/{key}.js", script(key, value))

    shown = np.zeros(len(split), bool)
    shown[sample] = True
    shown_by: list[list[np.ndarray]] = []
    for number, group in enumerate(catalogue.groups):
        activations = _activations(data, group)
        shown_by.append([])
        shards = neuron_shards(group, activations, catalogue, bands, sample, predictions, others)
        for shard, (value, rows) in enumerate(shards):
            shown[np.concatenate(rows)] = True
            shown_by[-1] += rows
            put_shard(f"neurons/{number}/{shard}", value)
    _write_shared(data, catalogue, np.flatnonzero(shown), sample, split, names, put)
    maps = data.heat_maps and put_maps(data.heat_maps, catalogue.groups, shown_by, put_shard)
    about = overview_of(data, catalogue, bands, sample, sizes)
    put_shard("overview", about | {"tests": len(predictions.rows), "maps": maps})
    _write_page(data.title, put, digest.hexdigest)


def _write_shared(
    data: AtlasData,
    catalogue: Catalogue,
    shown: np.ndarray,
    sample: np.ndarray,
    split: np.ndarray,
    names: list[str],
    put: Write,
) -> None:
    training = spread_rows(split)
    for number, explainer in enumerate(catalogue.explainers):
        put(f"data/index/{number}.js", script(f"index/{number}", index_shard(explainer)))
        for level, sharpness in enumerate(explainer.sharpness):
            if not len(explainer.used_at(level)):
                continue
            scores = data.concept_scores(explainer.name, sharpness)
            shards = concept_shards(explainer, level, scores, training, sample, len(split))
            for shard, value in shards:
                key = f"concepts/{number}/{level}/{shard}"
                put(f"data/{key}.js", script(key, value))
    for shard, value in image_shards(data.images, shown, names):
        put(f"data/images/{shard}.js", script(f"images/{shard}", value))
    if data.thumbnails is not None:
        for row, picture in data.thumbnails(shown.tolist()):
            put(f"thumbs/{row % 256:02x}/{row}.jpg", picture)


def _write_page(title: str, put: Write, version: Callable[[], str]) -> None:
    """Assets, then the page itself, which asks for files of exactly this build."""
    assets = resources.files("pipeline.atlas") / "assets"
    for name in (STYLE, LICENSES, *SCRIPTS):
        put(f"assets/{name}", (assets / name).read_bytes())
    put("index.html", page_of("index.html", title, SCRIPTS, version()))


def page_of(name: str, title: str, scripts_of: Sequence[str], build: str) -> bytes:
    """A page that loads scripts of exactly one build.

    Args:
        name: Of the asset that the page is made from.
        title: Shown as it is, whatever it holds.
        scripts_of: Scripts in the order in which they are loaded.
        build: What tells this build's files from those of others.
    """
    scripts = "\n".join(
        f'  <script defer src="assets/{script}?v={build}"></script>' for script in scripts_of
    )
    page = (resources.files("pipeline.atlas") / "assets" / name).read_text(encoding="utf-8")
    for mark, text in (
        ("<!--scripts-->", scripts),
        ("<!--style-->", f'<link rel="stylesheet" href="assets/{STYLE}?v={build}">'),
        ("{version}", build),
        ("<!--title-->", html.escape(title)),  # last: a title may look like one of the marks
    ):
        page = page.replace(mark, text)
    return page.encode()


def _activations(data: AtlasData, group: NeuronGroup) -> np.ndarray:
    activations = data.activations(group.layer, group.pooling)
    if activations.ndim != 2 or activations.shape[0] != len(data.images):
        raise ShapeError(
            f"activations of '{group.layer}' ({group.pooling}) have shape {activations.shape}; "
            f"expected {len(data.images)} images by neurons. The run's tables are not of one "
            "recording"
        )
    if activations.shape[1] <= group.neurons[-1]:
        raise RecordingError(
            f"an explanation belongs to {group.layer}:{group.neurons[-1]}, but only "
            f"{activations.shape[1]} neurons of that layer were recorded; explanations and "
            "activations are from different runs"
        )
    return activations


def _split_sizes(split: np.ndarray) -> list[tuple[str, int]]:
    """Splits by name, train, val and test first, with their numbers of images."""
    found, counts = np.unique(split.astype(str), return_counts=True)
    sizes = dict(zip(found.tolist(), counts.tolist(), strict=True))
    usual = [name for name in ("train", "val", "test") if name in sizes]
    return [(name, sizes[name]) for name in usual + [n for n in sizes if n not in usual]]
