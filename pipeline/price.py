"""What a run costs on machines that can be rented: a table of prices, which the user edits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from core.errors import ConfigError
from pipeline.fit_config import Strict

#: The table that is used unless another is given.
PRICES = Path(__file__).with_name("prices.yaml")


class Machine(Strict):
    """A kind of machine and its price."""

    name: str
    """What it is called where it is rented."""
    usd_per_hour: Annotated[float, Field(ge=0)]
    """Price of an hour, in US dollars or any other unit throughout."""
    cores: Annotated[int, Field(gt=0)]
    """Logical CPUs."""
    models_as_cores: Annotated[float, Field(gt=0)] | None = None
    """With a GPU: how many such CPUs record as fast as its GPUs do."""


class Prices(Strict):
    """A table of prices."""

    date: str
    """When they were looked up."""
    source: str
    """Where, in words."""
    machines: Annotated[list[Machine], Field(min_length=1)]
    """What can be rented."""


@dataclass(frozen=True)
class Cost:
    """What a run takes on one machine of a kind."""

    machine: str
    hours: float
    usd: float


def read_prices(path: str | Path | None = None) -> Prices:
    """Read a table of prices, by default the one that comes with the package.

    Raises:
        ConfigError: The file is missing or not of that shape.
    """
    place = Path(path or PRICES)
    try:
        data: Any = yaml.safe_load(place.read_text(encoding="utf-8"))
        return Prices.model_validate(data)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"the table of prices {str(place)!r} cannot be read: {error}") from error
    except ValidationError as error:
        lines = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg'].lower()}"
            for e in error.errors()
        )
        raise ConfigError(
            f"the table of prices {str(place)!r} has errors: {lines}; {PRICES} shows its shape"
        ) from None


def costs(
    prices: Prices, models: float, other: float, fixed: float, on_gpu: bool = False
) -> list[Cost]:
    """Hours and price on each kind of machine, on one of them alone.

    All work but the fixed seconds is taken to go the faster the more cores there are. Models that were timed
    on a GPU are taken to run as fast on every machine that has one; others are not priced.

    Args:
        prices: Machines.
        models: Seconds of the models: of one core, or of a GPU.
        other: Core seconds of everything else.
        fixed: Seconds that no machine shortens.
        on_gpu: Whether the models were timed on a GPU.
    """
    found = []
    for machine in prices.machines:
        if on_gpu and machine.models_as_cores is None:
            continue
        cores = 1.0 if on_gpu else machine.models_as_cores or machine.cores
        hours = (fixed + models / cores + other / machine.cores) / 3600
        found.append(Cost(machine.name, hours, hours * machine.usd_per_hour))
    return found
