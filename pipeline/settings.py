"""Single keys of the configuration, changed on the command line: ``--set images.limit=2000``.

Each change names a key path, whose parts are keys of sections and positions in lists, and a YAML value. What
the changed configuration then lacks or has too much is said by the configuration's own checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from core.errors import ConfigError


def with_settings(data: Any, settings: Sequence[str]) -> Any:
    """A configuration with some keys set, in the order given.

    Args:
        data: What YAML gave; it is changed in place.
        settings: ``KEY.PATH=VALUE`` each, as in ``concepts.1.concepts=words.txt``. A section that is not
            there is made.

    Raises:
        ConfigError: No ``=``, a value that is not YAML, a position that a list does not have, or a path
            through something that is neither section nor list.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path or "" in path.split("."):
            raise ConfigError(
                f"--set {setting!r}: expected KEY.PATH=VALUE, as in --set images.limit=2000"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {path}: the value {text!r} is not YAML: {error}") from error
        _set(data, path, value)
    return data


def _set(data: Any, path: str, value: Any) -> None:
    keys = path.split(".")
    where = data
    for depth, key in enumerate(keys):
        here, last = ".".join(keys[:depth]) or "the configuration", depth == len(keys) - 1
        if isinstance(where, dict):
            if last:
                where[key] = value
            elif where.get(key) is None:
                where[key] = {}
            where = where[key]
        elif isinstance(where, list):
            if not key.isdecimal() or int(key) >= len(where):
                raise ConfigError(
                    f"--set {path}: {here} is a list of {len(where)}, found {key!r}, expected a "
                    f"position from 0 to {len(where) - 1}; --set {here}='[…]' sets the whole list"
                )
            if last:
                where[int(key)] = value
            where = where[int(key)]
        else:
            raise ConfigError(
                f"--set {path}: {here} is {where!r}, which has no keys; expected a section or a list"
            )
