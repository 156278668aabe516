"""Metrics of one label, exact, and how a metric is written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xraylab.errors import listed
from xraylab.evaluation.intervals import HOW, NO_INTERVAL, Interval

RANKED = ("auroc", "average_precision")
THRESHOLDED = ("accuracy", "f1", "kappa", "sensitivity", "specificity")
METRICS = RANKED + THRESHOLDED
COUNTS = ("positives", "negatives", "uncertain", "blank")


def undefined(metric: str, truth: np.ndarray) -> str | None:
    """Why a metric does not exist for these rows, or None if it does.

    Args:
        truth: 0/1 (N,).
    """
    positives, negatives = int(truth.sum()), int(len(truth) - truth.sum())
    if len(truth) == 0:
        return "no study has a label that is scored"
    needs_positive = metric in (*RANKED, "f1", "kappa", "sensitivity")
    needs_negative = metric in (*RANKED, "kappa", "specificity")
    if needs_positive and positives == 0:
        return "no positive study"
    if needs_negative and negatives == 0:
        return "no negative study"
    return None


def point(metric: str, truth: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> float | None:
    """The metric's exact value by scikit-learn, or None where it is undefined.

    Args:
        truth: 0/1 (N,).
        probability: (N,) in [0,1].
        threshold: a study is called positive at or above it.
    """
    from sklearn import metrics as sk

    if undefined(metric, truth):
        return None
    called = probability >= threshold
    if metric == "auroc":
        return float(sk.roc_auc_score(truth, probability))
    if metric == "average_precision":
        return float(sk.average_precision_score(truth, probability))
    if metric == "accuracy":
        return float(sk.accuracy_score(truth, called))
    if metric == "f1":
        return float(sk.f1_score(truth, called))
    if metric == "kappa":
        return float(sk.cohen_kappa_score(truth.astype(bool), called))
    return float(sk.recall_score(truth.astype(bool), called, pos_label=metric == "sensitivity"))


def rates(tp: np.ndarray, fp: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> dict[str, np.ndarray]:
    """What calls are worth, from counts or weights of equal shape: those of ``THRESHOLDED``, ppv and npv; NaN where undefined."""
    fn, tn, total = positives - tp, negatives - fp, positives + negatives
    with np.errstate(divide="ignore", invalid="ignore"):
        agree = (tp + tn) / total
        chance = ((tp + fp) * 1.0 * positives + (fn + tn) * 1.0 * negatives) / (total * 1.0) ** 2
        return {
            "sensitivity": tp / positives,
            "specificity": tn / negatives,
            "ppv": tp / (tp + fp),
            "npv": tn / (fn + tn),
            "accuracy": agree,
            "f1": np.where(positives > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
            "kappa": np.where(positives * 1.0 * negatives > 0, (agree - chance) / (1 - chance), np.nan),
        }


def result(value: float | None, n: int, interval: Interval | None = None, reason: str | None = None) -> dict[str, Any]:
    """A metric as it leaves the program: value, low, high, n, reason.

    Args:
        interval: None: none was asked for, or the metric is undefined.
        reason: why it is undefined; without one, that of the interval.
    """
    why = None if interval is None else interval.reason
    low, high = (None, None) if interval is None or why else (interval.low, interval.high)
    return {"value": value, "low": low, "high": high, "n": n, "reason": reason or why}


def number(metric: Mapping[str, Any]) -> str:
    """A result in words: ``0.912 (0.871-0.944)``, ``0.912 (no interval)`` where there is none, or a dash where undefined."""
    if metric["value"] is None:
        return "-"
    if isinstance(metric["value"], int):
        return str(metric["value"])
    bounds = f" ({NO_INTERVAL})" * lacks_interval(metric)
    if metric["low"] is not None:
        bounds = f" ({metric['low']:.3f}-{metric['high']:.3f})"
    return f"{metric['value']:.3f}{bounds}"


def lacks_interval(metric: Mapping[str, Any]) -> bool:
    """Whether a result has a value and, with a reason, no bounds."""
    return metric["value"] is not None and (metric.get("reason") or "").startswith(NO_INTERVAL)


def without_interval(of: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which of the metrics by name have no interval and why, a sentence without a full stop for each name and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, metrics in of.items():
        for metric, m in metrics.items():
            if metric in METRICS and lacks_interval(m):
                found.setdefault((name, m["reason"].removeprefix(f"{NO_INTERVAL}: ")), []).append(metric.replace("_", " "))
    return [
        f"{NO_INTERVAL} of {'any metric' if len(metrics) == len(METRICS) else listed(metrics)} of {name}: {reason}"
        for (name, reason), metrics in found.items()
    ]


def how_intervals(result: Mapping[str, Any], of: str = "") -> str:
    """How the intervals of a split were made, in words without a full stop.

    Args:
        result: of a split in an ``evaluation.json``; one of a version that drew resamples says so.
        of: what they are of, before the word intervals.
    """
    resamples, over = (result["bootstrap"][k] for k in ("resamples", "over"))
    if not resamples:
        return "no intervals were asked for"
    how = HOW if result.get("intervals") else f"by {resamples} bootstrap resamples"
    return f"95% {of}intervals over {over}, {how}"
