"""Confidence intervals in closed form: of a label's metrics, of means over labels, and of differences.

A row's influence is how fast a metric changes with the row's weight. Influences are summed within patients, so that studies of
one patient may depend on each other; the squares of these sums make the variance, and their correlations say how metrics
vary together.

- Shares (accuracy, sensitivity, specificity, ppv, npv) have the exact interval (Clopper and Pearson 1934) of as many studies
  as theirs are worth: n over the design effect, less for few patients (Korn and Graubard 1998). F1 and kappa are mapped from
  those of a share.
- AUROC: DeLong's variance, summed by patient as by Obuchowski (1997), on the probit scale. Where positives or negatives are
  few it is often far too small, so most of what it lacks to that of two normal distributions with this AUROC is added.
- Average precision and Brier score: the logit scale, with a t quantile that grows where few studies make the variance.
- A mean over labels, a difference: the distances of the parts to their bounds, squared and added (Zou and Donner 2008).

All were chosen by simulation, see ``experiments/intervals``: where there are fewer than ``LEAST`` positives or negatives, or
they are of fewer than ``PATIENTS`` patients, there is no interval.

Shapes: N rows (studies), K clusters (patients).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri, owens_t, stdtrit

LEVEL = 0.95
LEAST = 10  # positives and negatives that an interval needs
PATIENTS = 2  # that they are of
GAP = 0.75  # of what DeLong's variance lacks to the binormal one, how much is added
GAP_OF_MEAN = 0.1  # the same of the variance of a mean of values in [0,1] to that of a share
SPREAD = 5.0  # degrees of freedom at least of a variance that few studies make
UPPER = (1 + LEVEL) / 2
Z = float(ndtri(UPPER))
TINY = 1e-28
ROUNDED = 1e-12  # values that are nearer to 0 or 1 are that but for rounding
NO_INTERVAL = "no interval"
HOW = (
    "in closed form: exact for shares, DeLong's variance for AUROCs, the rest by influence; none with fewer than "
    f"{LEAST} positives or negatives"
)


@dataclass(frozen=True)
class Interval:
    """The bounds of an estimate; NaN with a reason where there are none.

    Attributes:
        influence: float64 (K,) of each cluster on the estimate; empty where there are no bounds.
        worth: how many independent rows it is made of.
    """

    value: float
    low: float
    high: float
    reason: str | None
    influence: np.ndarray
    worth: float = 1.0


def none(value: float, reason: str) -> Interval:
    """No interval, with the reason."""
    return Interval(value, np.nan, np.nan, f"{NO_INTERVAL}: {reason}", np.zeros(0))


@dataclass(frozen=True)
class Clusters:
    """Which patient each row of a table is of.

    Args:
        of: int (N,), 0..K-1.
        asked: False: no intervals.
    """

    of: np.ndarray
    asked: bool = True

    @cached_property
    def size(self) -> int:
        """K."""
        return int(self.of.max(initial=-1)) + 1

    def brier(self, value: float, rows: np.ndarray, truth: np.ndarray, squares: np.ndarray) -> Interval | None:
        """The interval of the mean of squared errors (M,); None where none is asked for."""
        if not self.asked:
            return None
        lacks = lacking(truth, self.of[rows])
        return none(value, lacks) if lacks else mean(value, squares, truth, self.of[rows], self.size)

    def classes(
        self, values: Mapping[str, float | None], rows: np.ndarray, actual: np.ndarray, called: np.ndarray
    ) -> dict[str, Interval]:  # fmt: skip
        """The intervals of accuracy and kappa of exclusive classes, int (M,); the commonest and the others are counted."""
        if not self.asked or not len(rows):
            return {}
        of, k = self.of[rows], self.size
        names = ("of other classes", "of the commonest class")
        lacks = lacking((actual == np.bincount(actual).argmax()).astype(int), of, names=names)
        single = "every study is called the same" if len(np.unique(called)) == 1 else None
        found = {}
        for metric, value in values.items():
            if value is None:
                continue
            if reason := lacks or (single if metric == "kappa" else None):
                found[metric] = none(value, reason)
            else:
                found[metric] = kappa(value, actual, called, of, k) if metric == "kappa" else share(actual == called, of, k)
        return found


def lacking(
    truth: np.ndarray, clusters: np.ndarray, kinds: Sequence[int] = (0, 1), names: tuple[str, str] = ("negative", "positive")
) -> str | None:  # fmt: skip
    """What an interval lacks, in words: fewer than ``LEAST`` studies of a kind, or of fewer than ``PATIENTS`` patients.

    Args:
        truth, clusters: (N,).
        kinds: of ``truth`` that count.
        names: of kinds 0 and 1.
    """
    for kind in sorted(kinds, reverse=True):
        of, name = clusters[truth == kind], names[kind]
        if len(of) < LEAST:
            return f"{len(of)} {name}, of {LEAST} that it takes"
        if (patients := np.count_nonzero(np.bincount(of))) < PATIENTS:
            return f"{name} of {patients} patients, of {PATIENTS} that it takes"
    return None


@dataclass(frozen=True)
class Rows:
    """Rows that a metric is of, and the patients that they belong to.

    Args:
        kind: int (N,), 0 or 1: rows of different kinds (negatives, positives) are drawn apart.
        clusters: int (N,), 0..K-1.
        size: K.
    """

    kind: np.ndarray
    clusters: np.ndarray
    size: int

    @cached_property
    def counts(self) -> np.ndarray:
        """How many rows of each kind each cluster has, (2,K)."""
        return np.bincount(self.clusters + self.size * self.kind, minlength=2 * self.size).reshape(2, self.size)

    @cached_property
    def worth(self) -> np.ndarray:
        """How many clusters of equal size the rows of each kind would make, (2,): as many as there are where all are equal."""
        return self.counts.sum(1) ** 2.0 / np.maximum((self.counts**2.0).sum(1), 1)

    @cached_property
    def worst(self) -> float:
        """The design effect, where rows of a patient are all alike; at least 1."""
        n = self.counts.sum(1)
        return float(np.max(n[n > 0] / self.worth[n > 0]))

    @cached_property
    def few(self) -> float:
        """How much wider than with as many patients as rows: the ratio of their t quantiles."""
        n = self.counts.sum(1)
        there = n > 0
        return float(_t(self.worth[there].min() - 1) / _t(n[there].min() - 1))

    def summed(self, influence: np.ndarray) -> tuple[np.ndarray, float]:
        """Influences by cluster (K,), whose squares sum to the variance, and the variance if rows were independent.

        Residuals are smaller than errors by the share of its kind that a cluster holds; this is undone. With one row a
        cluster the variance is DeLong's, with clusters of equal size Obuchowski's.
        """
        n = self.counts.sum(1)
        share = self.counts[self.kind, self.clusters] / n[self.kind]
        summed = np.bincount(self.clusters, influence / np.sqrt(np.maximum(1 - share, 1e-9)), self.size)
        return summed, float(np.sum(influence**2 / np.maximum(1 - 1 / n[self.kind], 1e-9)))

    def effect(self, variance: float, independent: float) -> float:
        """The design effect: by how much the variance is larger than that of independent rows."""
        return self.worst if variance < TINY else float(np.clip(variance / max(independent, TINY), 1, self.worst))


def _t(freedom: float) -> float:
    return float(stdtrit(max(freedom, 1.0), UPPER))


def exact(share: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share of n studies; n need not be whole."""
    k = share * n
    low = 0.0 if k < 1e-9 else float(betaincinv(k, n - k + 1, 1 - UPPER))
    return low, 1.0 if n - k < 1e-9 else float(betaincinv(k + 1, n - k, UPPER))


def share(right: np.ndarray, clusters: np.ndarray, size: int) -> Interval:
    """Of the mean of ``right``, bool (N,)."""
    rows = Rows(np.zeros(len(right), int), clusters, size)
    value, n = float(right.mean()), len(right)
    summed, independent = rows.summed((right - value) / n)
    worth = n / rows.effect(float(summed @ summed), independent)
    return Interval(value, *exact(value, worth / rows.few**2), None, summed, worth)


def kappa(value: float, truth: np.ndarray, called: np.ndarray, clusters: np.ndarray, size: int) -> Interval:
    """Of Cohen's kappa of classes (N,), int, of two or more classes.

    Kappa is 1 - (1 - accuracy) / (1 - chance); the accuracy's interval is mapped, of as many studies as kappa's variance says.
    """
    n, classes = len(truth), int(max(truth.max(), called.max())) + 1
    is_true, is_called = np.bincount(truth, minlength=classes) / n, np.bincount(called, minlength=classes) / n
    right = truth == called
    accuracy, chance = float(right.mean()), float(is_true @ is_called)
    by_chance = is_called[truth] + is_true[called] - 2 * chance
    influence = ((right - accuracy) * (1 - chance) - by_chance * (1 - accuracy)) / (1 - chance) ** 2 / n
    rows = Rows(np.zeros(n, int), clusters, size)
    summed, independent = rows.summed(influence)
    effect = rows.effect(float(summed @ summed), independent)
    worth = accuracy * (1 - accuracy) / independent / (1 - chance) ** 2 if independent > TINY else n
    low, high = (1 - (1 - bound) / (1 - chance) for bound in exact(accuracy, worth / effect / rows.few**2))
    return Interval(value, low, high, None, summed, n / effect)


def auroc(value: float, truth: np.ndarray, score: np.ndarray, clusters: np.ndarray, size: int) -> Interval:
    """Of the AUROC of scores (N,)."""
    from scipy.stats import rankdata

    positive = truth == 1
    m, n = int(positive.sum()), int((~positive).sum())
    everyone = rankdata(score)
    influence = np.empty(len(truth))
    influence[positive] = ((everyone[positive] - rankdata(score[positive])) / n - value) / m  # share of negatives below
    influence[~positive] = (1 - (everyone[~positive] - rankdata(score[~positive])) / m - value) / n
    rows = Rows(truth, clusters, size)
    summed, independent = rows.summed(influence)
    variance = float(summed @ summed)
    inner = float(np.clip(value, 1 / (m * n), 1 - 1 / (m * n)))  # on the probit scale 0 and 1 are infinite
    lacks = rows.effect(variance, independent) * binormal_variance(inner, m, n) - variance
    z = float(ndtri(inner))
    half = Z * rows.few * np.sqrt(variance + GAP * max(0.0, lacks)) / float(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))
    low = 0.0 if value < ROUNDED else float(ndtr(z - half))
    high = 1.0 if value > 1 - ROUNDED else float(ndtr(z + half))
    return Interval(value, low, high, None, summed, len(truth))


def binormal_variance(value: float, m: int, n: int) -> float:
    """The variance of an AUROC of m positives and n negatives, both normal with the same spread (Bamber 1975)."""
    both = value - 2 * float(owens_t(ndtri(value), np.sqrt(1 / 3)))  # that two negatives are below a positive, or so
    return (value * (1 - value) + (m + n - 2) * (both - value**2)) / (m * n)


def average_precision(value: float, truth: np.ndarray, score: np.ndarray, clusters: np.ndarray, size: int) -> Interval:
    """Of the average precision of scores (N,)."""
    rows, m = Rows(truth, clusters, size), int(truth.sum())
    if value > 1 - ROUNDED:  # as if the last positive and the first negative had changed places
        variance = 2 / (m * (m + 1)) ** 2 * rows.worst
        low, _ = _logit_interval(1 - 1 / (m * (m + 1)), variance, _t(rows.worth.min() - 1))
        return Interval(value, low, 1.0, None, np.zeros(size), len(truth))
    order = np.argsort(-score, kind="stable")
    positive = truth[order] == 1
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]  # of each tie
    step = np.searchsorted(last, np.arange(len(score)))
    found = np.cumsum(positive)[last]
    precision, gained = found / (last + 1), np.diff(np.r_[0, found])
    of_positive, of_negative = (np.cumsum((gained * p / (last + 1))[::-1])[::-1] for p in (1 - precision, precision))
    influence = np.empty(len(score))
    influence[order] = np.where(positive, precision[step] - value + of_positive[step], -of_negative[step]) / m
    return _on_logits(value, influence, rows, 0.0)


def mean(value: float, values: np.ndarray, truth: np.ndarray, clusters: np.ndarray, size: int) -> Interval:
    """Of the mean of values in [0,1], (N,), as the Brier score is."""
    rows = Rows(truth, clusters, size)
    if value in (0, 1):
        return none(value, f"every study's is {value:g}")
    return _on_logits(value, (values - value) / len(values), rows, GAP_OF_MEAN * value * (1 - value) / len(values))


def any_mean(values: np.ndarray, clusters: np.ndarray, size: int, least: float = 0.0) -> Interval:
    """Of the mean of any values (N,), by Student's t.

    Args:
        least: a variance that is added, for values that the sample does not have.
    """
    rows = Rows(np.zeros(len(values), int), clusters, size)
    value = float(values.mean())
    summed, _ = rows.summed((values - value) / len(values))
    reach = max(_t(rows.worth[0] - 1), _t(_freedom(summed))) * float(np.sqrt(summed @ summed + least))
    return Interval(value, value - reach, value + reach, None, summed, len(values))


def _on_logits(value: float, influence: np.ndarray, rows: Rows, least: float) -> Interval:
    """On the logit scale; ``least`` is what the variance is moved towards, for values that the sample does not have."""
    summed, independent = rows.summed(influence)
    variance = float(summed @ summed)
    if least:
        variance += max(0.0, least * rows.effect(variance, independent) - GAP_OF_MEAN * variance)
    quantile = max(_t(rows.worth.min() - 1), _t(_freedom(summed[rows.counts.any(0)])))
    return Interval(value, *_logit_interval(value, variance, quantile), None, summed, len(rows.kind))


def _freedom(summed: np.ndarray) -> float:
    """Degrees of freedom of a variance that is the sum of squares of ``summed``, of the clusters that have rows."""
    square, fourth = float(summed @ summed) ** 2, float((summed**4).sum())
    spread = fourth - square / len(summed)
    return max(SPREAD, 2 * square / spread) if spread > 0 else np.inf


def _logit_interval(value: float, variance: float, quantile: float) -> tuple[float, float]:
    z, half = np.log(value / (1 - value)), quantile * np.sqrt(variance) / (value * (1 - value))
    return float(1 / (1 + np.exp(half - z))), float(1 / (1 + np.exp(-half - z)))


def average(parts: Mapping[str, Interval]) -> Interval:
    """Of the mean of estimates by name: their distances to their bounds, squared and added with their correlations."""
    of = list(parts.values())
    value = float(np.mean([p.value for p in of]))
    if missing := [f"{name}: {_why(p.reason)}" for name, p in parts.items() if p.reason]:
        return none(value, missing[0] + f"; and {len(missing) - 1} more" * (len(missing) > 1))
    if len(of) == 1:
        return of[0]
    influence = np.stack([p.influence for p in of])
    unit = influence / np.maximum(np.sqrt((influence**2).sum(1)), TINY)[:, None]
    correlation = unit @ unit.T
    np.fill_diagonal(correlation, 1)
    values, low, high = (np.array([getattr(p, name) for p in of], float) for name in ("value", "low", "high"))
    below, above = (float(np.sqrt(max(0.0, d @ correlation @ d))) / len(of) for d in (values - low, high - values))
    return Interval(value, value - below, value + above, None, influence.mean(0), min(p.worth for p in of))


def _why(reason: str) -> str:
    return reason.removeprefix(f"{NO_INTERVAL}: ")


def difference(first: Interval, second: Interval) -> Interval:
    """Of the first estimate minus the second, of the same rows.

    What varies with both moves both in one direction; the rest moves the first to one of its bounds and the second to its
    other. Without correlation this is Newcombe's square-and-add (1998); without a difference in any row there is none.
    """
    value = first.value - second.value
    if reason := first.reason or second.reason:
        return none(value, _why(reason))
    down, up = (first.value - first.low, second.value - second.low), (first.high - first.value, second.high - second.value)
    norm = float(np.sqrt((first.influence @ first.influence) * (second.influence @ second.influence)))
    both = float(first.influence @ second.influence) / norm if norm > TINY else 0.0
    worth = min(first.worth, second.worth)
    both = min(both, 1 - 1 / worth)  # where no row differs, one more might
    shared = max((down[0] - down[1]) ** 2, (up[0] - up[1]) ** 2) if both > 0 else 0.0

    def reach(a: float, b: float) -> float:
        apart = (1 - both) * (a**2 + b**2) + both * shared if both > 0 else a**2 + b**2 - 2 * both * a * b
        return float(np.sqrt(apart))

    low, high = max(-1.0, value - reach(down[0], up[1])), min(1.0, value + reach(up[0], down[1]))
    return Interval(value, low, high, None, first.influence - second.influence, worth)
