"""The doctor: what it finds right, what it names as missing, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml

from pipeline import planted
from pipeline.cli import main
from pipeline.doctor import examine
from pipeline.machine import Check, credentials, packages


def write_config(folder: Path, **sections: Any) -> Path:
    planted.write_images(folder, 20)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(planted.config(folder, **sections)))
    return path


def named(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def test_a_configuration_that_can_be_run_has_no_problem_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["doctor", str(config), "--out", str(tmp_path / "runs" / "new"), "--json"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    checks = {c["name"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert {"GPUs", "processor", "memory", "shared memory", "Ray's disk"} < checks.keys()
    assert f"torch {torch.__version__.partition('+')[0]}" in checks["packages"]["found"]
    assert f"ray {ray.__version__}" in checks["packages"]["found"]
    assert "20 images; even/00000.png is" in checks["images"]["found"]
    assert "1 layers" in checks["target"]["found"]
    assert f"{len(planted.NAMES)} concepts" in checks["explainer cells"]["found"]
    for name in ("images", "target", "explainer cells", "run directory"):
        assert checks[name]["state"] in ("ok", "warning")


def test_every_missing_path_is_named_and_the_exit_code_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "concepts.txt").write_text("cat\ndog\n")
    clip = {
        "name": "clip",
        "kind": "open_clip",
        "model": "local-dir:no/such/model",
        "concepts": "concepts.txt",
    }
    lost = clip | {"name": "lost", "concepts": "no-list.txt"}
    target = planted.config(tmp_path)["target"]
    assert isinstance(target, dict)
    config = write_config(
        tmp_path,
        concepts=[clip, lost],
        target=target | {"weights": "no-weights.pt"},
        simulators=[{"name": "judge", "model": "local-dir:other/model"}],
    )
    assert main(["doctor", str(config), "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    for what in ("no/such/model", "no-list.txt", "no-weights.pt", "other/model"):
        told = [line for line in lines if str(tmp_path / what) in line]
        assert told, what
        assert all(line.startswith("problem") for line in told)
    assert any(line.startswith("ok") and "20 images" in line for line in lines)
    assert "problems" in lines[-1]


def test_images_that_are_not_there_and_a_wrong_key_are_problems(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    shutil.rmtree(tmp_path / "images")
    (found,) = named(examine(config, tmp_path), "images")
    assert found.state == "problem"
    assert str(tmp_path / "images") in found.found
    config.write_text(config.read_text() + "\nimagse: {}\n")
    (found,) = named(examine(config, tmp_path), "configuration")
    assert (found.state, "imagse: unknown key" in found.found) == ("problem", True)


def test_a_run_directory_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = named(examine(out=tmp_path / "file" / "run"), "run directory")
    assert found.state == "problem"
    assert "cannot be written" in found.found
    (found,) = named(examine(out=f"memory://{tmp_path}/run"), "run directory")
    assert found.state == "ok"


def test_a_package_that_is_missing_or_too_old_is_a_problem_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "pyarrow" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    *problems, found = list(packages())
    assert {(check.state, check.found.split()[0]) for check in problems} == {
        ("problem", "timm"),
        ("problem", "pyarrow"),
    }
    assert all(check.advice.startswith("pip install '") for check in problems)
    assert (found.state, "timm" in found.found) == ("ok", False)


def test_little_shared_memory_and_a_full_disk_are_warnings_with_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=100 * 2**30, free=2**29)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    checks = examine(out=tmp_path)
    if Path("/dev/shm").is_dir():
        assert "shm-size" in named(checks, "shared memory")[0].advice
    for name in ("Ray's disk", "run directory"):
        (found,) = named(checks, name)
        assert found.state == "warning"
        assert "0.5 GiB free" in found.found
        assert found.advice


def test_nothing_is_fetched_for_models_that_are_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "concepts.txt").write_text("cat\ndog\n")
    clip = {
        "name": "clip",
        "kind": "open_clip",
        "model": "ViT-B-32/openai",
        "concepts": "concepts.txt",
    }
    config = write_config(
        tmp_path,
        target={"model": "torchvision:resnet18", "layers": ["layer?"]},
        concepts=[clip],
        simulators=[{"name": "judge", "model": "hf-hub:owner/name"}],
    )
    checks = examine(config, tmp_path)
    assert [c.state for c in checks if "are fetched" in c.found] == ["warning"] * 3
    assert "4 layers, 960 neurons" in named(checks, "target")[0].found
    assert not any(check.state == "problem" for check in checks)


def test_ray_is_started_where_that_is_asked_for(local_ray: None, tmp_path: Path) -> None:
    (found,) = named(examine(out=tmp_path, with_ray=True), "Ray")
    assert found.state == "ok"
    assert f"{ray.cluster_resources()['CPU']:g} CPUs" in found.found
    assert named(examine(out=tmp_path), "Ray") == []


def test_credentials_are_found_and_never_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    urls = ["s3://bucket/images", "/runs"]
    without = list(credentials(urls, "auto"))
    assert [check.state for check in without] == ["warning", "warning"]
    assert all(check.advice for check in without)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "planted-secret")
    found = list(credentials(urls, "auto"))
    assert [check.state for check in found] == ["ok", "ok"]
    assert "planted-secret" not in str(found)
    assert list(credentials(["/images", "/runs"], None)) == []
