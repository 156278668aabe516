"""Sections of a report about decisions: operating points, confusion, calibration. HTML tables, and figures to embed."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xraylab.evaluation.calibration import BINS
from xraylab.evaluation.metrics import number
from xraylab.evaluation.operating_points import CELLS, FIXED, RATES, threshold_text, trivial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS, SIGNS = "xo^vsD", "✕○△▽□◇"  # of operating points, the fixed one first
COLUMNS = 4  # of panels


def operating_table(split: str, points: Mapping[str, Any]) -> str:
    """Every operating point of every finding: threshold, rates with intervals, and the four counts of the confusion.

    Args:
        points: ``operating_points`` of a split's result.
    """
    head = "".join(f"<th>{c}</th>" for c in ["", "threshold", "", *RATES, *CELLS, "n"])
    rows = []
    for label in next(iter(points.values()))["labels"]:
        for name, point in points.items():
            found = point["labels"][label]
            counts = found["confusion"] or dict.fromkeys(CELLS, "")
            threshold = threshold_text(found["threshold"])
            cells = [threshold, html.escape(name), *(number(found[m]) for m in RATES), *(counts[c] for c in CELLS)]
            rows.append(
                f"<tr><td>{html.escape(label)}</td>{''.join(f'<td>{c}</td>' for c in cells)}<td>{found['kappa']['n']}</td></tr>"
            )
    rules = "; ".join(f"{name}: {point['rule']}" for name, point in points.items() if name != FIXED)
    chosen = {point["chosen_on"] for name, point in points.items() if name != FIXED} - {None}
    where = f"chosen on {', '.join(sorted(chosen))}" if chosen else "not chosen: there is no validation split"
    note = f"A study is called positive at or above (>=) the threshold, {where}. {rules}."
    if split in chosen:
        note += " On the studies that chose them, the numbers of chosen thresholds are too good."
    none = {f"{label} ({f['reason']})" for p in points.values() for label, f in p["labels"].items() if f["threshold"] is None}
    missing = f"<p>No threshold: {html.escape('; '.join(sorted(none)))}.</p>" if none else ""
    noted = [f"{label}, {name}: {f['note']}" for name, p in points.items() for label, f in p["labels"].items() if "note" in f]
    missing += "".join(f"<p>{html.escape(line)}.</p>" for line in noted)
    missing += "".join(f"<p><b>Trivial:</b> {html.escape(line)}.</p>" for line in trivial({"operating_points": points}))
    title = f"<h3>operating points and confusion <small>{split}</small></h3>"
    table = f"<table class=decisions><tr>{head}</tr>{''.join(rows)}</table>"
    return f"{title}<p class=n>{html.escape(note)}</p>{table}{missing}"


def readers_table(split: str, block: Mapping[str, Any]) -> str:
    """What each reader's calls are worth, by finding.

    Args:
        block: ``readers`` of a split's result.
    """
    rows = []
    for reader, of in block["readers"].items():
        for label, found in of["labels"].items():
            cells = [html.escape(label), *(number(found[m]) for m in RATES), *(found["confusion"][c] for c in CELLS)]
            rows.append(
                f"<tr><td>{html.escape(reader)}</td>{''.join(f'<td>{c}</td>' for c in cells)}<td>{found['kappa']['n']}</td></tr>"
            )
    head = "".join(f"<th>{c}</th>" for c in ["", "", *RATES, *CELLS, "n"])
    note = f"{block['file']}; n: the studies that were read and whose label is scored. Kappa is with the truth."
    title = f"<h3>readers <small>{split}</small></h3>"
    return f"{title}<p class=n>{html.escape(note)}</p><table class=decisions><tr>{head}</tr>{''.join(rows)}</table>"


def calibration_table(split: str, block: Mapping[str, Any]) -> str:
    """Calibration of every finding, before and after its temperature.

    Args:
        block: ``calibration`` of a split's result.
    """
    columns = [
        "",
        "ECE",
        "Brier",
        "miscalibration",
        "discrimination",
        "uncertainty",
        "temperature",
        "ECE after",
        "Brier after",
        "n",
    ]
    rows, none = [], []
    for label, found in block["labels"].items():
        parts = found["parts"] or {}
        shown = [f"{parts[k]:.4f}" if k in parts else "-" for k in ("miscalibration", "discrimination", "uncertainty")]
        t, after = found["temperature"], found["after"]
        if t["value"] is None:
            none.append(f"{label} ({t['reason']})")
        changed = [number(after["ece"]), number(after["brier"])] if after else ["-", "-"]
        cells = [
            number(found["ece"]),
            number(found["brier"]),
            *shown,
            "-" if t["value"] is None else f"{t['value']:.3f}",
            *changed,
        ]
        rows.append(f"<tr><td>{html.escape(label)}</td>{''.join(f'<td>{c}</td>' for c in cells)}<td>{found['n']}</td></tr>")
    where = block["chosen_on"] or "nothing: there is no validation split"
    note = (
        f"ECE: over {block['bins']} bins of equal width. Brier = miscalibration - discrimination + uncertainty, by isotonic "
        f"regression. The temperature, one a finding, is fitted on {where}; it is applied only where asked for (predict's "
        "calibrate=true), so every other number here is without it."
    )
    if split == block["chosen_on"]:
        note += " On the studies that it was fitted on, what is after is too good."
    missing = f"<p>No temperature: {html.escape('; '.join(none))}.</p>" if none else ""
    head = "".join(f"<th>{c}</th>" for c in columns)
    title = f"<h3>calibration <small>{split}</small></h3>"
    return f"{title}<p class=n>{note}</p><table><tr>{head}</tr>{''.join(rows)}</table>{missing}"


def reliability(block: Mapping[str, Any], where: str) -> Figure:
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


def spaced(
    figure: Figure, rows: int, columns: int, left: float, right: float, bottom: float, top: float,
    across: float = 0.0, down: float = 0.0, **options: Any
) -> list[Axes]:  # fmt: skip
    """Axes of a figure with margins and distances in inches; constrained layout takes longer than all the drawing.

    Args:
        across, down: between columns and rows.
        **options: of ``Figure.subplots``.

    Returns:
        Row by row.
    """
    width, height = figure.get_size_inches()
    wide = (width - left - right - (columns - 1) * across) / columns
    tall = (height - bottom - top - (rows - 1) * down) / rows
    places = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height,
              "wspace": across / wide, "hspace": down / tall}  # fmt: skip
    return list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=places, **options).ravel())


def panel_grid(number: int) -> tuple[Figure, list[Axes]]:
    """A figure of square panels over [0, 1], four a row, with room for titles of three lines; those left over are off."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, number)
    rows = math.ceil(number / columns)
    width, height = max(2.75 * columns, 5.5), 3.05 * rows + 0.9
    figure = Figure(figsize=(width, height))
    # titles and labels of a figure lie at a share of its size
    grid = spaced(figure, rows, columns, 0.02 * width + 0.45, 0.1, 0.01 * height + 0.75, 0.02 * height + 0.8, 0.2, 0.75,
                  sharex=True, sharey=True)  # fmt: skip
    for axes in grid[:number]:
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.tick_params(labelsize=8)
    for axes in grid[number - columns : number]:
        axes.tick_params(labelbottom=True)
    for axes in grid[number:]:
        axes.set_axis_off()
    return figure, grid


def roc_points(axes: Axes, result: Mapping[str, Any], label: str, colour: str) -> None:
    """Put a finding's operating points, and those of its readers, on its ROC curve."""
    _reader_points(axes, result, label, colour)
    for marker, (name, point) in zip(MARKERS, result.get("operating_points", {}).items(), strict=False):
        found = point["labels"][label]
        if found["sensitivity"]["value"] is not None and found["specificity"]["value"] is not None:
            fill: dict[str, Any] = {} if marker == "x" else {"facecolors": "none"}
            x, y = 1 - found["specificity"]["value"], found["sensitivity"]["value"]
            axes.scatter(x, y, 32, marker=marker, color=colour, zorder=3, gid=f"{label}: {name}", **fill)


def _reader_points(axes: Axes, result: Mapping[str, Any], label: str, colour: str) -> None:
    for reader, of in result.get("readers", {}).get("readers", {}).items():
        found = of["labels"].get(label)
        if found and found["sensitivity"]["value"] is not None and found["specificity"]["value"] is not None:
            x, y = 1 - found["specificity"]["value"], found["sensitivity"]["value"]
            axes.scatter(x, y, 60, marker="*", color=colour, zorder=3, gid=f"{label}: reader {reader}")
            axes.annotate(reader, (x, y), textcoords="offset points", xytext=(5, -3), fontsize=7, color=colour)


def points_legend(result: Mapping[str, Any]) -> str:
    """Which marker is which operating point, a line to put below an axis; empty where there are none."""
    words = [f"{sign} {name}" for sign, name in zip(SIGNS, result.get("operating_points", {}), strict=False)]
    words += ["★ readers"] if "readers" in result else []
    return "\n" + "   ".join(words) if words else ""
