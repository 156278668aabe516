"""Operating points and readers on ROC curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xraylab.evaluation.result import Decision, SplitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS, SIGNS = "xo^vsD", "✕○△▽□◇"  # of operating points, the fixed one first


def roc_points(axes: Axes, result: SplitResult, label: str, colour: str) -> None:
    """Put a finding's operating points, and those of its readers, on its ROC curve."""
    for reader, of in result.get("readers", {}).get("readers", {}).items():
        if (place := _place(of["labels"].get(label))) is not None:
            axes.scatter(*place, 60, marker="*", color=colour, zorder=3, gid=f"{label}: reader {reader}")
            axes.annotate(reader, place, textcoords="offset points", xytext=(5, -3), fontsize=7, color=colour)
    for marker, (name, point) in zip(MARKERS, result.get("operating_points", {}).items(), strict=False):
        if (place := _place(point["labels"][label])) is not None:
            fill: dict[str, Any] = {} if marker == "x" else {"facecolors": "none"}
            axes.scatter(*place, 32, marker=marker, color=colour, zorder=3, gid=f"{label}: {name}", **fill)


def _place(found: Decision | None) -> tuple[float, float] | None:
    """1 - specificity and sensitivity of calls, where both are defined."""
    if found is None or found["sensitivity"]["value"] is None or found["specificity"]["value"] is None:
        return None
    return 1 - found["specificity"]["value"], found["sensitivity"]["value"]


def points_legend(result: SplitResult) -> str:
    """Which marker is which operating point, a line to put below an axis; empty where there are none."""
    words = [f"{sign} {name}" for sign, name in zip(SIGNS, result.get("operating_points", {}), strict=False)]
    words += ["★ readers"] if "readers" in result else []
    return "\n" + "   ".join(words) if words else ""
