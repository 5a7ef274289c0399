"""The launcher file, judged by Ray's own validator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[1] / "cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def test_rays_validator_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_rays_validator_would_notice_a_misspelt_key(cluster: dict[str, Any]) -> None:
    cluster["idle_timeout_minuts"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config(cluster))


def test_nodes_have_one_image_and_authenticate_by_token(cluster: dict[str, Any]) -> None:
    assert cluster["docker"]["image"].startswith("rayproject/ray:")
    starts = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert all("RAY_AUTH_MODE=token ray start" in start for start in starts)
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]


def test_the_head_computes_nothing_and_workers_scale_to_zero(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head = types[cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    for name, kind in types.items():
        if name != cluster["head_node_type"]:
            assert kind["min_workers"] == 0
            assert kind["node_config"]["IamInstanceProfile"]
            assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
