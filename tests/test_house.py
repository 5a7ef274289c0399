"""The house: which room may import which, and how large a module may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "actors", "pipeline")
MAY_IMPORT = {"core": {"core"}, "actors": {"core", "actors"}, "pipeline": set(ROOMS)}

#: What mathematics has no business with.
NOT_IN_CORE = {
    "ray",
    "pyarrow",
    "fsspec",
    "s3fs",
    "pathlib",
    "os",
    "io",
    "time",
    "open_clip",
    "timm",
}

#: What tasks run that decode images or read tables: PyTorch takes two seconds, and half of their memory.
WITHOUT_TORCH = (
    "calibration",
    "choose",
    "concepts",
    "decoding",
    "fit",
    "held_out",
    "images_table",
    "moments",
    "report_scores",
    "sanity",
    "screening",
    "sharpen",
    "simulate",
    "thumbnails",
)

MODULES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found}


def test_there_are_modules_in_every_room() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_from_pipeline_to_actors_to_core(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert imported(path) & set(ROOMS) <= MAY_IMPORT[room]
    if room != "pipeline":
        assert "ray" not in imported(path)
    if room == "core":
        assert not imported(path) & NOT_IN_CORE


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_has_one_subject_and_says_which(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module says what it is for"
    assert len(text.splitlines()) <= 420


def test_tasks_that_decode_or_read_tables_start_without_pytorch() -> None:
    imports = "\n".join(f"import pipeline.{name}" for name in WITHOUT_TORCH)
    program = f"import sys\n{imports}\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_the_readme_names_the_two_commands_that_the_makefile_has() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("demo", "test"):
        assert f"make {command}" in readme[:4000]
        assert re.search(rf"^{command}:", makefile, re.M)
