"""Metrics against scikit-learn, and what is undefined."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from xraylab.metrics import METRICS, Resamples, interval, point, result, undefined, weighted

REFERENCE = {
    "auroc": lambda y, p, w: sk.roc_auc_score(y, p, sample_weight=w),
    "average_precision": lambda y, p, w: sk.average_precision_score(y, p, sample_weight=w),
    "accuracy": lambda y, p, w: sk.accuracy_score(y, p >= 0.5, sample_weight=w),
    "f1": lambda y, p, w: sk.f1_score(y, p >= 0.5, sample_weight=w),
    "kappa": lambda y, p, w: sk.cohen_kappa_score(y == 1, p >= 0.5, sample_weight=w),
    "sensitivity": lambda y, p, w: sk.recall_score(y, p >= 0.5, sample_weight=w),
    "specificity": lambda y, p, w: sk.recall_score(y, p >= 0.5, pos_label=0, sample_weight=w),
}


def data(seed, n=80, ties=True):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    p = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1)
    return y, np.round(p, 1) if ties else p, rng


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ties", [True, False])
def test_values_and_weighted_forms_agree_with_sklearn(metric, ties):
    for seed in range(5):
        y, p, rng = data(seed, ties=ties)
        assert point(metric, y, p) == pytest.approx(REFERENCE[metric](y, p, None), abs=1e-12)
        weights = rng.integers(0, 4, (6, len(y))).astype(float)
        ours = weighted(y, p, weights)[metric]
        for w, value in zip(weights, ours, strict=True):
            assert value == pytest.approx(REFERENCE[metric](y, p, w), abs=1e-12)


@pytest.mark.parametrize(
    ("truth", "without"),
    [
        ([1, 1], ["auroc", "average_precision", "kappa", "specificity"]),
        ([0, 0], ["auroc", "average_precision", "f1", "kappa", "sensitivity"]),
        ([], list(METRICS)),
    ],
)
def test_undefined_is_none_with_a_reason_and_never_zero(truth, without):
    y, p = np.array(truth, int), np.linspace(0.2, 0.9, len(truth))
    for metric in METRICS:
        assert (point(metric, y, p) is None) == (metric in without)
        assert bool(undefined(metric, y)) == (metric in without)
        if len(truth):
            assert np.isnan(weighted(y, p, np.ones((1, len(y))))[metric][0]) == (metric in without)


def test_resamples_draw_whole_clusters():
    clusters = np.repeat(np.arange(30), 4)
    y, p, _ = data(0, 120)
    draws = Resamples(clusters, 300, seed=1)
    one = draws.replicates(np.arange(120), y, p, 0.5)["auroc"]
    assert np.array_equal(one, draws.replicates(np.arange(120), y, p, 0.5)["auroc"]), "seeded"
    # every study four times over: by cluster the interval is twice as wide as by row
    y4, p4 = np.repeat(y[:30], 4), np.repeat(p[:30], 4)
    by_patient = interval(Resamples(clusters, 2000, 0).replicates(np.arange(120), y4, p4, 0.5)["auroc"])
    by_row = interval(Resamples(np.arange(120), 2000, 0).replicates(np.arange(120), y4, p4, 0.5)["auroc"])
    ratio = (by_patient[1] - by_patient[0]) / (by_row[1] - by_row[0])
    assert 1.6 < ratio < 2.5


def test_memory_is_bounded_by_chunks(monkeypatch):
    y, p, _ = data(0, 50)
    whole = Resamples(np.arange(50), 64, 3).replicates(np.arange(50), y, p, 0.5)
    monkeypatch.setattr("xraylab.metrics.CHUNK", 200)
    cut = Resamples(np.arange(50), 64, 3).replicates(np.arange(50), y, p, 0.5)
    assert all(np.array_equal(whole[m], cut[m]) for m in METRICS)
    monkeypatch.setattr("xraylab.metrics.KEPT", 0)
    drawn_anew = Resamples(np.arange(50), 64, 3).replicates(np.arange(50), y, p, 0.5)
    assert all(np.array_equal(whole[m], drawn_anew[m]) for m in METRICS)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Sensitivity of 0.8 over 100 positives: 95% intervals should hold it about 95 times in 100."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        called = rng.random(100) < 0.8
        values = Resamples(np.arange(100), 400, seed).replicates(np.arange(100), np.ones(100, int), called.astype(float), 0.5)
        low, high = interval(values["sensitivity"])
        held += low <= 0.8 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_a_result_has_the_five_fields():
    spread = result(0.5, 10, np.linspace(0, 1, 41))
    assert (spread["low"], spread["high"], spread["reason"]) == (pytest.approx(0.025), pytest.approx(0.975), None)
    assert result(None, 0, None, "why") == {"value": None, "low": None, "high": None, "n": 0, "reason": "why"}
    assert result(0.5, 10, np.full(100, np.nan))["reason"] == "no interval: undefined in most resamples"


def test_resamples_that_agree_give_no_interval():
    truth, probability = np.repeat([0, 1], 20), np.repeat([0.1, 0.9], 20)
    samples = Resamples(np.arange(40), 300, 0).replicates(np.arange(40), truth, probability, 0.5)
    for metric in METRICS:  # without a mistake
        found = result(point(metric, truth, probability), 40, samples[metric])
        assert (found["value"], found["low"], found["high"]) == (1, None, None)
        assert found["reason"] == "no interval: the same in 95% of the resamples, or more"
    never = Resamples(np.arange(40), 300, 0).replicates(np.arange(40), truth, np.full(40, 0.1), 0.5)
    assert result(0.0, 40, never["kappa"])["low"] is None, "equal but for rounding"
    probability[:3] = 0.8
    samples = Resamples(np.arange(40), 300, 0).replicates(np.arange(40), truth, probability, 0.5)["specificity"]
    found = result(point("specificity", truth, probability), 40, samples)
    assert found["low"] < found["value"] < found["high"]
