"""Runs with planted explanations, made up in memory, for tests of the atlas.

Concept scores and weights are drawn; activations follow from them with noise. So the tables are
true of the arrays, and every value that the atlas should show is known beforehand.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from PIL import Image

from actors.heat_maps import Maps
from core.sharpness import NATIVE, Sharpness
from pipeline.atlas.data import AtlasData, Pairs

HOSTILE = (
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    'a "quoted" concept, with a comma',
    "it's 5 < 6 & 7 > 6",
    "line\u2028separator\u2029paragraph",
    "שלום עולם",
    "🦜 parrot 👩🏽‍🔬",
    "long " + "x" * 295,
    "back\\slash \\u003c ${template} {{braces}}",
    "<!--title--> {version}",
)

FOLDS = 5

MAPS = {"conv_head": (7, 7), "late": (5, 3)}
"""Layers whose neurons have places, and the shapes of their maps."""


@dataclass(frozen=True)
class Layer:
    """A layer to plant."""

    name: str
    neurons: int
    pooling: str = "avg"


def planted(
    images: int = 400,
    layers: Sequence[Layer] = (Layer("blocks.1", 24), Layer("conv_head", 100)),
    concepts: int = 60,
    seed: int = 0,
    longest: int = 6,
    hostile: bool = False,
    pictures: bool = True,
    simulators: Sequence[str] = ("clip-b", "explainer"),
    broken: int = 4,
) -> AtlasData:
    """A run of two explainers, ``attributes`` (0 or 1) and ``clip`` (soft scores).

    The logits of ``clip`` are halved for the first layer and doubled for the third.

    Args:
        images: Number of images; 70 % train, 10 % val, 20 % test in a repeating pattern.
        layers: Layers in the order of the network.
        concepts: Concepts of each explainer.
        seed: Of everything that is drawn.
        longest: Longest explanation of each path.
        hostile: Put difficult texts into concepts, labels, ids, the title and a layer's name.
        pictures: Whether there are thumbnails.
        simulators: Simulators of the scores; ``explainer`` is the fit check.
        broken: In each layer, so many neurons are not explainable (one for each bad status).
    """
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    names = [f"concept {number}" for number in range(concepts)]
    if hostile:
        names[: len(HOSTILE)] = HOSTILE
        layers = [Layer('blocks/<b>"3"</b>?x=1&y#z%', 12, "avg"), *layers]
    split = np.array(["train"] * 7 + ["val"] + ["test"] * 2, dtype=object)[np.arange(images) % 10]
    scores = {
        "attributes": (rng.random((images, concepts)) < 0.2).astype(np.float16),
        "clip": rng.normal(-1.5, 1.5, (images, concepts)).astype(np.float32),
    }

    def concept_scores(explainer: str, sharpness: Sharpness) -> np.ndarray:
        if explainer == "attributes":
            assert sharpness == (1.0, 0.0)
            return scores[explainer]
        factor, shift = sharpness
        return (1 / (1 + np.exp(-factor * scores[explainer] - shift))).astype(np.float32)

    tried = [
        Sharpness(0.5, 1.0),
        Sharpness(1.0),
        Sharpness(2.0),
        Sharpness(0.5),
        Sharpness(2.0, 1.0),
    ]
    sharpness = []
    for number, layer in enumerate(layers):
        about = {"layer": layer.name, "pooling": layer.pooling}
        known = NATIVE._asdict() | {"explainer": "attributes", "chosen": True}
        sharpness.append(about | known)
        for place, one in enumerate(tried):
            own = one._asdict() | {"explainer": "clip", "chosen": place == number % 3}
            worth = 0.4 + 0.05 * number - 0.03 * abs(place - number % 3)
            sharpness.append(about | own | {"val_correlation": worth, "neurons": layer.neurons})

    def simulated_scores(simulator: str, explainer: str, sharpness: Sharpness) -> np.ndarray:
        assert simulator != "explainer"
        noise = np.random.default_rng(seed + 7).normal(0, 0.05, (images, concepts))
        return (0.3 * concept_scores(explainer, sharpness) + noise + 0.1).astype(np.float32)

    explained: dict[str, list[object]] = {name: [] for name in EXPLANATION_TYPES}
    scored: dict[str, list[object]] = {name: [] for name in SCORE_TYPES}
    activations = {}
    for number, layer in enumerate(layers):
        made_of = {
            "attributes": concept_scores("attributes", NATIVE),
            "clip": concept_scores("clip", tried[number % 3]),
        }
        q = np.zeros((images, layer.neurons))
        for neuron in range(layer.neurons):
            status = "ok"
            if neuron >= layer.neurons - broken:
                status = ("dead", "constant", "low-variance", "failed")[neuron % 4]
            for explainer in scores:
                chosen = int(rng.integers(1, longest + 1))
                terms = rng.permutation(concepts)[:longest]
                weights = rng.normal(1.0, 1.0, longest) * 2.0 ** -np.arange(longest)
                bias = float(rng.normal(0, 0.3))
                if status == "ok":
                    q[:, neuron] += 0.5 * (made_of[explainer][:, terms] @ weights + bias)
                where = (layer.name, layer.pooling, neuron, explainer)
                if status != "ok":
                    row = (*where, status, None, True, [], [], None, None, None, [], [], None)
                    _append(explained, row)
                    continue
                top = rng.uniform(0.1, 0.8)
                parts = other.dirichlet(np.ones(longest))
                again = other.integers(0, FOLDS + 1, longest) / FOLDS
                for length in range(1, longest + 1):
                    grown = top * (1 - 0.6**length)
                    order = np.argsort(-np.abs(weights[:length]))
                    row = (
                        *where,
                        status,
                        length,
                        length == chosen,
                        [names[term] for term in terms[order]],
                        weights[order].tolist(),
                        bias,
                        grown * 1.05,
                        grown * 0.97,
                        (grown**2 * parts[:length] / parts[:length].sum())[order].tolist(),
                        again[:length][order].tolist() if explainer == "clip" else None,
                        [synonyms_of(names, term, concepts) for term in terms[order]]
                        if length == chosen
                        else None,
                    )
                    _append(explained, row)
                    for simulator in simulators:
                        if explainer == "attributes" and simulator != "explainer":
                            continue
                        r = grown * (1.0 if simulator == "explainer" else 0.8)
                        gap = grown * 0.97 - r if simulator == "explainer" else None
                        marks = (r, r - 0.06, r + 0.05, gap)
                        score = (*where, length, length == chosen, simulator, *marks)
                        _append(scored, score)
            q[:, neuron] += rng.normal(0, 0.2, images)
            if status == "ok" and neuron % 3:
                q[:, neuron] = np.maximum(q[:, neuron], 0)
            elif status == "dead":
                q[:, neuron] = 0.0
            elif status == "constant":
                q[:, neuron] = 0.25
            elif status == "failed":
                q[3, neuron] = np.nan
        activations[layer.name, layer.pooling] = q.astype(np.float16)

    ids = [f"val/{number:05d}" for number in range(images)]
    labels = [f"class {number % 17}" for number in range(images)]
    if hostile:
        ids[: len(HOSTILE)] = HOSTILE
        labels[: len(HOSTILE)] = HOSTILE
    return AtlasData(
        title=HOSTILE[0] + HOSTILE[9] if hostile else "planted network",
        provenance={
            "model": "planted",
            "command": "neuroscribe run <config> --out 'runs/x'",
            "seconds": {"record": 61.2, "fit": 3.1, "simulate": 0.8},
            "fingerprints": {"images": "9f2c", "explainers": {"clip": "77a0", "attributes": "1b"}},
            "versions": {"python": "3.11", "torch": "2.9"},
            "images": images,
            "odd": [float("nan"), None, np.float32(0.5), HOSTILE[1] if hostile else "text"],
        },
        explanations=pa.table(explained, schema=pa.schema(list(EXPLANATION_TYPES.items()))),
        scores=measured(pa.table(scored, schema=pa.schema(list(SCORE_TYPES.items())))),
        sanity=pa.Table.from_pylist(SANITY),
        comparison=pa.Table.from_pylist(
            [compared(layer, method) for layer in layers for method in ("linear", "single")]
        ),
        replacements=pa.Table.from_pylist([replaced(layer) for layer in layers]),
        importance=pa.Table.from_pylist([row for layer in layers for row in important(layer)]),
        concepts=pa.table(
            {
                "explainer": [explainer for explainer in scores for _ in names],
                "position": list(range(concepts)) * len(scores),
                "concept": names * len(scores),
                "active": [True] * concepts * len(scores),
            }
        ),
        sharpness=pa.Table.from_pylist(sharpness, schema=pa.schema(list(SHARPNESS_TYPES.items()))),
        degenerate=pa.table(
            {
                "explainer": ["attributes"] * 3,
                "position": [1, 2, 3],
                "concept": [names[1], names[2], names[3]],
                "status": ["constant", "duplicate", "collinear"],
                "same_as": [None, names[0], None],
            }
        ),
        images=pa.table(
            {
                "image_id": ids,
                "path": [f"photos/{name}.jpg" for name in ids],
                "split": split.tolist(),
                "label": labels,
            }
        ),
        activations=lambda layer, pooling: activations[layer, pooling],
        concept_scores=concept_scores,
        simulated_scores=simulated_scores,
        thumbnails=thumbnails if pictures else None,
        heat_maps=PlantedMaps() if pictures else None,
        others=[simpler(layers, names), elsewhere(layers, names)],
        folds=FOLDS,
    )


class PlantedMaps:
    """Maps whose cells follow from the image's row, the neuron and the place alone."""

    inset = 0.0625

    def shape(self, layer: str) -> tuple[int, int] | None:
        """Of the layers in `MAPS`."""
        return MAPS.get(layer)

    def read(self, wanted: Mapping[str, Pairs]) -> dict[str, Maps]:
        """Every map runs from -1 to the neuron's number; the image of row 5 cannot be read."""
        found = {}
        for layer, (rows, neurons) in wanted.items():
            low = np.where(rows == 5, np.nan, -1.0).astype(np.float32)
            found[layer] = Maps(cells_of(layer, rows, neurons), low, neurons.astype(np.float32))
        return found


def cells_of(layer: str, rows: np.ndarray, neurons: np.ndarray) -> np.ndarray:
    """Cells of planted maps, uint8 (pairs, height, width)."""
    height, width = MAPS[layer]
    places = np.arange(height * width).reshape(height, width)
    seeds = (rows * 31 + neurons * 17)[:, None, None]
    cells: np.ndarray = ((places * 29 + seeds) % 256).astype(np.uint8)
    return cells


def simpler(layers: Sequence[Layer], names: Sequence[str]) -> pa.Table:
    """Scores of one baseline of the explainer clip, for every other neuron, by two judges."""
    rows = []
    for layer in layers:
        for neuron in range(0, layer.neurons, 2):
            about = {"layer": layer.name, "pooling": layer.pooling, "neuron": neuron}
            about |= {"explainer": "clip", "method": "single"}
            about |= {"concepts": [names[neuron % len(names)]], "weights": [2.0]}
            for simulator, r in (("explainer", 0.3), ("clip-b", None if neuron == 4 else 0.25)):
                marks = {"correlation": r, "ci_low": r and r - 0.1, "ci_high": r and r + 0.1}
                rows.append(about | {"simulator": simulator} | marks)
    return pa.Table.from_pylist(rows, schema=METHOD_SCHEMA)


def elsewhere(layers: Sequence[Layer], names: Sequence[str]) -> pa.Table:
    """Scores of a description from elsewhere of the first neuron of each layer."""
    rows = []
    for layer in layers:
        about = {"layer": layer.name, "pooling": layer.pooling, "neuron": 0, "method": "people"}
        about |= {"concepts": [names[0], names[1]], "weights": [1.0, -0.12345678]}
        marks = {"correlation": 0.123456, "ci_low": 0.0, "ci_high": 0.2}
        rows.append(about | {"explainer": None, "simulator": "clip-b"} | marks)
        rows.append(about | {"explainer": "clip", "simulator": "explainer"} | marks)
    return pa.Table.from_pylist(rows, schema=METHOD_SCHEMA)


def compared(layer: Layer, method: str) -> dict[str, object]:
    """A row of the comparison with simpler explanations."""
    mean = 0.4 if method == "linear" else 0.25
    about = {"layer": layer.name, "pooling": layer.pooling, "explainer": "clip"}
    marks = {"neurons": layer.neurons, "mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1}
    share = None if method == "linear" else 0.875
    return about | {"simulator": "explainer", "method": method, "better_share": share} | marks


def replaced(layer: Layer) -> dict[str, object]:
    """A row of what the network does with all neurons of a layer replaced."""
    about = {"layer": layer.name, "pooling": layer.pooling, "explainer": "clip"}
    accuracy = {"accuracy": 0.8, "accuracy_replaced": 0.5, "accuracy_mean": 0.1}
    loss = {"loss": 1.0, "loss_replaced": 2.5, "loss_mean": 6.0}
    sizes = {"neurons": layer.neurons, "images": 80}
    return about | {"simulator": "explainer"} | sizes | accuracy | loss


def important(layer: Layer) -> list[dict[str, object]]:
    """Share of effect of the highest activations: the square root of their number, for two neurons."""
    return [
        {"layer": layer.name, "pooling": layer.pooling, "neuron": neuron}
        | {"fraction": fraction, "share": fraction ** (0.4 + 0.2 * neuron)}
        for neuron in range(2)
        for fraction in (0.0003, 0.002, 0.005, 0.02, 0.1, 0.5)
    ]


def measured(scores: pa.Table) -> pa.Table:
    """Scores with more measures of chosen explanations, all functions of the correlation."""
    chosen = np.array(scores["chosen"].to_pylist(), bool)
    r = np.array(scores["correlation"].to_pylist(), float)
    marks = {"p_value": (1 - r) / 9, "q_value": (1 - r) / 8, "cosine": r / 2}
    for name, values in (marks | {"ablation_norm": r**2 - 0.05}).items():
        column = pa.array(np.where(chosen, values, np.nan), from_pandas=True)
        scores = scores.append_column(name, column)
    return scores


def synonyms_of(names: Sequence[str], term: int, concepts: int) -> list[str]:
    """What could stand in for a term: the next concepts of the list, none for every third."""
    return [names[(term + step) % concepts] for step in range(1, term % 3 + 1)]


def thumbnails(rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """A small picture for each row, of a colour that follows from the row."""
    for row in rows:
        picture = Image.new("RGB", (96, 96), (row * 37 % 256, row * 91 % 256, row * 53 % 256))
        file = io.BytesIO()
        picture.save(file, "JPEG")
        yield row, file.getvalue()


def shuffled(data: AtlasData, seed: int) -> AtlasData:
    """The same run with the rows of its scores in another order."""
    order = np.random.default_rng(seed).permutation(len(data.scores))
    return replace(data, scores=data.scores.take(pa.array(order)))


SANITY = [
    {
        "explainer": explainer,
        "metric": metric,
        "neurons": 30,
        "missing_share": share,
        "extra_share": 1.0,
        "passes": share > 0.9,
    }
    for explainer in ("attributes", "clip")
    for metric, share in (("correlation", 0.97), ("cosine", 0.4))
]
METHOD_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("layer", "pooling", "explainer", "method", "simulator")),
        ("neuron", pa.int32()),
        *((name, pa.float64()) for name in ("correlation", "ci_low", "ci_high")),
        ("concepts", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float64())),
    ]
)
EXPLANATION_TYPES = {
    "layer": pa.string(),
    "pooling": pa.string(),
    "neuron": pa.int32(),
    "explainer": pa.string(),
    "status": pa.string(),
    "length": pa.int32(),
    "chosen": pa.bool_(),
    "concepts": pa.list_(pa.string()),
    "weights": pa.list_(pa.float64()),
    "bias": pa.float64(),
    "train_correlation": pa.float64(),
    "val_correlation": pa.float64(),
    "shares": pa.list_(pa.float64()),
    "stability": pa.list_(pa.float64()),
    "synonyms": pa.list_(pa.list_(pa.string())),
}
SCORE_TYPES = {
    "layer": pa.string(),
    "pooling": pa.string(),
    "neuron": pa.int32(),
    "explainer": pa.string(),
    "length": pa.int32(),
    "chosen": pa.bool_(),
    "simulator": pa.string(),
    "correlation": pa.float64(),
    "ci_low": pa.float64(),
    "ci_high": pa.float64(),
    "selection_gap": pa.float64(),
}
SHARPNESS_TYPES = {
    "explainer": pa.string(),
    "layer": pa.string(),
    "pooling": pa.string(),
    "factor": pa.float64(),
    "shift": pa.float64(),
    "val_correlation": pa.float64(),
    "neurons": pa.int32(),
    "chosen": pa.bool_(),
}


def _append(table: dict[str, list[object]], row: Sequence[object]) -> None:
    for column, value in zip(table.values(), row, strict=True):
        column.append(value)
