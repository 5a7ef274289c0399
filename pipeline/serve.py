"""The atlas on loopback: `neuroscribe serve RUN`, for a run directory on disk or behind any URL.

An atlas on disk opens without this. A bucket that is not public, or a browser that keeps pages from disk
apart, needs somebody who hands out its files, and this hands out nothing else: the paths that can be
asked for are those that an atlas is made of, and only pages that came from here may use the answers.
"""

from __future__ import annotations

import re
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from core.errors import ConfigError, StoppedEarly
from pipeline.rundir import Run
from pipeline.storage import Folder

HOST = "127.0.0.1"

#: What an atlas consists of; other endings are not handed out.
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}

#: A path in an atlas: no empty or hidden part, so neither `..` nor `//`.
_PATH = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)

LONGEST_PATH = 200

#: Names by which this machine may be asked. A page elsewhere whose own name was pointed at loopback
#: would be asking by that name.
_OWN_NAME = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?", re.ASCII)


class AtlasServer(ThreadingHTTPServer):
    """Serves one run's atlas on loopback; start it with `serve_forever`."""

    def __init__(self, run: Run, port: int) -> None:
        """Take the port.

        Args:
            run: A run with an atlas.
            port: 0 for any free one.

        Raises:
            ConfigError: The run has no atlas, or the port cannot be had.
        """
        if not run.folder.exists("atlas/index.html"):  # written last: it stands for all of it
            raise ConfigError(
                f"{run.folder.url!r} has no atlas, which the last stage makes; run the same "
                "'neuroscribe run' again, which goes on where it stopped"
            )
        self.atlas = Folder(run.folder.path("atlas"))
        try:
            super().__init__((HOST, port), _Answer)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} of {HOST} cannot be had: {error}; --port 0 takes any free one"
            ) from error

    @property
    def address(self) -> str:
        """Where the atlas opens."""
        return f"http://{HOST}:{self.server_port}/"

    def read(self, path: str) -> bytes | None:
        """The bytes of a file of the atlas; None where there is no such file.

        A link in a local atlas leads nowhere outside it.
        """
        known = len(path) <= LONGEST_PATH and _PATH.fullmatch(path)
        if not known or Path(path).suffix not in KINDS:
            return None
        place = self.atlas.path(path)
        if "://" not in place:
            inside = Path(place).resolve().is_relative_to(Path(self.atlas.url).resolve())
            if not inside or not Path(place).is_file():
                return None
        try:
            return self.atlas.read(path)
        except FileNotFoundError:
            return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves a page drops what it had asked for; that is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Answer(BaseHTTPRequestHandler):
    """One connection. Answers to GET and HEAD; `http.server` refuses all else."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "neuroscribe", ""
    timeout = 60
    server: AtlasServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        asked, _, query = self.path.partition("?")
        path = unquote(asked).removeprefix("/")
        path += "index.html" if path.endswith("/") or not path else ""
        if not _OWN_NAME.fullmatch(self.headers.get("Host", "")):
            self._send(HTTPStatus.FORBIDDEN, ".html", b"Ask for localhost.", with_body)
            return
        try:
            content = self.server.read(path)
        except Exception as error:  # storages fail in their own ways; a later request may succeed
            self.log_error("%s: %s", path, str(error).partition("\n")[0])
            self._send(HTTPStatus.BAD_GATEWAY, ".html", b"The run cannot be read.", with_body)
            return
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, ".html", b"No such file in this atlas.", with_body)
            return
        # The page asks for everything by the version of its build, which never changes.
        kept = "max-age=31536000, immutable" if query.startswith("v=") else "no-cache"
        self._send(HTTPStatus.OK, Path(path).suffix, content, with_body, kept)

    def _send(
        self,
        status: HTTPStatus,
        suffix: str,
        content: bytes,
        with_body: bool,
        kept: str = "no-store",
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", KINDS[suffix])
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", kept)
        self.send_header("X-Content-Type-Options", "nosniff")
        # Shards are scripts, which a page of any other origin could otherwise load and read.
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """A page asks for hundreds of files; only errors are worth a line."""


def serve(run: Run, port: int) -> None:
    """Serve a run's atlas until SIGINT or SIGTERM, and print where it is.

    Args:
        run: A run with an atlas.
        port: 0 for any free one.

    Raises:
        ConfigError: The run has no atlas, or the port cannot be had.
    """
    with AtlasServer(run, port) as server:
        # In the main thread a signal's error would be lost where it meets a request.
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            print(f"{server.address} shows {run.folder.url}; Ctrl-C stops", flush=True)
            threading.Event().wait()
        except StoppedEarly:
            pass
        finally:
            server.shutdown()
