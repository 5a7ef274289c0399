"""`neuroscribe serve`: the atlas and nothing else, from a disk or a bucket, until it is told to stop."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from atlas_planted import Layer, planted
from browsing import write_atlas

from core.errors import ConfigError
from pipeline.cli import main
from pipeline.rundir import Run
from pipeline.serve import AtlasServer

ROOT = Path(__file__).resolve().parents[1]
SECRET = b"what nobody outside may read"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with an atlas, with a secret beside it and in it."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "secret.js").write_bytes(SECRET)
    write_atlas(folder / "run" / "atlas", planted(layers=(Layer("conv1", 9),), images=60))
    run = Run(folder / "run")
    run.commit("atlas", "atlas/index.html", "made", 1)
    run.folder.write("run.yaml", SECRET)
    run.folder.write("beside.js", SECRET)
    run.folder.write("atlas/.hidden.js", SECRET)
    run.folder.write("atlas/notes.txt", SECRET)
    (folder / "run/atlas/link.js").symlink_to(folder / "secret.js")
    (folder / "run/atlas/up").symlink_to(folder)
    return run


@contextmanager
def served(run: Run) -> Iterator[AtlasServer]:
    with AtlasServer(run, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: AtlasServer, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """An answer to exactly this path, which no client has put in order before."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_every_file_of_the_atlas_is_served_as_it_is(run: Run) -> None:
    atlas = Path(run.folder.path("atlas"))
    ours = {"link.js", "up", "notes.txt", ".hidden.js"}
    files = [f for f in atlas.rglob("*") if f.is_file() and not ours & set(f.parts)]
    assert {file.suffix for file in files} == {".html", ".js", ".css", ".jpg"}
    with served(run) as server:
        assert server.server_address[0] == "127.0.0.1"
        for file in files:
            answer, body = ask(server, f"/{file.relative_to(atlas).as_posix()}?v=1")
            assert (answer.status, body) == (200, file.read_bytes())
            assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
        answer, body = ask(server, "/")
        assert body == (atlas / "index.html").read_bytes()
        assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
        assert answer.getheader("Cache-Control") == "no-cache"
        answer, body = ask(server, "/", "HEAD")
        assert (answer.status, body) == (200, b"")
        assert answer.getheader("Content-Length") == str((atlas / "index.html").stat().st_size)


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.js",
        "/../run.yaml",
        "/..%2fbeside.js",
        "/%2e%2e/beside.js",
        "/%2e%2e%2fbeside.js",
        "/..%5cbeside.js",
        "/data/../../beside.js",
        "//../beside.js",
        "/{root}/beside.js",
        "//{root}/beside.js",
        "/link.js",
        "/up/secret.js",
        "/.hidden.js",
        "/notes.txt",
        "/data/",
        "/data",
        "/index.html%00.js",
        "/index.html%0a",
        "/assets//atlas.css",
        "http://127.0.0.1/../secret.js",
        "//[",
        "*",
        "/" + "a/" * 5000 + "b.js",
    ],
)
def test_nothing_but_the_atlas_can_be_asked_for(run: Run, path: str) -> None:
    with served(run) as server:
        answer, body = ask(server, path.replace("{root}", run.folder.url))
        assert answer.status == 404
        assert SECRET not in body


def test_only_this_machine_s_names_are_answered_to_and_nothing_can_be_written(run: Run) -> None:
    with served(run) as server:
        for host, status in [
            ("localhost:9", 200),
            ("127.0.0.1", 200),
            ("[::1]:80", 200),
            ("evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("[", 403),
            ("", 403),
        ]:
            assert ask(server, "/index.html", Host=host)[0].status == status, host
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(server, "/index.html", method)[0].status == 501


def test_an_atlas_in_a_bucket_is_served_like_one_on_disk(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto.server", reason="install the extra 'dev' for moto[server]")
    import s3fs

    storage = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    storage.start()
    host, port = storage.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        bucket = s3fs.S3FileSystem()
        bucket.mkdir("atlases")
        bucket.put(run.folder.path("manifest.json"), "atlases/run/manifest.json")
        for name in ("index.html", "data/overview.js", "assets/app.js", "notes.txt"):
            bucket.put(run.folder.path(f"atlas/{name}"), f"atlases/run/atlas/{name}")
        with served(Run.open("s3://atlases/run")) as server:
            for name in ("index.html", "data/overview.js", "assets/app.js"):
                answer, body = ask(server, f"/{name}")
                assert (answer.status, body) == (200, run.folder.read(f"atlas/{name}"))
            for name in ("data/lost.js", "../manifest.json", "notes.txt"):
                assert ask(server, f"/{name}")[0].status == 404
            monkeypatch.setattr("pipeline.outages.WAITS", ())  # half a minute of trying again
            storage.stop()
            assert ask(server, "/index.html")[0].status == 502
    finally:
        storage.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_the_atlas_is_and_ends_with_0_when_stopped(
    run: Run, kind: signal.Signals
) -> None:
    command = [sys.executable, "-m", "pipeline", "serve", run.folder.url, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    address, _, about = line.partition(" ")
    assert run.folder.url in about
    assert address.startswith("http://127.0.0.1:")
    # A browser keeps its connection open, which must not keep the server.
    connection = http.client.HTTPConnection("127.0.0.1", int(address.strip("/").rsplit(":")[-1]))
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    process.send_signal(kind)
    _, complaints = process.communicate(timeout=20)
    connection.close()
    assert (process.returncode, complaints) == (0, "")


def test_what_cannot_be_served_is_refused_with_what_to_do(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
    shutil.copy(run.folder.path("manifest.json"), tmp_path)
    assert main(["serve", str(tmp_path)]) == 2
    assert "has no atlas" in capsys.readouterr().err
    with served(run) as server:
        assert main(["serve", run.folder.url, "--port", str(server.server_port)]) == 2
        assert "--port 0 takes any free one" in capsys.readouterr().err
        with pytest.raises(ConfigError, match="cannot be had"):
            AtlasServer(run, 70000)
