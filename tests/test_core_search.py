"""Searches under their names."""

from __future__ import annotations

import numpy as np
import pytest

from core.beam import beam_paths
from core.errors import ConfigError
from core.forward import forward_paths
from core.moments import ConceptMoments, CrossMoments
from core.paper import paper_paths
from core.paths import Paths
from core.ranked import elastic_net_top_k_paths, single_paths
from core.search import SEARCHES, find_paths


@pytest.fixture(scope="module")
def splits() -> list[tuple[ConceptMoments, CrossMoments]]:
    rng = np.random.default_rng(0)
    parts = rng.random((600, 12))
    p = np.column_stack([parts @ (rng.random((12, 13)) < 0.4), parts])
    p += 0.1 * rng.standard_normal(p.shape)
    q = parts @ rng.uniform(-0.3, 1.0, (12, 5)) + 0.3 * rng.standard_normal((600, 5))
    q[:, 4] *= -1
    splits = slice(0, 400), slice(400, 600)
    return [(ConceptMoments.of(p[rows]), CrossMoments.of(p[rows], q[rows])) for rows in splits]


def same(left: Paths, right: Paths) -> bool:
    names = ("concepts", "weights", "bias", "available")
    pairs = [(getattr(left, name), getattr(right, name)) for name in names]
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def test_every_name_finds_its_own_search(
    splits: list[tuple[ConceptMoments, CrossMoments]],
) -> None:
    train, val = splits
    direct = {
        "forward": forward_paths(*train, 4),
        "paper": paper_paths(*train, *val, max_length=4, tolerance=0.01),
        "beam": beam_paths(*train, 4),
        "elastic-net-top-k": elastic_net_top_k_paths(*train, 4),
        "single": single_paths(*train),
    }
    assert set(direct) == set(SEARCHES)
    found = {name: find_paths(name, train, val, 4, tolerance=0.01) for name in SEARCHES}
    for name in SEARCHES:
        assert [other for other in SEARCHES if same(found[name], direct[other])] == [name]


@pytest.mark.parametrize("search", [name for name in SEARCHES if name != "paper"])
def test_positive_weights_are_positive_whatever_the_search(
    splits: list[tuple[ConceptMoments, CrossMoments]], search: str
) -> None:
    paths = find_paths(search, *splits, 4, sign="positive")
    assert paths.available.any()
    for neuron, available in enumerate(paths.available):
        for length in range(1, int(available) + 1):
            assert (paths.explanation(neuron, length)[1] > 0).all()
    assert (find_paths(search, *splits, 4).weights < 0).any()


def test_unknown_names_and_impossible_combinations_are_refused(
    splits: list[tuple[ConceptMoments, CrossMoments]],
) -> None:
    with pytest.raises(ConfigError, match=r"unknown search 'foward'.*close names: 'forward'"):
        find_paths("foward", *splits, 4)
    with pytest.raises(ConfigError, match=r"'paper' with sign 'positive'.*use sign 'any'"):
        find_paths("paper", *splits, 4, sign="positive")
    with pytest.raises(ConfigError, match="unknown sign 'both'"):
        find_paths("forward", *splits, 4, sign="both")


def test_a_device_selects_what_processors_select_and_nothing_but_forward(
    splits: list[tuple[ConceptMoments, CrossMoments]],
) -> None:
    for ridge in (0.0, 0.1):
        here = find_paths("forward", *splits, 4, ridge=ridge)
        there = find_paths("forward", *splits, 4, ridge=ridge, device="cpu")
        assert same(here, there)
    for search, sign in (("beam", "any"), ("forward", "positive")):
        with pytest.raises(ConfigError, match=f"'{search}' with sign '{sign}' on a device"):
            find_paths(search, *splits, 4, sign=sign, device="cpu")  # type: ignore[arg-type]
