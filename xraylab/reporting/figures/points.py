"""Operating points and readers on ROC curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xraylab.evaluation.result import SplitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS, SIGNS = "xo^vsD", "✕○△▽□◇"  # of operating points, the fixed one first


def roc_points(axes: Axes, result: SplitResult, label: str, colour: str) -> None:
    """Put a finding's operating points, and those of its readers, on its ROC curve."""
    _reader_points(axes, result, label, colour)
    for marker, (name, point) in zip(MARKERS, result.get("operating_points", {}).items(), strict=False):
        found = point["labels"][label]
        if found["sensitivity"]["value"] is not None and found["specificity"]["value"] is not None:
            fill: dict[str, Any] = {} if marker == "x" else {"facecolors": "none"}
            x, y = 1 - found["specificity"]["value"], found["sensitivity"]["value"]
            axes.scatter(x, y, 32, marker=marker, color=colour, zorder=3, gid=f"{label}: {name}", **fill)


def _reader_points(axes: Axes, result: SplitResult, label: str, colour: str) -> None:
    for reader, of in result.get("readers", {}).get("readers", {}).items():
        found = of["labels"].get(label)
        if found and found["sensitivity"]["value"] is not None and found["specificity"]["value"] is not None:
            x, y = 1 - found["specificity"]["value"], found["sensitivity"]["value"]
            axes.scatter(x, y, 60, marker="*", color=colour, zorder=3, gid=f"{label}: reader {reader}")
            axes.annotate(reader, (x, y), textcoords="offset points", xytext=(5, -3), fontsize=7, color=colour)


def points_legend(result: SplitResult) -> str:
    """Which marker is which operating point, a line to put below an axis; empty where there are none."""
    words = [f"{sign} {name}" for sign, name in zip(SIGNS, result.get("operating_points", {}), strict=False)]
    words += ["★ readers"] if "readers" in result else []
    return "\n" + "   ".join(words) if words else ""
