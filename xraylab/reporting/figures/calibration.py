"""Reliability diagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xraylab.evaluation.calibration import BINS
from xraylab.evaluation.metrics import number
from xraylab.evaluation.result import Calibration
from xraylab.reporting.figures.layout import panel_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability(block: Calibration, where: str) -> Figure:
    """A panel a finding: frequency of positives against mean probability in each bin, before and after the temperature.

    Args:
        block: ``calibration`` of a split's result.
        where: what the title says of the data.
    """
    labels = block["labels"]
    figure, grid = panel_grid(len(labels))
    figure.suptitle(f"Calibration, {where}")
    for axes, (label, found) in zip(grid, labels.items(), strict=False):
        axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
        axes.set_title(f"{label}\nn {found['n']}, ECE {number(found['ece'])}", fontsize=9)
        for part, colour, fill in ((found, "C0", "C0"), (found["after"], "C1", "none")):
            if part and part["bins"]:
                x, y, n = ([b[k] for b in part["bins"]] for k in ("probability", "frequency", "n"))
                axes.plot(x, y, color=colour, lw=1)
                axes.scatter(x, y, [8 + 120 * k / found["n"] for k in n], edgecolors=colour, facecolors=fill)
    after = "   ○ after temperature" if any(found["after"] for found in labels.values()) else ""
    figure.supxlabel(f"mean probability in each of {BINS} bins; area by studies\n● as it is{after}", fontsize=10)
    figure.supylabel("share that is positive", fontsize=10)
    return figure
