"""Metrics against scikit-learn, and what is undefined."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from xraylab.evaluation import metrics
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.intervals import Clusters, Interval, none
from xraylab.evaluation.metrics import METRICS, PPV, intervals_of, number, point, result, undefined, without_interval
from xraylab.evaluation.predictions import PredictionTable

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
def test_values_agree_with_sklearn_and_influences_with_its_weights(metric, ties):
    y, p, _ = data(0, 40, ties=ties)
    value = point(METRICS[metric], y, p)
    assert value == pytest.approx(REFERENCE[metric](y, p, None), abs=1e-12)
    found = intervals_of({metric: value}, Clusters(np.arange(len(y))), np.arange(len(y)), y, p >= 0.5, p)[metric]
    assert found.reason is None
    h, own = 1e-4, found.influence[::3]
    slope = [(REFERENCE[metric](y, p, 1 + h * w) - REFERENCE[metric](y, p, 1 - h * w)) / (2 * h) for w in np.eye(len(y))[::3]]
    moved = np.abs(slope) > 1e-9
    np.testing.assert_array_equal(np.abs(own) > 1e-9, moved)
    ratio = own[moved] / np.array(slope)[moved]  # a residual is a little smaller than an error, which is undone
    assert ((ratio > 1) & (ratio < 1.06)).all()


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
        assert (point(METRICS[metric], y, p) is None) == (metric in without)
        assert bool(undefined(METRICS[metric], y)) == (metric in without)


def test_a_result_has_the_five_fields():
    found = Interval(0.5, 0.25, 0.75, None, np.zeros(3))
    assert result(0.5, 10, found) == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 10, "reason": None}
    assert result(0.5, 10) == {"value": 0.5, "low": None, "high": None, "n": 10, "reason": None}, "none was asked for"
    assert result(None, 0, None, "why") == {"value": None, "low": None, "high": None, "n": 0, "reason": "why"}
    lacking = result(0.5, 10, none(0.5, "3 positive"))
    assert lacking == {"value": 0.5, "low": None, "high": None, "n": 10, "reason": "no interval: 3 positive"}
    said = ["0.500 (0.250-0.750)", "0.500 (no interval)", "0.500", "-", "3"]
    shown = (result(0.5, 10, found), lacking, result(0.5, 10), result(None, 0, None, "why"), result(3, 3))
    assert [number(m) for m in shown] == said


def test_why_there_is_no_interval_is_said_once_for_all_metrics_of_a_name():
    few, well = result(0.5, 10, none(0.5, "3 positive")), result(0.5, 10, Interval(0.5, 0.2, 0.8, None, np.zeros(1)))
    of = {"rare": dict.fromkeys(METRICS, few), "common": dict.fromkeys(METRICS, well)}
    assert without_interval(of) == ["no interval of any metric of rare: 3 positive"]
    of["rare"] = {**of["rare"], "specificity": well, "kappa": result(None, 10, None, "no positive study")}
    (said,) = without_interval(of)
    assert said == "no interval of auroc, average precision, accuracy, f1, sensitivity of rare: 3 positive"


def test_a_metric_of_calls_put_into_the_list_says_why_it_has_no_value(monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "ppv", PPV)
    frame = pd.DataFrame({"id": list("abcd"), "patient": "", "group": "all", "split": "test"})
    frame["p_x"], frame["y_x"] = [0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 1.0]
    found = evaluate_split(PredictionTable(frame), False)["labels"]["x"]["ppv"]
    assert (found["value"], found["reason"]) == (None, "no study is called positive")
