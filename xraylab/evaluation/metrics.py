"""Metrics of one label: what they are, their exact values and intervals, and how a value is written down.

A metric is one object of :class:`Metric`. Listed in :data:`METRICS`, in :data:`RATES` or in both, it appears wherever metrics of
labels, or of operating points, are computed and shown: adding one touches this file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from xraylab.errors import listed
from xraylab.evaluation import intervals
from xraylab.evaluation.intervals import HOW, NO_INTERVAL, Clusters, Interval
from xraylab.evaluation.result import SplitResult, Value, Values

COUNTS = ("positives", "negatives", "uncertain", "blank")


class Scored(NamedTuple):
    """The M studies in which a label is scored.

    Attributes:
        truth: 0/1 (M,).
        score: (M,), what ranks them; None: they are called, and not ranked.
        called: bool (M,), whether a study is called positive.
        clusters: int (M,), whose it is, 0..K-1.
        size: K.
    """

    truth: np.ndarray
    score: np.ndarray | None
    called: np.ndarray
    clusters: np.ndarray
    size: int


@dataclass(frozen=True)
class Metric:
    """A number that says how good the predictions of a label are: all that evaluation, reports and tables need to know of it.

    Attributes:
        name: the key in files.
        title: the name on pages.
        value: ranking metrics: of truth 0/1 (N,) and scores (N,); else None.
        rate: metrics of calls: of the numbers of true positives, false positives, positives and negatives, arrays of equal shape;
            NaN where it is undefined; else None.
        interval: of the value, and what it is of.
        needs: kinds of study, 0 negative and 1 positive, without which it is undefined.
        counted: kinds of study of which an interval takes :data:`xraylab.evaluation.intervals.LEAST`.
        lacks: why it is undefined where its rate is NaN all the same.
    """

    name: str
    title: str
    interval: Callable[[float, Scored], Interval]
    value: Callable[[np.ndarray, np.ndarray], float] | None = None
    rate: Callable[..., np.ndarray] | None = None
    needs: tuple[int, ...] = (0, 1)
    counted: tuple[int, ...] = (0, 1)
    lacks: str = ""


def _roc_auc(truth: np.ndarray, score: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, score))


def _average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, score))


def _f1(tp: np.ndarray, fp: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    return np.where(positives > 0, 2 * tp / (tp + fp + positives), np.nan)


def _kappa(tp: np.ndarray, fp: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Cohen's: one minus the share of studies that are called wrongly over what chance would call wrongly."""
    total, called = positives + negatives, tp + fp
    by_chance = negatives * 1.0 * called / total + positives * 1.0 * (total - called) / total
    return np.where(positives * 1.0 * negatives > 0, 1 - (positives - tp + fp) / by_chance, np.nan)


def _ranked(interval: Callable[..., Interval]) -> Callable[[float, Scored], Interval]:
    def of(value: float, s: Scored) -> Interval:
        assert s.score is not None
        return interval(value, s.truth, s.score, s.clusters, s.size)

    return of


def _share(of: Callable[[Scored], np.ndarray]) -> Callable[[float, Scored], Interval]:
    """The interval of the share of rightly called studies among those that ``of`` picks."""

    def found(value: float, s: Scored) -> Interval:
        there = of(s)
        return intervals.share((s.called == (s.truth == 1))[there], s.clusters[there], s.size)

    return found


def _of_kappa(value: float, s: Scored) -> Interval:
    if s.called.all() or not s.called.any():
        return intervals.none(value, f"every study is called {'positive' if s.called.all() else 'negative'}")
    return intervals.kappa(value, s.truth.astype(int), s.called.astype(int), s.clusters, s.size)


def _of_f1(value: float, s: Scored) -> Interval:
    """F1 is 2 j / (1 + j) of the share j of those that are positive or called so which are both."""
    positive = s.truth == 1
    there = positive | s.called
    found = intervals.share((positive & s.called)[there], s.clusters[there], s.size)
    low, high = (2 * bound / (1 + bound) for bound in (found.low, found.high))
    return replace(found, value=value, low=low, high=high, influence=found.influence * 2 / (1 + found.value) ** 2)


AUROC = Metric("auroc", "AUROC", _ranked(intervals.auroc), value=_roc_auc)
AVERAGE_PRECISION = Metric(
    "average_precision", "average precision", _ranked(intervals.average_precision), value=_average_precision
)
ACCURACY = Metric(
    "accuracy", "accuracy", _share(lambda s: np.ones(len(s.truth), bool)),
    rate=lambda tp, fp, positives, negatives: (tp + negatives - fp) / (positives + negatives), needs=(),
)  # fmt: skip
F1 = Metric("f1", "F1", _of_f1, rate=_f1, needs=(1,))
KAPPA = Metric("kappa", "kappa", _of_kappa, rate=_kappa)
SENSITIVITY = Metric(
    "sensitivity", "sensitivity", _share(lambda s: s.truth == 1), rate=lambda tp, fp, positives, negatives: tp / positives,
    needs=(1,), counted=(1,),
)  # fmt: skip
SPECIFICITY = Metric(
    "specificity", "specificity", _share(lambda s: s.truth == 0),
    rate=lambda tp, fp, positives, negatives: (negatives - fp) / negatives, needs=(0,), counted=(0,),
)  # fmt: skip
PPV = Metric(
    "ppv", "PPV", _share(lambda s: s.called), rate=lambda tp, fp, positives, negatives: tp / (tp + fp), needs=(),
    lacks="no study is called positive",
)  # fmt: skip
NPV = Metric(
    "npv", "NPV", _share(lambda s: ~s.called),
    rate=lambda tp, fp, positives, negatives: (negatives - fp) / (positives - tp + negatives - fp), needs=(),
    lacks="no study is called negative",
)  # fmt: skip

#: of every label, and as the mean over labels: in evaluations, histories, reports, cards and the tables of sweeps
METRICS = {m.name: m for m in (AUROC, AVERAGE_PRECISION, ACCURACY, F1, KAPPA, SENSITIVITY, SPECIFICITY)}
#: of every label at every operating point
RATES = {m.name: m for m in (SENSITIVITY, SPECIFICITY, PPV, NPV, ACCURACY, F1, KAPPA)}


def undefined(metric: Metric, truth: np.ndarray, value: float | None = 0.0) -> str | None:
    """Why a metric does not exist for these rows, or None if it does.

    Args:
        truth: 0/1 (N,).
        value: what it came to; None: it has none.

    >>> undefined(PPV, np.array([1, 0]), None)
    'no study is called positive'
    """
    if len(truth) == 0:
        return "no study has a label that is scored"
    for kind, name in ((1, "positive"), (0, "negative")):
        if kind in metric.needs and not (truth == kind).any():
            return f"no {name} study"
    return (metric.lacks or "it has no value") if value is None else None


def point(metric: Metric, truth: np.ndarray, score: np.ndarray, threshold: float = 0.5) -> float | None:
    """The metric's exact value, or None where it is undefined.

    Args:
        truth: 0/1 (N,).
        score: (N,).
        threshold: a study is called positive at or above it.

    >>> point(SENSITIVITY, np.array([1, 1, 0]), np.array([0.9, 0.2, 0.1]))
    0.5
    """
    if undefined(metric, truth):
        return None
    if metric.value is not None:
        return metric.value(truth, score)
    assert metric.rate is not None
    called, positive = score >= threshold, truth == 1
    counts = (np.count_nonzero(called & positive), np.count_nonzero(called & ~positive))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(metric.rate(*(np.array(n) for n in (*counts, positive.sum(), (~positive).sum()))))
    return value if np.isfinite(value) else None


def rates(tp: np.ndarray, fp: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> dict[str, np.ndarray]:
    """What calls are worth, from counts or weights of equal shape: every metric of :data:`RATES`, NaN where undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: metric.rate(tp, fp, positives, negatives) for name, metric in RATES.items() if metric.rate is not None}


def interval_of(metric: Metric, value: float, scored: Scored) -> Interval:
    """The interval of a metric's value, or none with the reason."""
    if lacks := intervals.lacking(scored.truth, scored.clusters, metric.counted):
        return intervals.none(value, lacks)
    return metric.interval(value, scored)


def intervals_of(
    values: Mapping[str, float | None], clusters: Clusters, rows: np.ndarray, truth: np.ndarray, called: np.ndarray,
    score: np.ndarray | None = None,
) -> dict[str, Interval]:  # fmt: skip
    """The interval of every metric of a label that has a value; none at all where they are not asked for.

    Args:
        values: by the names of :data:`METRICS` or :data:`RATES`.
        rows: (M,) the places of the label's rows in the table.
        truth: 0/1 (M,).
        called: bool (M,), whether a study is called positive.
        score: (M,), for ranking metrics.
    """
    if not clusters.asked:
        return {}
    scored = Scored(truth, score, called, clusters.of[rows], clusters.size)
    known = {**RATES, **METRICS}
    return {name: interval_of(known[name], value, scored) for name, value in values.items() if value is not None}


def result(value: float | None, n: int, interval: Interval | None = None, reason: str | None = None) -> Value:
    """A metric as it leaves the program: value, low, high, n, reason.

    Args:
        interval: None: none was asked for, or the metric is undefined.
        reason: why it is undefined; without one, that of the interval.
    """
    why = None if interval is None else interval.reason
    low, high = (None, None) if interval is None or why else (interval.low, interval.high)
    return {"value": value, "low": low, "high": high, "n": n, "reason": reason or why}


ABSENT = result(None, 0, None, "not in this evaluation")


def numbers(metrics: Values) -> list[str]:
    """The values of a label in words, in the order of :data:`METRICS`; a dash where an evaluation of before has none."""
    return [number(metrics.get(name, ABSENT)) for name in METRICS]


def number(metric: Value) -> str:
    """A result in words: ``0.912 (0.871-0.944)``, ``0.912 (no interval)`` where there is none, or a dash where undefined."""
    if metric["value"] is None:
        return "-"
    if isinstance(metric["value"], int):
        return str(metric["value"])
    bounds = f" ({NO_INTERVAL})" * lacks_interval(metric)
    if metric["low"] is not None:
        bounds = f" ({metric['low']:.3f}-{metric['high']:.3f})"
    return f"{metric['value']:.3f}{bounds}"


def lacks_interval(metric: Value) -> bool:
    """Whether a result has a value and, with a reason, no bounds."""
    return metric["value"] is not None and (metric.get("reason") or "").startswith(NO_INTERVAL)


def without_interval(of: Mapping[str, Values]) -> list[str]:
    """Which of the metrics by name have no interval and why, a sentence without a full stop for each name and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, metrics in of.items():
        for metric, m in metrics.items():
            if metric in METRICS and lacks_interval(m):
                reason = (m["reason"] or "").removeprefix(f"{NO_INTERVAL}: ")
                found.setdefault((name, reason), []).append(metric.replace("_", " "))
    return [
        f"{NO_INTERVAL} of {'any metric' if len(metrics) == len(METRICS) else listed(metrics)} of {name}: {reason}"
        for (name, reason), metrics in found.items()
    ]


def how_intervals(result: SplitResult) -> str:
    """How the intervals of a split were made, in words without a full stop.

    Args:
        result: of a split in an ``evaluation.json``; one of a version that drew resamples says so.
    """
    asked = result["bootstrap"]
    if not asked["resamples"]:
        return "no intervals were asked for"
    how = HOW if result.get("intervals") else f"by {asked['resamples']} bootstrap resamples"
    return f"95% intervals over {asked['over']}, {how}"
