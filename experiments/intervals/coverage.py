"""How often intervals hold the true value, and how wide they are: ``python experiments/intervals/coverage.py``.

Scores of positives and negatives are normal unless a cell says otherwise, so the true value of every metric has a formula or an
integral. Each default of :mod:`xraylab.evaluation.intervals` stands beside simpler methods of the same metric.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from xraylab.evaluation.intervals import LEAST, Clusters, Interval, average, difference
from xraylab.evaluation.metrics import METRICS, intervals_of, rates

Z = norm.ppf(0.975)
HERE = Path(__file__).parent
GRID = np.linspace(-10, 30, 20_001)
EVERY = (*METRICS, "ppv", "npv", "brier")
CLUSTERED = {"none": 0.0, "pairs": 0.3, "triples": 0.5, "ragged": 0.5, "whole": 0.5}  # correlation of scores within a patient
SHAPES = ("normal", "wide", "skewed", "tied", "saturated")
LEVELS = (-0.5, 0.3, 1.0, 2.0)  # between which tied scores are one


@dataclass(frozen=True)
class Cell:
    """A design: positives, negatives, true AUROC (and of a second model), patients, shape of the scores.

    ``alike``: the share of a score's variance that both models have in common. ``what``: ``single``, ``difference``, ``macro``.
    """

    positives: int
    negatives: int
    auroc: float
    patients: str = "none"
    shape: str = "normal"
    second: float = 0.0
    alike: float = 0.0
    what: str = "single"

    @property
    def name(self) -> str:
        """What a table calls it."""
        second = f" - {self.second:g}, {self.alike:g} alike" if self.second else ""
        return f"{self.positives}/{self.negatives} {self.auroc:g}{second}"

    def clusters(self) -> np.ndarray:
        """The patient of each study; ragged: one has a tenth of all, others 1 to 6; whole: fives of one label."""
        n = self.positives + self.negatives
        if self.patients != "ragged":
            return np.arange(n) // {"none": 1, "pairs": 2, "triples": 3, "whole": 5}[self.patients]
        sizes = [max(n // 10, 2), *itertools.islice(itertools.cycle([1, 2, 1, 4, 1, 3, 6, 1]), n)]
        return np.repeat(np.arange(len(sizes)), sizes)[:n]

    @functools.cache  # noqa: B019 - cells are few
    def shift(self, auroc: float) -> float:
        """By how much positives lie higher, of normal scores; of skewed ones the ratio of means."""
        if self.shape == "skewed":
            return auroc / (1 - auroc)
        return float(norm.ppf(auroc) * np.sqrt(1 + self.spread**2))

    @property
    def spread(self) -> float:
        """Of positives; negatives have 1."""
        return 1.5 if self.shape == "wide" else 1.0

    def cut(self, auroc: float) -> float:
        """The threshold."""
        return float(np.log(2)) if self.shape == "skewed" else 0.5 * self.shift(auroc)


def drawn(cell: Cell, rng: np.random.Generator, clusters: np.ndarray, models: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels (N,), as many positives as the cell says, and the scores (N,) of each model."""
    n, k = len(clusters), int(clusters.max()) + 1
    within = CLUSTERED[cell.patients]

    def noise() -> np.ndarray:
        own = rng.normal(size=n)
        return own if within == 0 else np.sqrt(within) * rng.normal(size=k)[clusters] + np.sqrt(1 - within) * own

    truth = np.zeros(n, int)
    prone = rng.normal(size=n) * (cell.patients != "whole") + (rng.normal(size=k)[clusters] if within else 0)
    truth[np.argsort(-prone, kind="stable")[: cell.positives]] = 1
    shared, out = noise(), []
    for auroc in (cell.auroc, cell.second)[:models]:
        z = noise() if models == 1 else np.sqrt(cell.alike) * shared + np.sqrt(1 - cell.alike) * noise()
        if cell.shape == "skewed":
            score = -norm.logsf(z) * np.where(truth == 1, cell.shift(auroc), 1.0)
        else:
            score = cell.shift(auroc) * truth + np.where(truth == 1, cell.spread, 1.0) * z
        if cell.shape == "tied":
            score = np.digitize(score, LEVELS).astype(float)
        if cell.shape == "saturated":  # the upper quarter of positives rounds to 1
            score = np.minimum(score, cell.shift(auroc) + 0.67)
        out.append(score)
    return truth, out


def cut_of(cell: Cell, auroc: float) -> float:
    """The threshold of scores as they are drawn."""
    return 2.0 if cell.shape == "tied" else cell.cut(auroc)


def probability(cell: Cell, auroc: float, score: np.ndarray) -> np.ndarray:
    """Of the Brier score: a logistic function of the score that is too sure of itself."""
    return 1 / (1 + np.exp(-2 * (score - cut_of(cell, auroc))))


def true_values(cell: Cell, auroc: float) -> dict[str, float]:
    """Every metric of endlessly many studies, by integration over the scores of one."""
    d, s = cell.shift(auroc), cell.spread
    if cell.shape == "skewed":
        x = np.r_[0, np.geomspace(1e-6, 60 * d, 200_000)]
        weight_p, weight_n = -np.diff(np.exp(-x / d), append=0), -np.diff(np.exp(-x), append=0)
        x = np.r_[(x[1:] + x[:-1]) / 2, x[-1]]
    else:
        x = (GRID[1:] + GRID[:-1]) / 2
        weight_p, weight_n = np.diff(norm.cdf((GRID - d) / s)), np.diff(norm.cdf(GRID))
    if cell.shape == "tied":
        x = np.digitize(x, LEVELS).astype(float)
    if cell.shape == "saturated":
        x = np.minimum(x, d + 0.67)
    values, step = np.unique(x, return_inverse=True)
    p, n = (np.bincount(step, w) / w.sum() for w in (weight_p, weight_n))
    share = cell.positives / (cell.positives + cell.negatives)
    below = np.cumsum(n) - n / 2
    up_p, up_n = np.cumsum((share * p)[::-1])[::-1], np.cumsum(((1 - share) * n)[::-1])[::-1]
    called = values >= cut_of(cell, auroc)
    tp, fp = share * p[called].sum(), (1 - share) * n[called].sum()
    fn, tn = share - tp, 1 - share - fp
    chance = share * (tp + fp) + (1 - share) * (fn + tn)
    guess = probability(cell, auroc, values)
    return {
        "auroc": float(p @ below),
        "average_precision": float(p @ (up_p / np.maximum(up_p + up_n, 1e-300))),
        "accuracy": tp + tn,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "kappa": (tp + tn - chance) / (1 - chance),
        "sensitivity": tp / share,
        "specificity": tn / (1 - share),
        "ppv": tp / (tp + fp),
        "npv": tn / (fn + tn),
        "brier": float(share * p @ (1 - guess) ** 2 + (1 - share) * n @ guess**2),
    }


def estimates(cell: Cell, auroc: float, truth: np.ndarray, score: np.ndarray, clusters: Clusters) -> dict[str, Interval]:
    """The defaults, of every metric that is defined."""
    cut = cut_of(cell, auroc)
    called, rows = score >= cut, np.arange(len(truth))
    counts = ((called & (truth == 1)).sum(), (called & (truth == 0)).sum(), cell.positives, cell.negatives)
    at = rates(*np.array(counts, float)[:, None])
    values = {m: float(v[0]) if np.isfinite(v[0]) else None for m, v in at.items()}
    values |= ranked(truth, score)
    found = intervals_of(values, clusters, rows, truth, called, score)
    squares = (probability(cell, auroc, score) - truth) ** 2
    brier = clusters.brier(float(squares.mean()), rows, truth, squares)
    return found | ({"brier": brier} if brier is not None else {})


def ranked(truth: np.ndarray, score: np.ndarray) -> dict[str, float | None]:
    """AUROC and average precision, which scikit-learn takes ten times as long for."""
    last = np.r_[np.flatnonzero(np.diff(np.sort(-score))), len(score) - 1]
    found = np.cumsum(truth[np.argsort(-score, kind="stable")])[last]
    new_p, new_n = np.diff(np.r_[0, found]), np.diff(np.r_[0, last + 1 - found])
    m, n = found[-1], len(score) - found[-1]
    return {
        "auroc": float(new_p @ (n - np.cumsum(new_n) + new_n / 2)) / (m * n),
        "average_precision": float(new_p @ (found / (last + 1))) / m,
    }


def simpler(metric: str, i: Interval, n: int) -> Iterator[tuple[str, float, float]]:
    """Other intervals from the same value and variance: name, low, high."""
    v, se = i.value, float(np.sqrt(i.influence @ i.influence))
    yield "Wald", v - Z * se, v + Z * se
    low, high = (-1.0, 1.0) if metric == "kappa" else (0.0, 1.0)
    if low < v < high and se > 0:
        p, half = (v - low) / (high - low), Z * se * (high - low) / ((v - low) * (high - v))
        a, b = (1 / (1 + np.exp(-(np.log(p / (1 - p)) + side))) for side in (-half, half))
        yield "logit", low + (high - low) * a, low + (high - low) * b
    if metric in ("accuracy", "sensitivity", "specificity", "ppv", "npv"):
        worth = min(n, v * (1 - v) / se**2) if se > 0 else i.worth
        middle, half = v + Z**2 / (2 * worth), Z * np.sqrt(v * (1 - v) / worth + Z**2 / (4 * worth**2))
        yield "Wilson", (middle - half) / (1 + Z**2 / worth), (middle + half) / (1 + Z**2 / worth)


def hanley(value: float, m: int, n: int) -> tuple[float, float]:
    """Newcombe's (2006) method 5: the AUROCs whose variance by Hanley and McNeil allows the value."""
    t = np.linspace(1e-6, 1 - 1e-6, 2_001)
    mean = (m + n) / 2 - 1
    variance = t * (1 - t) / (m * n) * (1 + mean * (1 - t) / (2 - t) + mean * t / (1 + t))
    inside = t[np.abs(value - t) <= Z * np.sqrt(variance)]
    return float(inside[0]), float(inside[-1])


def judged(cell: Cell, simulations: int, seed: int) -> list[dict[str, object]]:
    """A row a metric and method: coverage, median width and the share of samples in which it is shown."""
    rng, clusters = np.random.default_rng(seed), Clusters(cell.clusters())
    true = true_values(cell, cell.auroc)
    if cell.second:
        other = true_values(cell, cell.second)
        true = {m: true[m] - other[m] for m in true}
    held: dict[tuple[str, str], list[bool]] = defaultdict(list)
    width: dict[tuple[str, str], list[float]] = defaultdict(list)
    times: dict[str, int] = defaultdict(int)
    for _ in range(simulations):
        one = _sample(cell, rng, clusters)
        for metric, (default, others) in one.items():
            times[metric] += 1
            for name, low, high in [("default", default.low, default.high)] * (not default.reason) + others:
                held[metric, name].append(low - 1e-12 <= true[metric] <= high + 1e-12)
                width[metric, name].append(high - low)
    about = {"what": cell.what, "cell": cell.name, "patients": cell.patients, "scores": cell.shape, "n": len(clusters.of)}
    rows = []
    for metric in EVERY:
        for method in dict.fromkeys(name for m, name in held if m == metric):
            of = held[metric, method]
            found = {"coverage": round(float(np.mean(of)), 4), "width": round(float(np.median(width[metric, method])), 4)}
            rows.append({**about, "metric": metric, "method": method, **found, "shown": round(len(of) / times[metric], 3)})
        if times[metric] and ("default", metric) not in {(r["method"], r["metric"]) for r in rows}:
            rows.append({**about, "metric": metric, "method": "default", "coverage": None, "width": None, "shown": 0.0})
    return rows


def _sample(
    cell: Cell, rng: np.random.Generator, clusters: Clusters
) -> dict[str, tuple[Interval, list[tuple[str, float, float]]]]:  # fmt: skip
    """By metric, of one sample: the default and the other methods."""
    if cell.what == "macro":
        parts: dict[str, dict[str, Interval]] = defaultdict(dict)
        for k in range(3):  # findings
            truth, (score,) = drawn(cell, rng, clusters.of, 1)
            for metric, i in estimates(cell, cell.auroc, truth, score, clusters).items():
                parts[metric][str(k)] = i
        return {m: (average(of), []) for m, of in parts.items() if len(of) == 3}
    truth, scores = drawn(cell, rng, clusters.of, 2 if cell.second else 1)
    found = [estimates(cell, a, truth, s, clusters) for a, s in zip((cell.auroc, cell.second), scores, strict=False)]
    out = {}
    for metric, i in found[0].items():
        if not cell.second:
            others = [] if i.reason else list(simpler(metric, i, len(truth)))
            if metric == "auroc" and others:
                others.append(("Hanley", *hanley(i.value, cell.positives, cell.negatives)))
            out[metric] = (i, others)
        elif metric in found[1]:
            d, pair = difference(i, found[1][metric]), (i, found[1][metric])
            out[metric] = (d, [] if d.reason else list(paired(*pair)))
    return out


def paired(a: Interval, b: Interval) -> Iterator[tuple[str, float, float]]:
    """Other intervals of a difference."""
    d, apart = a.value - b.value, a.influence - b.influence
    half = Z * float(np.sqrt(apart @ apart))
    yield "Wald", d - half, d + half
    norms = np.sqrt((a.influence @ a.influence) * (b.influence @ b.influence))
    r = float(a.influence @ b.influence / norms) if norms > 0 else 0.0

    def reach(x: float, y: float) -> float:
        return float(np.sqrt(max(0.0, x * x + y * y - 2 * r * x * y)))

    yield "square-and-add", d - reach(a.value - a.low, b.high - b.value), d + reach(a.high - a.value, b.value - b.low)


def cells() -> list[Cell]:
    """All designs."""
    sizes = ((10, 10), (10, 30), (10, 110), (10, 590), (20, 100), (60, 60), (100, 500))
    some = ((10, 30), (10, 110), (20, 100), (60, 60), (100, 500))
    out = [Cell(*size, 0.9) for size in ((2, 38), (5, 115), (9, 111))]
    out += [Cell(*size, a) for size in sizes for a in (0.7, 0.8, 0.9, 0.95, 0.99)]
    out += [Cell(*size, a, p) for size in some for p in ("triples", "ragged") for a in (0.7, 0.9, 0.99)]
    out += [Cell(*size, a, "whole") for size in ((10, 30), (20, 100)) for a in (0.7, 0.9, 0.99)]
    out += [Cell(*size, a, shape=s) for size in ((10, 110), (100, 500)) for s in SHAPES[1:] for a in (0.8, 0.95)]
    pairs = ((0.8, 0.8, 0.7), (0.95, 0.85, 0.5), (0.99, 0.95, 0.5), (0.9, 0.9, 0.97), (0.99, 0.99, 0.8))
    few = ((10, 30), (10, 110), (20, 100), (100, 500))
    out += [Cell(*size, a, second=b, alike=r, what="difference") for size in few for a, b, r in pairs]
    out += [Cell(*size, 0.9, p, second=0.85, alike=0.5, what="difference") for size in few[1:3] for p in ("triples", "ragged")]
    return out + [Cell(*size, a, p, what="macro") for size in few[:3] for p, a in (("none", 0.99), ("triples", 0.8))]


def _job(job: tuple[Cell, int, int]) -> list[dict[str, object]]:
    return judged(*job)


def main() -> int:
    """Write ``coverage.csv`` cell by cell and print what it says; 1 where a promise is not kept, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "coverage.csv")
    parser.add_argument("--read", action="store_true", help="say what the table says, and simulate nothing")
    asked = parser.parse_args()
    if not asked.read:
        jobs, rows = [(cell, asked.simulations, seed) for seed, cell in enumerate(cells())], []
        with ProcessPoolExecutor(asked.jobs) as pool:
            for found in pool.map(_job, jobs):
                rows += found
                pd.DataFrame(rows).to_csv(asked.output, index=False)
    return said(pd.read_csv(asked.output))


def said(table: pd.DataFrame) -> int:
    """Print the summary of a table, by metric; 1 where a promise is not kept, else 0.

    The promise: of normal scores and at least ``LEAST`` of both classes a default covers .93 in every cell, is shown there, and
    is at most 1.3 times as wide as the narrowest of the methods that cover .93 in every cell too.
    """
    enough = ~table["cell"].str.match(r"^[0-9]/")
    normal = table[(table["scores"] == "normal") & enough]
    key = ["what", "cell", "patients"]
    kept = True
    heads = ("what", "metric", "cells", "coverage, least", "in", "median", "shown, least", "widest over narrowest that covers")
    _head(f"{normal.groupby(key).ngroups} cells of normal scores, at least {LEAST} of both classes", *heads)
    for (what, metric), of in normal.groupby(["what", "metric"], sort=False):
        default = of[of["method"] == "default"].set_index(key)
        least = of.groupby("method")["coverage"].min()[of.groupby("method")["shown"].min() == 1]
        rivals = of[of["method"].isin(least[least >= 0.93].index)].groupby(key)["width"].min()
        ratio, c, shown = (default["width"] / rivals).max(), default["coverage"], default["shown"].min()
        kept &= bool(c.min() >= 0.93 and ratio <= 1.3)
        worst = ", ".join(c.idxmin()[1:])
        print(f"| {what} | {metric} | {len(c)} | {c.min():.3f} | {worst} | {c.median():.3f} | {shown:.0%} | {ratio:.2f} |")
    _head("other methods in the same cells", "what", "metric", "method", "coverage, least", "in", "cells below .93")
    for (what, metric, method), of in normal[normal["method"] != "default"].groupby(["what", "metric", "method"], sort=False):
        worst = of.loc[of["coverage"].idxmin()]
        where, below = f"{worst['cell']}, {worst['patients']}", (of["coverage"] < 0.93).sum()
        print(f"| {what} | {metric} | {method} | {worst['coverage']:.3f} | {where} | {below} of {len(of)} |")
    few = table[~enough & (table["method"] == "default") & (table["metric"] != "specificity")]
    if len(few):
        print(f"\nFewer than {LEAST} positives: shown in {few['shown'].max():.0%} of the samples, specificity aside.")
    _head("defaults on scores that are not normal", "scores", "metric", "coverage, least", "in", "cells below .93")
    other = table[(table["scores"] != "normal") & (table["method"] == "default")]
    for (scores, metric), of in other.groupby(["scores", "metric"], sort=False):
        worst = of.loc[of["coverage"].idxmin()]
        print(
            f"| {scores} | {metric} | {worst['coverage']:.3f} | {worst['cell']} | {(of['coverage'] < 0.93).sum()} of {len(of)} |"
        )
    return 0 if kept else 1


def _head(title: str, *heads: str) -> None:
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")


if __name__ == "__main__":
    sys.exit(main())
