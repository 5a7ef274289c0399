"""The two sanity tests: planted neurons, ours and other measures, and what the paper says of them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from core.errors import ConfigError, ShapeError
from core.metrics import METRICS, Metric, average_precision, pearson, switched_on
from core.sanity import SanityReport, sanity_tests

NAMES = sorted(METRICS)


def planted(
    neurons: int = 40, images: int = 3000, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Concepts on 1 to 4 % of the images, and neurons that fire on theirs and hardly elsewhere."""
    rng = np.random.default_rng(0)
    labels = rng.random((images, neurons)) < np.linspace(0.01, 0.04, neurons)
    activations = np.maximum(labels * rng.uniform(1, 3, labels.shape), 0)
    return activations + noise * np.abs(rng.standard_normal(labels.shape)), labels


def on_both(activations: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    a, c = switched_on(activations), labels >= 0.5
    return a, c, (a & c).sum(axis=0)


def share_of_labels_found(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    _, c, both = on_both(activations, labels)
    return both / c.sum(axis=0)


def share_of_activity_labelled(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    a, _, both = on_both(activations, labels)
    return both / a.sum(axis=0)


def accuracy(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    a, c, _ = on_both(activations, labels)
    return (a == c).mean(axis=0)


def roc_area(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    pairs = zip(switched_on(activations).T, labels.T, strict=True)
    return np.array([roc_auc_score(a, c) for a, c in pairs])


def roc_area_of_labels(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.array(
        [roc_auc_score(c >= 0.5, a) for a, c in zip(activations.T, labels.T, strict=True)]
    )


def auprc_of_labels(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return average_precision(labels >= 0.5, activations)


@pytest.fixture(scope="module")
def reports() -> dict[str, SanityReport]:
    others: dict[str, Metric] = {
        "labels found": share_of_labels_found,
        "activity labelled": share_of_activity_labelled,
        "accuracy": accuracy,
        "roc area of labels": roc_area_of_labels,
        "auprc of labels": auprc_of_labels,
    }
    return sanity_tests({**METRICS, **others}, *planted(), repeats=5)


@pytest.mark.parametrize("name", [*NAMES, "auprc of labels"])
def test_our_measures_notice_labels_missing_and_labels_too_many(
    reports: dict[str, SanityReport], name: str
) -> None:
    assert reports[name].passes
    assert (reports[name].missing_drop > 0).all()
    assert (reports[name].extra_drop > 0).all()


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("labels found", False, True),
        ("activity labelled", True, False),
        ("accuracy", False, False),
        ("roc area of labels", False, True),
    ],
)
def test_measures_fail_where_the_paper_says_they_do(
    reports: dict[str, SanityReport], name: str, missing: bool, extra: bool
) -> None:
    report = reports[name]
    assert (report.passes_missing, report.passes_extra) == (missing, extra)
    assert not report.passes


def test_a_perfect_explanation_falls_as_far_as_arithmetic_says() -> None:
    labels = np.zeros((1000, 1), dtype=bool)
    labels[:40] = True
    found = sanity_tests(METRICS, labels.astype(float), labels, repeats=3)
    # Half of the labels gone: 20 of 40 found. As many added: 40 of 80 right.
    for name, score in {"cosine": np.sqrt(0.5), "f1": 2 / 3, "iou": 0.5}.items():
        assert found[name].score[0] == pytest.approx(1)
        assert found[name].missing_drop[0] == pytest.approx(1 - score)
        assert found[name].extra_drop[0] == pytest.approx(1 - score)
    for drop, ones in ((found["pearson"].missing_drop, 20), (found["pearson"].extra_drop, 80)):
        changed = np.zeros(1000)
        changed[:ones] = 1
        expected = np.corrcoef(labels[:, 0], changed)[0, 1]
        assert drop[0] == pytest.approx(1 - expected)
    assert found["auprc"].extra_drop[0] == pytest.approx(0.5)
    assert found["auprc"].missing_drop[0] == pytest.approx(1 - (0.5 + 0.5 * 0.04))


def test_simulated_scores_are_put_to_the_tests_like_labels() -> None:
    activations, labels = planted()
    rng = np.random.default_rng(1)
    scores = 50 * np.where(labels, rng.beta(6, 2, labels.shape), rng.beta(1, 30, labels.shape)) - 7
    cut = np.array([np.median(scores[labels[:, j], j]) for j in range(labels.shape[1])])
    found = sanity_tests({"pearson": pearson}, activations, scores, positive=cut, repeats=4)
    assert found["pearson"].passes


def test_a_measure_that_falls_by_chance_only_does_not_pass() -> None:
    rng = np.random.default_rng(2)
    noise: Metric = lambda a, c: 1 + rng.standard_normal(a.shape[1])  # noqa: E731
    report = sanity_tests({"noise": noise}, *planted(neurons=100))["noise"]
    assert report.missing_share < 0.75
    assert not report.passes_missing
    assert not report.passes_extra


@pytest.mark.filterwarnings("error")
def test_neurons_that_cannot_be_tested_do_not_take_part() -> None:
    activations, labels = planted(neurons=6)
    labels[:, 0] = False
    labels[:, 1] = True
    labels[:, 2] = np.arange(len(labels)) == 5
    activations[:, 3] = 1.0
    found = sanity_tests({"pearson": pearson}, activations, labels, repeats=3)["pearson"]
    assert np.isnan(found.missing_drop[:4]).all()
    assert np.isfinite(found.missing_drop[4:]).all()
    assert found.passes
    none = sanity_tests({"pearson": pearson}, activations[:, :4], labels[:, :4], repeats=3)
    assert np.isnan(none["pearson"].missing_share)
    assert not none["pearson"].passes


def test_the_same_seed_gives_the_same_falls_whatever_measures_are_beside() -> None:
    activations, labels = planted(neurons=5)
    alone = sanity_tests({"pearson": pearson}, activations, labels, seed=3, repeats=3)
    beside = sanity_tests(METRICS, activations, labels, seed=3, repeats=3)
    other = sanity_tests({"pearson": pearson}, activations, labels, seed=4, repeats=3)
    np.testing.assert_array_equal(alone["pearson"].extra_drop, beside["pearson"].extra_drop)
    assert (alone["pearson"].extra_drop != other["pearson"].extra_drop).all()


def test_what_cannot_be_tested_is_refused() -> None:
    activations, labels = planted(neurons=3, images=50)
    with pytest.raises(ShapeError, match="concept of its explanation"):
        sanity_tests(METRICS, activations, labels[:, :2])
    with pytest.raises(ConfigError, match="at least 2"):
        sanity_tests(METRICS, activations, labels, repeats=1)
