"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from atlas_reading import Built

    from pipeline.atlas.data import AtlasData

# Several processes share the cores when tests run side by side. Threads of a forward pass that wait for
# each other awake then keep those from working that they wait for: a pass takes up to eight times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real images and models for development; tests that need it skip without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real images and models are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that run stages in this process."""
    # Imported here, so that tests of core and actors run where Ray is not installed.
    from pipeline.config import RayConfig
    from pipeline.engine import engine

    with engine(RayConfig()):
        yield


@pytest.fixture(scope="session")
def atlas() -> Built:
    """One atlas of a planted run, which tests only read; and its parts by name."""
    from atlas_reading import planted_atlas

    return planted_atlas()


@pytest.fixture(scope="session")
def data(atlas: Built) -> AtlasData:
    """The planted run."""
    return atlas.data


@pytest.fixture(scope="session")
def files(atlas: Built) -> dict[str, bytes]:
    """The files of its atlas."""
    return atlas.files


@pytest.fixture(scope="session")
def overview(atlas: Built) -> Any:
    """What the atlas says first of all."""
    return atlas.overview


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for the tests of a module."""
    from browsing import browser

    with browser() as one:
        yield one


#: Modules that take a minute and more, longest first: one that starts last would be waited for alone.
LONGEST = ("s3", "fused", "night", "store", "real", "held_out", "notebook", "ablate", "account")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
