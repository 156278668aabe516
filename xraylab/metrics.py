"""Metrics of one label, exact, and their bootstrap.

Point values are scikit-learn's. The bootstrap draws clusters (patients, or studies where patients are not known) with
replacement; drawing a cluster k times is giving its rows weight k, so every resample is a row of weights and all of
them are computed at once. The weighted forms agree with scikit-learn's ``sample_weight``.

Shapes: N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

RANKED = ("auroc", "average_precision")
THRESHOLDED = ("accuracy", "f1", "kappa", "sensitivity", "specificity")
METRICS = RANKED + THRESHOLDED
COUNTS = ("positives", "negatives", "uncertain", "blank")
LEVEL = 0.95
CHUNK = 2_000_000  # weights held at a time
SAME = 1e-12  # bounds that are nearer than this are equal but for rounding
KEPT = 300_000_000  # bytes of resamples that are kept, for all labels and groups of a split


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
    return _weighted(truth[order], probability[order], weights[:, order], threshold)


def _weighted(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """See :func:`weighted`; rows come by falling probability.

    Both ranked metrics are sums over positives, of which there are few: all else that they need of the rows is the
    weight of those up to a row.
    """
    positive = np.flatnonzero(truth == 1)
    edges = np.r_[0, np.flatnonzero(np.diff(probability)) + 1, len(truth)]  # ties share a step, from edge to edge
    step = np.searchsorted(edges, positive, side="right")
    start, end = edges[step - 1], edges[step]
    called = int((probability >= threshold).sum())
    rows, tps = _running(weights), _running(np.take(weights, positive, axis=1))  # weight of the first k rows, and positives

    def up_to(k: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Weight of positives and of negatives among the first k rows."""
        tp = np.take(tps, np.searchsorted(positive, k), axis=1).astype(float)
        return tp, np.take(rows, k, axis=1) - tp

    total_p, total_n = up_to(len(truth))
    p = np.diff(tps, axis=1)
    (tp_end, fp_end), (_, fp_start) = up_to(end), up_to(start)
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = (p * (total_n[:, None] - (fp_start + fp_end) / 2)).sum(1) / (total_p * total_n)
        precision = tp_end / np.maximum(tp_end + fp_end, np.finfo(float).tiny)
        ap = (p * precision).sum(1) / total_p
        ap = np.where(total_n > 0, ap, np.nan)
    at = rates(*up_to(called), total_p, total_n)
    return {"auroc": auroc, "average_precision": ap, **{metric: at[metric] for metric in THRESHOLDED}}


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


def _running(weights: np.ndarray) -> np.ndarray:
    """(R,N+1), the sum of the first k columns of (R,N)."""
    out = np.zeros((len(weights), weights.shape[1] + 1), np.int32 if weights.dtype.kind in "iu" else float)
    np.cumsum(weights, axis=1, out=out[:, 1:])
    return out


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
        order = np.argsort(-probability, kind="stable")
        of = self.clusters[rows[order]]
        parts = [
            _weighted(truth[order], probability[order], np.take(drawn, of, axis=1), threshold)
            for drawn in self._drawn(max(1, CHUNK // len(rows)))
        ]
        return {m: np.concatenate([part[m] for part in parts]) for m in METRICS}

    def sums(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sums over a subset of the rows in every resample, float64 (R,C): what counts and means are made of.

        Args:
            rows: (M,) indices of rows.
            values: (M,C).
        """
        size = self._size
        cells = np.stack([np.bincount(self.clusters[rows], column, size) for column in values.T.astype(float)], axis=1)
        parts = [drawn @ cells for drawn in self._drawn(max(1, CHUNK // size))] if self.number else []
        return np.concatenate(parts) if parts else np.zeros((0, values.shape[1]))

    def _drawn(self, chunk: int) -> Iterator[np.ndarray]:
        """How often each cluster is drawn, uint8 (at most ``chunk``, K), resample by resample; drawn once if memory allows."""
        if self._size * self.number <= KEPT:
            yield from (self._all[start : start + chunk] for start in range(0, self.number, chunk))
        else:
            yield from self._draw(min(chunk, max(1, CHUNK // self._size)))

    @cached_property
    def _size(self) -> int:
        return int(self.clusters.max()) + 1

    @cached_property
    def _all(self) -> np.ndarray:
        return np.concatenate(list(self._draw(max(1, CHUNK // self._size))))

    def _draw(self, chunk: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.number, chunk):
            drawn = rng.multinomial(self._size, np.full(self._size, 1 / self._size), size=min(chunk, self.number - start))
            yield drawn.astype(np.uint8)  # each is about 1


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Percentile interval of replicates (R,); None unless most of them are defined."""
    defined = values[np.isfinite(values)]
    if len(defined) < max(1, len(values) / 2):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def result(value: float | None, n: int, replicates: np.ndarray | None = None, reason: str | None = None) -> dict[str, Any]:
    """A metric as it leaves the program: value, low, high, n, reason.

    Resamples that agree, as those of a classifier without mistakes do, know nothing of how far the value may be off: they
    give no interval, rather than one without width.
    """
    low, high = None, None
    if value is not None and replicates is not None and len(replicates):
        bounds = interval(replicates)
        if bounds is None:
            reason = "no interval: undefined in most resamples"
        elif bounds[1] - bounds[0] < SAME:
            reason = "no interval: the same in 95% of the resamples, or more"
        else:
            low, high = bounds
    return {"value": value, "low": low, "high": high, "n": n, "reason": reason}


def number(metric: dict[str, Any]) -> str:
    """A result in words: ``0.912 (0.871-0.944)``, or a dash where undefined."""
    if metric["value"] is None:
        return "-"
    if isinstance(metric["value"], int):
        return str(metric["value"])
    bounds = "" if metric["low"] is None else f" ({metric['low']:.3f}-{metric['high']:.3f})"
    return f"{metric['value']:.3f}{bounds}"
