"""The published procedure as a user would write it, with scikit-learn on the matrix of scores itself."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from sklearn.linear_model import ElasticNet, LinearRegression

from core.elastic_net import L1_RATIO, PENALTY

WIDTH, TOLERANCE = 10, 0.02
ENOUGH = 60.0
"""Seconds after which no further neuron is begun."""


def by_scikit_learn(
    p: np.ndarray, q: np.ndarray, images: int, max_length: int
) -> list[dict[str, Any]]:
    """The published procedure, neuron by neuron: elastic net, then refits of every candidate.

    The first rows are for training, the others for validation. Laying out the matrix is not timed,
    and the refits use its standardised columns, which predict the same.
    """
    mean, std = p[:images].mean(axis=0, dtype=np.float64), np.empty(p.shape[1])
    x = np.empty((images, p.shape[1]), order="F")
    val_x = np.empty((len(p) - images, p.shape[1]), order="F")
    for column in range(p.shape[1]):
        x[:, column] = p[:images, column] - mean[column]
        std[column] = x[:, column].std()
        x[:, column] /= std[column]
        val_x[:, column] = (p[images:, column] - mean[column]) / std[column]
    found = []
    for neuron in q.T.astype(np.float64):
        target = (neuron - neuron[:images].mean()) / neuron[:images].std()
        found.append(_one_neuron(x, target[:images], val_x, target[images:], max_length))
        if sum(row["seconds"] for row in found) > ENOUGH:
            break
    return found


def _one_neuron(
    x: np.ndarray, y: np.ndarray, val_x: np.ndarray, val_y: np.ndarray, max_length: int
) -> dict[str, Any]:
    begun = time.perf_counter()
    net = ElasticNet(alpha=PENALTY, l1_ratio=L1_RATIO, copy_X=False).fit(x, y)
    first = time.perf_counter() - begun
    ranking = np.argsort(-net.coef_, kind="stable").tolist()
    selected: list[int] = []
    reached, refits = 0.0, 0
    while len(selected) < max_length:
        gains = {}
        for candidate in ranking[:WIDTH]:
            terms = [*selected, candidate]
            fit = LinearRegression().fit(x[:, terms], y)
            gains[candidate] = np.corrcoef(fit.predict(val_x[:, terms]), val_y)[0, 1] - reached
            refits += 1
        if selected:
            ranking = [c for c in ranking if gains.get(c, np.inf) >= TOLERANCE]
            gains = {c: gain for c, gain in gains.items() if gain >= TOLERANCE}
        if not gains:
            break
        best = max(gains, key=gains.__getitem__)
        reached += gains[best]
        selected.append(best)
        ranking.remove(best)
    return {
        "seconds": round(time.perf_counter() - begun, 3),
        "of them the elastic net": round(first, 3),
        "passes": int(net.n_iter_),
        "weights that are not zero": int(np.count_nonzero(net.coef_)),
        "refits": refits,
        "selected": selected,
    }
