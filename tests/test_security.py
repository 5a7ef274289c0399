"""What must not happen: code from data, writing outside the run, secrets in what is written."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from trouble import environment

from actors.targets import load_target
from core.errors import ConfigError, ModelError
from pipeline import planted
from pipeline.cli import main
from pipeline.config import load_config, parse_config
from pipeline.decoding import DecodeShard
from pipeline.images_config import ImagesConfig
from pipeline.rundir import Run
from pipeline.sources import read_index
from pipeline.storage import Folder
from pipeline.urls import refuse_secret

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+key/0123456789",
    "AWS_SESSION_TOKEN": "planted-session-token-0123456789",
    "HF_TOKEN": "hf_plantedtoken0123456789",
}
HOSTILE = '"><script>alert(1)</script>'
IMAGES = 120


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch '{self.witness}'",))


def secrets_in(folder: Path) -> list[str]:
    """Every file under a folder in which one of the planted secrets can be read."""
    return [
        f"{name} in {path.relative_to(folder)}"
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
        for name, secret in SECRETS.items()
        if secret.encode() in path.read_bytes()
    ]


def test_a_secret_that_is_written_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(b"x" + SECRETS["HF_TOKEN"].encode() + b"y")
    assert secrets_in(tmp_path) == ["HF_TOKEN in a/file"]


# Code from data -------------------------------------------------------------------------------


def test_weights_that_would_run_code_are_refused_and_run_none(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"fc.weight": Malicious(witness)}, tmp_path / "weights.pt")
    with (tmp_path / "plain.pt").open("wb") as file:
        pickle.dump(Malicious(witness), file)
    for name in ("weights.pt", "plain.pt"):
        with pytest.raises(ModelError):
            load_target("torchvision:resnet18", str(tmp_path / name))
    assert not witness.exists()
    # The same file does run code where it is read without care.
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert witness.exists()


def test_a_configuration_runs_no_code(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    config = tmp_path / "config.yaml"
    config.write_text(f"images: !!python/object/apply:os.system ['touch {witness}']\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(config)
    for model in (
        "timm:os.system",
        "torchvision:os:system",
        "os:system",
        "pipeline.planted:network",
    ):
        with pytest.raises(ModelError):
            load_target(model, "random:0")
    assert not witness.exists()


# Secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAPLANTED:planted-secret@bucket/images",
        "https://user:planted-secret@host/images",
        "https://host/images?X-Amz-Signature=planted-secret",
        "https://host/images?version=3&sig=planted-secret",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.write_images(tmp_path, 10)
    config = tmp_path / "config.yaml"
    out = tmp_path / "run"
    for sections in (
        planted.config(tmp_path, images={"path": url}),
        planted.config(tmp_path, concepts=[{"name": "c", "kind": "table", "path": url}]),
    ):
        config.write_text(yaml.safe_dump(sections))
        assert main(["run", str(config), "--out", str(out)]) == 2
    config.write_text(yaml.safe_dump(planted.config(tmp_path)))
    assert main(["run", str(config), "--out", url]) == 2
    rows = pa.table({"path": ["a.png", url]})
    pq.write_table(rows, tmp_path / "list.parquet")
    with pytest.raises(ConfigError):
        read_index(ImagesConfig.model_validate({"path": str(tmp_path / "list.parquet")}))
    said = "".join(capsys.readouterr())
    assert "credentials in the environment" in said
    assert "planted-secret" not in said
    assert not out.exists()


@pytest.mark.parametrize(
    "url", ["s3://bucket/a:b@c.png", "https://host/images?size=3", "/a/b:c@d", "memory://x"]
)
def test_a_url_without_a_secret_is_not_taken_for_one(url: str) -> None:
    refuse_secret(url, "it")


def test_what_is_sent_to_workers_carries_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder = Folder("s3://bucket/run")
    config = parse_config(planted.config(tmp_path), tmp_path)
    for value in (folder, Run(folder), config, DecodeShard({})):
        sent = cloudpickle.dumps(value)
        assert not [name for name, secret in SECRETS.items() if secret.encode() in sent]


# A whole run with hostile names ---------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, str]]:
    """Folder of a run whose tars, labels and concepts have hostile names, Ray's logs, and what was said.

    Secrets are in the environment of the run.
    """
    folder = tmp_path_factory.mktemp("hostile") / "a" / "b"
    planted.write_images(folder, IMAGES)
    paths = sorted((folder / "images").rglob("*.png"))
    (folder / "tars").mkdir()
    ids = {}
    with tarfile.open(folder / "tars/x.tar", "w") as tar:
        link = tarfile.TarInfo("../../link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for number, path in enumerate(paths):
            key = ("../../../outside", "/tmp/absolute", HOSTILE.replace("/", "|"))[number % 3]
            for suffix, data in ((".png", path.read_bytes()), (".cls", HOSTILE.encode())):
                member = tarfile.TarInfo(f"{key}{number}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            ids[f"{path.parent.name}/{path.name}"] = f"x/{key}{number}"
    table = pq.read_table(folder / "concepts.parquet")
    columns = {name: table[name] for name in planted.NAMES[1:]} | {HOSTILE: table[planted.NAMES[0]]}
    renamed = [ids[name] for name in table["image_id"].to_pylist()]
    pq.write_table(pa.table({"image_id": renamed, **columns}), folder / "concepts.parquet")
    shutil.rmtree(folder / "images")
    sections = planted.config(folder, images={"path": str(folder / "tars"), "label": "cls"})
    sections["fit"] = {"folds": 2, "max_length": 2}
    (folder / "config.yaml").write_text(yaml.safe_dump(sections))
    # Short, for the sake of Ray's sockets.
    logs = Path(tempfile.mkdtemp(prefix="logs-"))
    env = environment(RAY_TMPDIR=str(logs), TMPDIR=str(logs), **SECRETS)
    command = [sys.executable, "-m", "pipeline", "run", "config.yaml", "--out", "run"]
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 3, done.stderr
    yield folder, logs, done.stdout + done.stderr
    shutil.rmtree(logs, ignore_errors=True)


def test_no_secret_is_in_the_run_in_logs_or_in_what_is_printed(
    hostile: tuple[Path, Path, str],
) -> None:
    folder, logs, said = hostile
    assert list((folder / "run").rglob("*.parquet"))
    assert [path for path in logs.rglob("*") if path.is_file()], "Ray wrote its logs elsewhere"
    assert secrets_in(folder) == []
    assert secrets_in(logs) == []
    assert not [name for name, secret in SECRETS.items() if secret in said]


def test_names_in_archives_lead_nowhere_outside_the_run(hostile: tuple[Path, Path, str]) -> None:
    folder, _, _ = hostile
    top = folder.parents[1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "concepts.parquet",
        "config.yaml",
        "run",
        "tars",
    ]
    assert [path.name for path in top.iterdir()] == ["a"]
    assert [path.name for path in folder.parent.iterdir()] == ["b"]
    assert not list(Path("/tmp").glob("absolute*.*"))
    run = Run.open(folder / "run")
    assert run.read("images").num_rows == IMAGES, "the link is no image"
    for path in (folder / "run").rglob("*"):
        assert not path.is_symlink()
        assert "script" not in path.name


def test_hostile_names_stay_text_in_the_atlas(hostile: tuple[Path, Path, str]) -> None:
    folder, _, _ = hostile
    run = Run.open(folder / "run")
    assert HOSTILE in run.read("concepts")["concept"].to_pylist()
    assert set(run.read("images")["label"].to_pylist()) == {HOSTILE}
    pages = [path for path in (folder / "run/atlas").rglob("*") if path.suffix in (".html", ".js")]
    assert pages
    for page in pages:
        assert "<script>alert" not in page.read_text(encoding="utf-8"), page
