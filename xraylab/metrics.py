"""Metrics of one label, exact, and their bootstrap.

Point values are scikit-learn's. The bootstrap draws clusters (patients, or studies where patients are not known) with
replacement; drawing a cluster k times is giving its rows weight k, so every resample is a row of weights and all of
them are computed at once. The weighted forms agree with scikit-learn's ``sample_weight``.

Shapes: N rows, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

RANKED = ("auroc", "average_precision")
THRESHOLDED = ("accuracy", "f1", "kappa", "sensitivity", "specificity")
METRICS = RANKED + THRESHOLDED
COUNTS = ("positives", "negatives", "uncertain")
LEVEL = 0.95
CHUNK = 2_000_000  # weights held at a time


def undefined(metric: str, truth: np.ndarray) -> str | None:
    """Why a metric does not exist for these rows, or None if it does.

    Args:
        truth: 0/1 (N,).
    """
    positives, negatives = int(truth.sum()), int(len(truth) - truth.sum())
    if len(truth) == 0:
        return "no study has a certain label"
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


def weighted(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray, threshold: float = 0.5) -> dict[str, np.ndarray]:
    """Every metric for every row of weights; NaN where undefined.

    Args:
        truth: 0/1 (N,).
        probability: (N,).
        weights: (R,N), at least 0.

    Returns:
        metric -> float64 (R,).
    """
    order = np.argsort(-probability, kind="stable")
    truth, probability, weights = truth[order], probability[order], weights[:, order]
    starts = np.flatnonzero(np.r_[True, np.diff(probability) != 0][: len(probability)])  # ties share a step
    called = probability >= threshold
    positive = truth == 1
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.add.reduceat(weights * positive, starts, axis=1)
        n = np.add.reduceat(weights * ~positive, starts, axis=1)
        tps, fps = np.cumsum(p, axis=1), np.cumsum(n, axis=1)
        total_p, total_n = tps[:, -1], fps[:, -1]
        auroc = (n * (tps - p / 2)).sum(1) / (total_p * total_n)
        precision = tps / np.maximum(tps + fps, np.finfo(float).tiny)
        ap = (p * precision).sum(1) / total_p
        ap = np.where(total_n > 0, ap, np.nan)
        tp, fp = weights @ (positive & called), weights @ (~positive & called)
        fn, tn = total_p - tp, total_n - fp
        total = total_p + total_n
        agree = (tp + tn) / total
        chance = ((tp + fp) * total_p + (fn + tn) * total_n) / total**2
        return {
            "auroc": auroc,
            "average_precision": ap,
            "accuracy": agree,
            "f1": np.where(total_p > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
            "kappa": np.where(total_p * total_n > 0, (agree - chance) / (1 - chance), np.nan),
            "sensitivity": tp / total_p,
            "specificity": tn / total_n,
        }


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of clusters, the same for every label, group and metric of a split.

    Args:
        clusters: (N,) cluster number 0..K-1 of each row.
        number: R; 0 for no intervals.
        seed: of the draws.
    """

    clusters: np.ndarray
    number: int
    seed: int

    def replicates(self, rows: np.ndarray, truth: np.ndarray, probability: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
        """Every metric in every resample, (R,), for a subset of the rows; memory stays bounded.

        Args:
            rows: (M,) indices of the rows that ``truth`` and ``probability`` (M,) belong to.
        """
        if len(rows) == 0 or self.number == 0:
            return {m: np.full(self.number, np.nan) for m in METRICS}
        size = int(self.clusters.max()) + 1
        rng = np.random.default_rng(self.seed)
        chunk = max(1, CHUNK // max(size, len(rows)))
        parts: list[dict[str, np.ndarray]] = []
        for start in range(0, self.number, chunk):
            drawn = rng.multinomial(size, np.full(size, 1 / size), size=min(chunk, self.number - start))
            parts.append(weighted(truth, probability, drawn[:, self.clusters[rows]].astype(float), threshold))
        return {m: np.concatenate([part[m] for part in parts]) for m in METRICS}


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Percentile interval of replicates (R,); None unless most of them are defined."""
    defined = values[np.isfinite(values)]
    if len(defined) < max(1, len(values) / 2):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def result(value: float | None, n: int, replicates: np.ndarray | None = None, reason: str | None = None) -> dict[str, Any]:
    """A metric as it leaves the program: value, low, high, n, reason."""
    bounds = interval(replicates) if value is not None and replicates is not None and len(replicates) else None
    if value is not None and replicates is not None and len(replicates) and bounds is None:
        reason = "no interval: undefined in most resamples"
    low, high = bounds if bounds else (None, None)
    return {"value": value, "low": low, "high": high, "n": n, "reason": reason}
