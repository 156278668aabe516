"""Figures of several runs: their ROC and precision-recall curves in one panel a finding, and their trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from xraylab.evaluation.metrics import ABSENT, number
from xraylab.evaluation.objective import of_run
from xraylab.evaluation.paired_comparison import Result, named
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.result import SplitResult
from xraylab.reporting.figures import export
from xraylab.reporting.figures.curves import KINDS, curve, scored
from xraylab.reporting.figures.layout import COLUMNS
from xraylab.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = 10  # at most, in a panel


def overlaid(
    folder: Path, split: str, of: Sequence[tuple[Result, SplitResult]], shared: set[str], synthetic: bool
) -> str:  # fmt: skip
    """Curves of several results, as HTML; also written as ``figures/<split>_{roc,pr}.png`` (``_images`` by image).

    Args:
        of: results, and what each evaluated in this split and unit.
        shared: words that all have, which the legend leaves out.
    """
    unit = of[0][1]["unit"]
    files = {r.job: Run(r.directory).predictions(split, unit) for r, _ in of}
    kept = [(r, x) for r, x in of if files[r.job].is_file() and x["macro"]["auroc"]["value"] is not None]
    best = sorted(kept, key=lambda pair: -(pair[1]["macro"]["auroc"]["value"] or 0))[:LINES]
    drawn = [pair for pair in kept if pair in best]
    if not drawn:
        return ""
    curves = [(_name(r, shared), PredictionTable.read(files[r.job]), result, Scoring.of(r.evaluation)) for r, result in drawn]
    parts = [f"<h3>curves <small>{split}, by {unit}</small></h3>"]
    if len(drawn) < len(kept):
        parts.append(f"<p class=n>The {len(drawn)} of highest macro AUROC of {len(kept)} results.</p>")
    for kind in KINDS:
        figure = _panels(kind, curves, f"{split} by {unit}")
        name = f"{split}_{kind}{'_images' * (unit == 'image')}.png"
        parts.append(export.drawn(figure, folder / "figures" / name, synthetic))
    return "".join(parts)


def _panels(kind: str, curves: Sequence[tuple[str, PredictionTable, SplitResult, Scoring]], where: str) -> Figure:
    """A panel a finding, with the curve of every result that has it."""
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for _, _, result, _ in curves for label in result["labels"]))
    metric, name, value = KINDS[kind]
    columns = min(COLUMNS, len(labels))
    lines = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(max(2.9 * columns, 6.5), 3.2 * lines + 0.7 + 0.24 * len(curves)), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    figure.suptitle(f"{name}, {where}")
    for axes, label in zip(grid, labels, strict=False):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_title(label, fontsize=9)
        axes.tick_params(labelsize=8)
        for k, (_, table, result, scoring) in enumerate(curves):
            if result["labels"].get(label, {}).get(metric, ABSENT)["value"] is not None:
                truth, score = scored(table, label, scoring)
                style = "steps-post" if kind == "pr" else "default"
                axes.plot(*curve(kind, truth, score), drawstyle=style, color=f"C{k}", lw=1.2)
        if kind == "roc":
            axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    for axes in grid[len(labels) :]:
        axes.set_axis_off()
    handles = [grid[0].plot([], [], color=f"C{k}")[0] for k in range(len(curves))]
    which = "macro" if len(labels) > 1 else labels[0]
    of = f"macro {value}" if which == "macro" else value
    words = [f"{job}; {of} {_value(result, which, metric)}" for job, _, result, _ in curves]
    figure.legend(handles, words, loc="outside lower center", fontsize=8, frameon=False)
    x, y = ("1 - specificity", "sensitivity") if kind == "roc" else ("sensitivity (recall)", "precision")
    for k, axes in enumerate(grid[: len(labels)]):
        axes.set_ylabel(y if k % columns == 0 else "", fontsize=9)
        if k >= len(labels) - columns:
            axes.set_xlabel(x, fontsize=9)
            axes.tick_params(labelbottom=True)
    return figure


def _value(result: SplitResult, label: str, metric: str) -> str:
    found = result["macro"] if label == "macro" else result["labels"].get(label)
    return f"{number(found[metric])}, n {found[metric]['n']}" if found else "-"


def trainings(folder: Path, runs: Sequence[Result], shared: set[str], synthetic: bool) -> str:
    """Validation loss and macro AUROC by epoch of several runs, as HTML and ``figures/training.png``; empty of one."""
    from matplotlib.figure import Figure

    histories = [(r, pd.read_csv(Run(r.directory).history_file)) for r in runs if Run(r.directory).history_file.is_file()]
    histories = [(r, h) for r, h in histories if len(h)]
    if len(histories) < 2:
        return ""
    styles = [("-", "--", ":")[min(k // LINES, 2)] for k in range(len(histories))]
    figure = Figure(figsize=(10.5, 3.8 + 0.24 * len(histories)), layout="constrained")
    panels = dict(zip(("train/loss", "valid/loss", "valid/macro/auroc"), figure.subplots(1, 3), strict=True))
    measured = {of_run(r.directory, "valid/loss") for r, _ in histories}
    for column, axes in panels.items():
        alike = column != "valid/loss" or len(measured) == 1
        axes.set_title(column if alike else "valid/loss\n(measured otherwise: not comparable)", fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max(len(history) for _, history in histories) + 0.5)
        axes.locator_params("x", integer=True)
        for k, (_, history) in enumerate(histories):
            if column in history:
                axes.plot(history["epoch"] + 1, history[column], styles[k], marker=".", color=f"C{k % LINES}", lw=1)
    handles = [panels["train/loss"].plot([], [], styles[k], color=f"C{k % LINES}")[0] for k in range(len(histories))]
    figure.legend(handles, [_name(r, shared) for r, _ in histories], loc="outside lower center", fontsize=8, frameon=False)
    return f"<h2>Training</h2>{export.drawn(figure, folder / 'figures' / 'training.png', synthetic)}"


def _name(r: Result, shared: set[str]) -> str:
    """What a legend calls a result."""
    return named(r.job, r.overrides, shared).removesuffix(": ")
