"""A real browser for tests: where it is, pages that note every fault, and audits for accessibility."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.atlas.build import build_atlas
from pipeline.atlas.data import AtlasData

#: Debian's and others' names of the browser. Playwright's own download would need the network.
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def write_atlas(folder: Path, data: AtlasData) -> Path:
    """Build an atlas in a folder, and return the folder."""

    def write(path: str, content: bytes) -> None:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    build_atlas(data, write)
    return folder


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; the test is skipped, with what to install, where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("Playwright is not installed: pip install -e '.[dev]'")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        yield playwright.chromium.launch(executable_path=path, args=options)


class Visit:
    """A page, and everything that went wrong while it was open."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.faults: list[str] = []
        self.asked: set[str] = set()
        page.on("console", self._message)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("requestfailed", self._failed)
        page.on("request", lambda request: self.asked.add(request.url))
        page.on("response", self._response)

    def _failed(self, request: Any) -> None:
        # A page that is left while its pictures load gives their requests up itself.
        if request.failure != "net::ERR_ABORTED":
            self.faults.append(f"failed: {request.url} ({request.failure})")

    def _message(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text}")

    def _dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")

    def open(self, address: str, shows: str | None = None) -> Any:
        """Open an address as if for the first time, and return the page once it is drawn.

        Args:
            address: A page of an atlas, or any other.
            shows: What a page that is not of an atlas shows when it is drawn, as a selector.
        """
        self.page.goto("about:blank")  # an address that differs by its fragment alone loads nothing
        self.page.goto(address)
        if shows is None:
            self.settle()
        else:
            self.page.wait_for_selector(shows)
        return self.page

    def settle(self) -> None:
        """Wait until the page shows its address and no shard is on its way."""
        self.page.wait_for_function(DRAWN)

    def audit(self) -> list[str]:
        """Serious and critical findings of axe, one a line."""
        from axe_playwright_python.sync_playwright import Axe

        # Its preloading of styles asks for what the page's own policy forbids.
        found = Axe().run(self.page, options={"preload": False, "resultTypes": ["violations"]})
        return [
            f"{finding['id']}: {node['html'][:200]}: {node['failureSummary']}"
            for finding in found.response["violations"]
            if finding["impact"] in ("serious", "critical")
            for node in finding["nodes"]
        ]


#: A shard is loaded by a script element that leaves the document when the shard is there.
DRAWN = """() => document.querySelector("main[data-drawn]")
  && !document.querySelector("head script:not([defer])")
  && !document.querySelector("main .waiting")"""
