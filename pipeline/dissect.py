"""CLIP-Dissect over stored recordings: top training images, their concept scores, one concept a neuron.

Three passes of tasks for a network: lanes of shards find the images that activate each neuron most,
lanes fetch what the concept scores of these images are made from, blocks of neurons compare them with
all concepts. The choice itself needs all neurons of a layer, and is made on the driver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray

from core.concept_scores import concept_logits
from core.dissect import Likelihoods, TopImages, concept_probabilities, membership, soft_wpmi
from pipeline.engine import run_tasks
from pipeline.expected import ACTIVATIONS
from pipeline.explainers import ExplainerPlan
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.rundir import Run
from pipeline.scores import ScoreSource, Shards, explainer_source, read_rows, shards_of
from pipeline.storage import Folder
from pipeline.targets import Column

TRAIN = "train"

#: Shards that one task goes through, and images whose concepts are looked at at once.
LANE, IMAGES = 64, 1024

#: Neurons of a layer that one task compares with the concepts.
BLOCK = 1024

#: An image as a number: its shard times this, and its row there. Larger than any shard.
_SHARD = 1 << 20


def dissect(
    run: Run, plan: Plan, explainer: ExplainerPlan, neurons: Mapping[Column, np.ndarray]
) -> Iterator[tuple[Column, np.ndarray]]:
    """The concept of each neuron, by soft-WPMI on training images.

    Args:
        run: With activations and concept scores or embeddings of training images.
        plan: Its plan.
        explainer: Whose concepts are compared. The similarity of a vision-language model is the
            cosine, as published; of labels and tables the score itself.
        neurons: Those to explain, of each column.

    Yields:
        A column, and the position in the explainer's list of each of its neurons' concepts, or -1
        where no image could be compared.
    """
    shards = shards_of(run, plan)
    source = explainer_source(run, plan, explainer)
    recorded = run.parts(ACTIVATIONS)
    lanes = [range(n, min(n + LANE, len(recorded))) for n in range(0, len(recorded), LANE)]
    some = {column.name: kept for column, kept in neurons.items() if len(kept)}
    calls: list[tuple[Any, ...]] = [(run.folder, shards, lane, recorded, some) for lane in lanes]
    progress = Progress(f"{explainer.name} clip-dissect", len(lanes), "lanes")
    tops: dict[str, TopImages] = {}
    for found in _in_order(_top_images, calls):
        tops = {n: tops[n].merge(top) if n in tops else top for n, top in found.items()}
        progress.advance(1)
    progress.close()
    for column in (c for c in neurons if c.name in some):
        top = tops[column.name].images
        images = np.unique(top)
        rows = np.searchsorted(images, top)
        ends = np.searchsorted(images, [lane.stop * _SHARD for lane in lanes])
        of_lane = np.split(images, ends[:-1])
        fetches = [(run.folder, shards, source, mine) for mine in of_lane if len(mine)]
        values = ray.put(np.concatenate(list(_in_order(_fetch, fetches))))
        blocks = [
            (run.folder, source, values, rows[:, start : start + BLOCK])
            for start in range(0, rows.shape[1], BLOCK)
        ]
        likelihood = np.concatenate(list(_in_order(_compare, blocks)))
        known = np.asarray((likelihood < 0).any(axis=1))
        chosen = np.full(len(known), -1)
        if known.any():
            chosen[known] = soft_wpmi(likelihood[known]).argmax(axis=1)
        yield column, chosen


def _in_order(function: Any, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Results of tasks in the order of the calls, each as soon as those before it are there."""
    waiting: dict[int, Any] = {}
    following = 0
    for position, result in run_tasks(function, calls):
        waiting[position] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _top_images(
    folder: Folder,
    shards: Shards,
    numbers: Sequence[int],
    parts: Sequence[str],
    neurons: Mapping[str, np.ndarray],
) -> dict[str, TopImages]:
    """The training images of some shards that activate some neurons of each column most."""
    tops: dict[str, TopImages] = {}
    for number in numbers:
        inside = np.flatnonzero(shards.rows(folder, number, TRAIN))
        content = read_rows(folder, shards, number, parts[number], list(neurons))
        for name, kept in neurons.items():
            values = content[name][np.ix_(inside, kept)]
            top = TopImages.of(values, number * _SHARD + inside)
            tops[name] = tops[name].merge(top) if name in tops else top
    return tops


def _fetch(folder: Folder, shards: Shards, source: ScoreSource, images: np.ndarray) -> np.ndarray:
    """Embeddings or stored scores of some images, in their order."""
    found = []
    for number in np.unique(images // _SHARD):
        rows = images[images // _SHARD == number] % _SHARD
        part = source.parts[number]
        found.append(
            read_rows(folder, shards, int(number), part, [source.column])[source.column][rows]
        )
    return np.concatenate(found)


def _compare(
    folder: Folder, source: ScoreSource, values: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """log p(concept | neuron), (neurons, concepts); zeros where no image could be compared.

    Args:
        folder: The run.
        source: What concept scores are made from.
        values: Rows of the source's column, (images, width).
        rows: Rows of each neuron's top images, (top, neurons).
    """
    texts = None if source.texts is None else folder.read_arrays(source.texts)["embedding"]
    concepts = values.shape[1] if texts is None else len(texts)
    likelihoods = Likelihoods(rows.shape[1], concepts)
    order = np.argsort(rows, axis=None, kind="stable")
    members = np.repeat(membership(len(rows)), rows.shape[1])[order]
    neurons = np.tile(np.arange(rows.shape[1]), len(rows))[order]
    images = np.unique(rows)
    row = np.searchsorted(images, rows.reshape(-1)[order])
    for start in range(0, len(images), IMAGES):
        some = values[images[start : start + IMAGES]]
        similarity = some if texts is None else concept_logits(some, texts, 1.0, 0.0)
        probabilities = concept_probabilities(similarity)
        hits = slice(*np.searchsorted(row, (start, start + IMAGES)))
        local = row[hits] - start
        # An image that cannot be compared says nothing of any concept.
        usable = np.isfinite(probabilities).all(axis=1)[local]
        likelihoods.add(probabilities, local[usable], neurons[hits][usable], members[hits][usable])
    return likelihoods.log
