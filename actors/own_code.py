"""The source of a user's own network: of its classes, of its factory, and of the modules that these import.

Source is read, never run. Imports are found in its text, whether they have been carried out yet or not,
so that every process finds the same files, before a network's first pass and after it.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_LIBRARIES = frozenset({"torch", "torchvision", "timm", "open_clip"}) | sys.stdlib_module_names
"""Packages whose source is not read: their classes are told apart by name, settings and weights."""

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_ROOMS = tuple(
    Path(__file__).resolve().parents[1] / name for name in ("core", "actors", "pipeline")
)


def is_library(module: str) -> bool:
    """Whether a module belongs to Python itself or to a library that networks are taken from."""
    return module.partition(".")[0] in _LIBRARIES


def own_sources(kinds: Iterable[type], made_in: str | None = None) -> list[bytes]:
    """Source of a network's classes with all they inherit from, of its factory, and of what these import.

    Imports are followed through all modules that are not installed, and through the factory's own
    package where that is installed. What does not lie in a file of Python is left out.

    Args:
        kinds: The classes of the network's parts.
        made_in: Name of the factory's module.

    Returns:
        Contents of the files in the order of their modules' names.
    """
    roots = {base.__module__ for kind in kinds for base in kind.__mro__} | {made_in or ""}
    roots = {name for name in roots if name and not is_library(name)}
    if roots:
        importlib.invalidate_caches()  # files may have been written since the last import
    package = (made_in or "").partition(".")[0]
    found: dict[str, bytes] = {}
    seen: set[str] = set()
    todo = set(roots)
    while todo:
        name = todo.pop()
        seen.add(name)
        file, folders = _located(name)
        if file is None or Path(file).suffix != ".py":
            continue
        own = _is_own(Path(file)) or (name.partition(".")[0] == package and _is_installed(file))
        if not own and name not in roots:
            continue
        try:
            found[name] = Path(file).read_bytes()
        except OSError:
            continue
        if own:
            new = _imports(found[name], name, folders is not None) | {name.rpartition(".")[0]}
            todo |= {other for other in new - seen if other and not is_library(other)}
    return [found[name] for name in sorted(found)]


def _is_own(file: Path) -> bool:
    """Whether a file is a user's: neither installed nor this program's."""
    return not _is_installed(file) and not any(file.resolve().is_relative_to(r) for r in _ROOMS)


def _is_installed(file: str | Path) -> bool:
    return not _INSTALLED.isdisjoint(Path(file).parts)


def _located(name: str) -> tuple[str | None, Sequence[str] | None]:
    """File of a module and, of a package, where its modules lie. Nothing is imported for it."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return getattr(loaded, "__file__", None), getattr(loaded, "__path__", None)
    above = name.rpartition(".")[0]
    folders = _located(above)[1] if above else None
    if above and folders is None:
        return None, None
    for finder in sys.meta_path:
        spec = finder.find_spec(name, folders)
        if spec is not None:
            return spec.origin, spec.submodule_search_locations
    return None, None


def _imports(text: bytes, name: str, is_package: bool) -> set[str]:
    """Names that the source of a module imports; of ``from a import b`` both a and a.b, which may be none."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".") if is_package else name.split(".")[:-1]
            start = above[: len(above) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found
