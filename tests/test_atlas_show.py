"""What `neuroscribe show` prints of one neuron, against the tables that it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from atlas_planted import Layer, planted

from pipeline.expected import EXPLANATIONS, SCORES
from pipeline.rundir import Run
from pipeline.show import neuron_lines


@pytest.mark.parametrize("neuron", range(6))
def test_each_term_is_printed_with_its_share_stability_and_near_synonyms_in_columns(
    tmp_path: Path, neuron: int
) -> None:
    data = planted(layers=(Layer("conv_head", 12),))
    run = Run(tmp_path)
    run.write(EXPLANATIONS, "explanations.parquet", data.explanations, "made")
    run.write(SCORES, "scores.parquet", data.scores, "made")
    lines = neuron_lines(run, f"conv_head:{neuron}")
    for row in data.explanations.to_pylist():
        if row["neuron"] != neuron or not row["chosen"]:
            continue
        start = lines.index(f"  {row['explainer']} (avg pooling)")
        head = next(n for n in range(start, len(lines)) if "of variance" in lines[n])
        end = lines[head].index("of variance") + len("of variance")
        for place, concept in enumerate(row["concepts"]):
            line = lines[head + 1 + place]
            assert line[: line.index(concept)].split() == [
                f"{row['weights'][place]:.3g}".replace("-", "−")
            ]
            assert line.index(concept) == lines[head].index("concept")
            assert line[:end].endswith(f" {100 * row['shares'][place]:.1f} %")
            found, *instead = line[end:].split("%" if row["stability"] else "-", 1)
            if row["stability"]:
                assert float(found) == pytest.approx(100 * row["stability"][place])
            assert instead[0].strip() == ", ".join(row["synonyms"][place])
        total = lines[head + 1 + len(row["concepts"])]
        assert total.split() == ["all", "terms", f"{100 * sum(row['shares']):.1f}", "%"]
