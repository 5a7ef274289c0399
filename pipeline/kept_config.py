"""The configuration that a run directory keeps, for commands that come back to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config, parse_config
from pipeline.rundir import Run

FILE = "run.yaml"


def resolved_yaml(config: Config) -> str:
    """The whole configuration with its defaults; it holds no secret, since no key takes one."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def keep_config(run: Run, config: Config) -> None:
    """Write a configuration into a run directory.

    Its paths are absolute. Modules of `python:` targets are named, not placed: the folder that they
    are looked up in first is kept in the ledger.
    """
    run.folder.write(FILE, resolved_yaml(config).encode())
    run.note_base(str(config.base.resolve()))


def kept_config(run: Run, fit: Mapping[str, Any] | None = None) -> Config:
    """The configuration of the latest start.

    Args:
        run: An existing run.
        fit: Keys of the section `fit` that are to be others.
    """
    data = yaml.safe_load(run.folder.read(FILE))
    data["fit"] |= fit or {}
    base = Path(run.ledger().get("base") or Path.cwd())
    return parse_config(data, base, source=run.folder.path(FILE))
