"""ROC and precision-recall curves of a prediction table: side by side for a few findings, a panel each for many.

Curves hold every study that is scored; they are drawn with so few points that no difference can be seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xraylab.evaluation.evaluator import likeliest
from xraylab.evaluation.metrics import number
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.result import SplitResult
from xraylab.reporting.figures.layout import COLUMNS, panel_grid, spaced
from xraylab.reporting.figures.points import points_legend, roc_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 500  # at most, of a drawn curve
KINDS = {"roc": ("auroc", "ROC", "AUROC"), "pr": ("average_precision", "Precision-recall", "average precision")}


def curve(kind: str, truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve by scikit-learn, x and y (P,), thinned to at most ``POINTS``.

    Args:
        kind: ``roc``: 1 - specificity and sensitivity; ``pr``: recall and precision, from recall 1 to 0.
        truth: 0/1 (N,), of both classes.
        score: (N,).
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    if kind == "roc":
        x, y, _ = roc_curve(truth, score)
    else:
        y, x, _ = precision_recall_curve(truth, score)
    return thinned(x, y)


def thinned(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """A line (P,) in the unit square with few enough points; the rest lie within one cell of a grid from those kept.

    Of each stretch inside one cell the first and the last point stay, so no end, step or slope is lost.
    """
    kept = np.arange(len(x))
    cells = 1024
    while len(kept) > points:
        cell = np.floor(np.stack([x, y]) * cells)
        new = (np.diff(cell) != 0).any(0)
        kept = np.flatnonzero(np.r_[True, new] | np.r_[new, True])
        cells = cells * 3 // 4
    return x[kept], y[kept]


def panels(kind: str, table: PredictionTable, result: SplitResult, where: str, scoring: Scoring) -> Figure:
    """A figure of one panel a finding; one whose curve is undefined stays empty and says why.

    Args:
        kind: ``roc`` or ``pr``.
        table: by study or by image.
        result: its evaluation, see :func:`xraylab.evaluation.evaluator.evaluate_split`.
        where: what the title says of the data.
        scoring: as in the evaluation.
    """
    labels = table.labels
    figure, grid = panel_grid(len(labels))
    metric, name, value = KINDS[kind]
    interval = ", 95% interval" if result["bootstrap"]["resamples"] else ""
    figure.suptitle(f"{name}, {where}; {value}{interval}")
    for axes, label in zip(grid, labels, strict=False):
        m = result["labels"][label][metric]
        truth, score = scored(table, label, scoring)
        axes.set_title(f"{label}\nn {len(truth)}, {int(truth.sum())} positive\n{number(m)}", fontsize=9)
        if m["value"] is None:
            why = (m["reason"] or "").replace(" that ", "\nthat ")
            axes.text(0.5, 0.5, why, ha="center", va="center", fontsize=8, color="#656d76")
            continue
        _draw(axes, kind, truth, score, color="C0")
        if kind == "roc":
            roc_points(axes, result, label, "C3")
        if kind == "pr":
            axes.axhline(truth.mean(), ls=":", color="grey", lw=1)
    x, y = ("1 - specificity", "sensitivity") if kind == "roc" else ("sensitivity (recall)", "precision")
    figure.supxlabel(x + (points_legend(result) if kind == "roc" else ""), fontsize=10)
    figure.supylabel(y, fontsize=10)
    return figure


def side_by_side(table: PredictionTable, result: SplitResult, where: str, scoring: Scoring) -> Figure:
    """A figure of all findings' ROC curves, and beside them the precision-recall curves. Arguments as of :func:`panels`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.8))
    roc, pr = spaced(figure, 1, 2, (0.65, 0.1, 0.75, 0.7), 0.75)
    for k, label in enumerate(table.labels):
        metrics = result["labels"][label]
        truth, score = scored(table, label, scoring)
        if metrics["auroc"]["value"] is None:
            continue
        _draw(roc, "roc", truth, score, color=f"C{k}", label=f"{label} {number(metrics['auroc'])}, n {len(truth)}")
        name = f"{label} {number(metrics['average_precision'])}, {truth.mean():.0%} positive"
        _draw(pr, "pr", truth, score, color=f"C{k}", label=name)
        roc_points(roc, result, label, f"C{k}")
    roc.plot([0, 1], [0, 1], ":", color="grey")
    interval = " (95% interval)" if result["bootstrap"]["resamples"] else ""
    roc.set(
        xlabel="1 - specificity" + points_legend(result),
        ylabel="sensitivity",
        title=f"ROC, {where}, AUROC{interval}",
        aspect="equal",
    )
    pr.set(xlabel="sensitivity (recall)", ylabel="positive predictive value (precision)", ylim=(0, 1.02),
           title=f"Precision-recall, {where}, average precision")  # fmt: skip
    for axes in (roc, pr):
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
    return figure


def confusion(table: PredictionTable, result: SplitResult, where: str, scoring: Scoring) -> Figure:
    """A figure of confusion matrices: of each finding at the first operating point, 0.5; of exclusive ones also the likeliest.

    Cells hold counts; colours the share of a row, which is what is true. Arguments as of :func:`panels`.
    """
    from matplotlib.figure import Figure

    labels = table.labels
    matrices: list[tuple[str, list[str], np.ndarray]] = []
    if "exclusive" in result:
        truth = np.stack([table.raw(label) for label in labels], axis=1)
        rows = (truth == 1).sum(1) == 1
        counts = np.zeros((len(labels), len(labels)), int)
        np.add.at(counts, (truth[rows].argmax(1), likeliest(table)[rows]), 1)
        matrices.append(("likeliest", labels, counts))
    for label in labels:
        y, probability, _ = table.scored(label, scoring)
        called = (probability >= result["threshold"]).astype(int)
        counts = np.array([[((y == a) & (called == b)).sum() for b in (0, 1)] for a in (0, 1)])
        matrices.append((f"{label}, n {len(y)}", ["negative", "positive"], counts))
    columns = min(COLUMNS, len(matrices))
    lines = math.ceil(len(matrices) / columns)
    figure = Figure(figsize=(max(2.75 * columns, 4.5), 2.9 * lines + 0.9))
    names_of_rows = 0.6 if "exclusive" not in result else 1.2
    grid = spaced(figure, lines, columns, (0.4 + names_of_rows, 0.1, 0.7, 0.8), names_of_rows, 0.75)
    figure.suptitle(f"Confusion at {result['threshold']}, {where}")
    for axes, (title, names, counts) in zip(grid, matrices, strict=False):
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(names)), names, fontsize=7, rotation=0 if len(names) == 2 else 90)
        axes.set_yticks(range(len(names)), names, fontsize=7, rotation=90 if len(names) == 2 else 0, va="center")
        for (a, b), count in np.ndenumerate(counts):
            axes.text(b, a, str(count), ha="center", va="center", fontsize=9 if len(names) < 8 else 6,
                      color="white" if share[a, b] > 0.6 else "black", gid=f"{title}: {names[a]} called {names[b]}")  # fmt: skip
    for axes in grid[len(matrices) :]:
        axes.set_axis_off()
    figure.supxlabel("called", fontsize=10)
    figure.supylabel("truth", fontsize=10)
    return figure


def scored(table: PredictionTable, label: str, scoring: Scoring) -> tuple[np.ndarray, np.ndarray]:
    """Truth, 0/1, and what ranks the rows whose label is scored, (M,)."""
    truth, _, rows = table.scored(label, scoring)
    return truth, table.scores(label)[rows]


def _draw(axes: Axes, kind: str, truth: np.ndarray, score: np.ndarray, **options: Any) -> None:
    axes.plot(*curve(kind, truth, score), drawstyle="steps-post" if kind == "pr" else "default", **options)
    if kind == "roc" and "label" not in options:
        axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
