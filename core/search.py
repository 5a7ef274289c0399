"""The searches for explanations under their names."""

from __future__ import annotations

from typing import Final, Literal, get_args

from core.beam import beam_paths
from core.errors import ConfigError, close_names
from core.forward import forward_paths
from core.moments import ConceptMoments, CrossMoments
from core.nonnegative import Sign, check_sign
from core.paper import paper_paths
from core.paths import Paths
from core.ranked import elastic_net_top_k_paths, single_paths

SearchName = Literal["forward", "paper", "beam", "elastic-net-top-k", "single"]

SEARCHES: Final[tuple[str, ...]] = get_args(SearchName)


def find_paths(
    search: str,
    train: tuple[ConceptMoments, CrossMoments],
    val: tuple[ConceptMoments, CrossMoments],
    max_length: int,
    sign: Sign = "any",
    tolerance: float = 0.02,
    ridge: float = 0.0,
    device: str | None = None,
) -> Paths:
    """Explanations of every length by the search of this name, for each neuron on its own.

    Args:
        search: One of ``SEARCHES``. ``forward``: the concept that lowers the training residual
            most, one after the other. ``beam``: the same with several sets at a time. ``paper``:
            the published search. ``elastic-net-top-k``: the largest weights of the published
            elastic net, refitted. ``single``: the best concept alone.
        train: Moments of the training images, without and with the neurons' activations.
        val: Moments of the validation images; only ``paper`` looks at them.
        max_length: Greatest number of concepts of an explanation; ``single`` stops at one.
        sign: Signs that weights may have: ``any`` or ``positive``.
        tolerance: Validation correlation that a concept must add, for ``paper`` only.
        ridge: Ridge penalty of the choice, for ``forward`` only; see there.
        device: Where `core.forward_gpu` selects, for ``forward`` with ``any`` only; by default
            concepts are selected by `core.forward`, on processors.

    Raises:
        ConfigError: An unknown search or sign, ``paper`` with ``positive``, or a device for another
            search.
        ShapeError: Moments that do not fit together.
    """
    check_sign(sign)
    if device is not None:
        if (search, sign) != ("forward", "any"):
            raise ConfigError(
                f"search {search!r} with sign {sign!r} on a device; there 'forward' with sign 'any' is "
                "all there is"
            )
        from core.forward_gpu import gpu_forward_paths  # PyTorch takes seconds to import

        return gpu_forward_paths(*train, max_length, device, ridge=ridge)
    if search == "forward":
        return forward_paths(*train, max_length, sign=sign, ridge=ridge)
    if search == "beam":
        return beam_paths(*train, max_length, sign=sign)
    if search == "elastic-net-top-k":
        return elastic_net_top_k_paths(*train, max_length, sign)
    if search == "single":
        return single_paths(*train, sign)
    if search == "paper":
        if sign != "any":
            raise ConfigError(
                f"search 'paper' with sign {sign!r}; the published search lets weights have any "
                "sign; use sign 'any', or the search 'forward' for positive weights"
            )
        return paper_paths(*train, *val, max_length=max_length, tolerance=tolerance)
    raise ConfigError(
        f"unknown search {search!r}; expected one of {', '.join(SEARCHES)}"
        f"{close_names(search, SEARCHES)}"
    )
