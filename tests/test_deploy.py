"""Files for clusters: what can be judged of them without one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import cli
from pipeline.config import load_config

ROOT = Path(__file__).parents[1]
KUBERAY = ROOT / "deploy/kuberay"

#: Fields of KubeRay 1.6 and of Kubernetes' batch/v1, as far as these files may use them.
RAY_JOB = {
    "entrypoint",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "backoffLimit",
    "rayClusterSpec",
    "suspend",
}
RAY_CLUSTER = {
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "authOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
WORKER_GROUP = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
}
CRON_JOB = {
    "schedule",
    "concurrencyPolicy",
    "startingDeadlineSeconds",
    "successfulJobsHistoryLimit",
    "failedJobsHistoryLimit",
    "jobTemplate",
    "suspend",
    "timeZone",
}


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((KUBERAY / name).read_text())
    return loaded


def ray_jobs() -> Iterator[dict[str, Any]]:
    yield read("rayjob.yaml")["spec"]
    yield read("raycronjob.yaml")["spec"]["jobTemplate"]


def commands() -> dict[str, list[str]]:
    """Every call of neuroscribe in files for clusters, as words."""
    found = {}
    for path in [
        ROOT / "cluster.yaml",
        ROOT / "deploy/Dockerfile",
        *sorted(KUBERAY.glob("*.yaml")),
    ]:
        text = path.read_text().replace("\\\n#", " ").replace('", "', " ")
        for number, match in enumerate(
            re.finditer(r"neuroscribe ((?:run|doctor|plan)\b[^;'\"\]]*)", text)
        ):
            found[f"{path.name} {number}"] = shlex.split(match[1])
    return found


@pytest.mark.parametrize("words", list(commands().values()), ids=list(commands()))
def test_every_command_is_one_that_the_program_has(words: list[str], tmp_path: Path) -> None:
    chosen = cli._parser().parse_args(words)
    if words[0] == "run":
        # What is set exists, with these types.
        config = load_config(ROOT / "examples/resnet50-siglip.yaml", chosen.set)
        assert config.ray.address == "auto"
        assert config.ray.actors == 4
        assert chosen.out.startswith("s3://")


def test_commands_are_found_in_every_file_for_clusters() -> None:
    files = {name.rpartition(" ")[0] for name in commands()}
    assert files == {
        "cluster.yaml",
        "Dockerfile",
        "rayjob.yaml",
        "raycronjob.yaml",
        "cronjob.yaml",
    }


@pytest.mark.parametrize("job", list(ray_jobs()), ids=["rayjob", "raycronjob"])
def test_a_ray_job_has_known_fields_and_ends_by_itself_before_it_is_ended(
    job: dict[str, Any],
) -> None:
    assert set(job) <= RAY_JOB
    assert job["shutdownAfterJobFinishes"] is True
    limit = re.search(r"--max-seconds (\d+)", job["entrypoint"])
    assert limit
    assert int(limit[1]) + 900 <= job["activeDeadlineSeconds"]
    cluster = job["rayClusterSpec"]
    assert set(cluster) <= RAY_CLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_GROUP
        assert group["minReplicas"] == 0 < group["maxReplicas"]
    gpus = [g["template"]["spec"]["containers"][0] for g in cluster["workerGroupSpecs"]]
    assert [("nvidia.com/gpu" in one["resources"]["limits"]) for one in gpus] == [True, False]


def test_both_ray_jobs_run_the_same() -> None:
    one, other = ray_jobs()
    assert one == other


def test_the_plain_cron_job_submits_one_at_a_time() -> None:
    job = read("cronjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert set(job["spec"]) <= CRON_JOB
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["command"][:3] == ["ray", "job", "submit"]
    names = {entry["name"]: entry for entry in container["env"]}
    assert names["RAY_AUTH_MODE"]["value"] == "token"
    assert "value" not in names["RAY_AUTH_TOKEN"]  # it comes from a secret


def test_the_ray_of_every_file_is_the_same() -> None:
    versions = set()
    for path in [ROOT / "cluster.yaml", ROOT / "deploy/Dockerfile", *KUBERAY.glob("*.yaml")]:
        text = path.read_text()
        versions |= set(re.findall(r"rayproject/ray:(\d+\.\d+\.\d+)", text))
        versions |= set(re.findall(r'rayVersion: "(.*)"', text))
    assert len(versions) == 1
