"""Results by split and unit: metrics, curves, operating points, readers, calibration."""

from __future__ import annotations

import html

from xraylab.evaluation.metrics import COUNTS, METRICS, how_intervals, number, without_interval
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.result import SplitResult, Values, by_unit, choices
from xraylab.reporting.figures import export
from xraylab.reporting.figures.calibration import reliability
from xraylab.reporting.figures.curves import KINDS, confusion, panels, side_by_side
from xraylab.reporting.frame import table
from xraylab.reporting.sections import Context, Section
from xraylab.reporting.sections.decisions import calibration_table, operating_table, readers_table
from xraylab.reporting.summary import exclusive_note, macro_notes, tie_notes, units
from xraylab.run import Run

NONE = {"value": 0}
OVERLAID = 3  # findings whose curves share one picture


def results(c: Context) -> str:
    """Each split and unit; the figures are files too."""
    order = sorted(by_unit(c.evaluation), key=lambda of: (of[0] != "test", of[0] != "valid"))  # what counts most first
    return "".join("".join(_split(c, split, result)) for split, result in order)


def _split(c: Context, split: str, result: SplitResult) -> list[str]:
    directory, synthetic = c.directory, c.synthetic
    chosen, intervals = choices(result["selected_on"]), how_intervals(result)
    patients = "patients not known" if result["patients"] is None else f"{result['patients']} patients"
    called = f"called positive at or above (>=) {result['threshold']}"
    shown = result["labels"] if len(result["labels"]) == 1 else {**result["labels"], "macro": result["macro"]}
    parts = [
        f"<h2>{split}, by {result['unit']} <small>{result['n']} {units(result)}, {patients}; {chosen}</small></h2>",
        f"<p class=n>By {result['unit']}; {called}. {intervals[0].upper() + intervals[1:]}.</p>",
        _table(shown),
    ]
    parts += [f"<p class=n>{_e(note[0].upper() + note[1:])}.</p>" for note in macro_notes(result)]
    if lacking := without_interval(shown):
        parts.append(f"<p class=n>{_e('; '.join(lacking))}.</p>")
    parts += [f"<p>{_e(note)}.</p>" for note in tie_notes(result)]
    if "exclusive" in result:
        parts.append(f"<p>{_e(exclusive_note(result))}.</p>")
    if len(result["groups"]) > 1 and len(result["labels"]) == 1:
        parts.append("<h3>by group</h3>" + _table({g: next(iter(p["labels"].values())) for g, p in result["groups"].items()}))
    elif len(result["groups"]) > 1:
        for name, group in result["groups"].items():
            parts.append(f"<h3>{_e(name)} <small>{group['n']} {units(result)}</small></h3>{_table(group['labels'])}")
    undefined: dict[tuple[str, str | None], list[str]] = {}
    for name, metrics in result["labels"].items():
        for metric, m in metrics.items():
            if m["value"] is None:
                undefined.setdefault((name, m["reason"]), []).append(metric.replace("_", " "))
    if undefined:
        said = [f"{name} {', '.join(metrics)}: {reason}" for (name, reason), metrics in undefined.items()]
        parts.append(f"<p>Undefined: {_e('; '.join(said))}.</p>")
    path = Run(directory).predictions(split, result["unit"])
    if path.is_file():
        parts.append(_figures(c, PredictionTable.read(path), split, result))
    if "operating_points" in result:
        parts.append(operating_table(split, result["operating_points"]))
    if "readers" in result:
        parts.append(readers_table(split, result["readers"]))
    if "calibration" in result:
        figure = reliability(result["calibration"], f"{split} by {result['unit']}")
        parts += [calibration_table(split, result["calibration"]), export.svg(figure, synthetic)]
        export.save_figure(figure, directory / "figures" / f"{split}_calibration.png", synthetic)
    return parts


def _table(labels: dict[str, Values]) -> str:
    told = [c for c in COUNTS if c in ("positives", "negatives") or any(m.get(c, NONE)["value"] for m in labels.values())]
    head = ["", *(m.title for m in METRICS.values()), *told, "n"]
    columns = [*METRICS, *told]
    rows = [[name, *(number(m[c]) if c in m else "" for c in columns), m["auroc"]["n"]] for name, m in labels.items()]
    return table(head, rows, "metrics")


def _figures(c: Context, of: PredictionTable, split: str, result: SplitResult) -> str:
    """Write ``figures/<split>_roc.png``, ``_pr.png`` and ``_confusion.png``, and return the curves for the page."""
    directory, synthetic, scored = c.directory, c.synthetic, Scoring.of(c.evaluation)
    where, end = f"{split} by {result['unit']}", "_images" * (result["unit"] == "image")
    drawn = []
    for kind in KINDS:
        figure = panels(kind, of, result, where, scored)
        drawn.append(export.svg(figure, synthetic) if len(result["labels"]) > OVERLAID else "")
        if synthetic and not drawn[-1]:
            export.mark(figure)
        export.save_figure(figure, directory / "figures" / f"{split}_{kind}{end}.png", synthetic)
    figure = confusion(of, result, where, scored)
    if synthetic:
        export.mark(figure)
    export.save_figure(figure, directory / "figures" / f"{split}_confusion{end}.png", synthetic)
    return "".join(drawn) or export.svg(side_by_side(of, result, where, scored), synthetic)


def _e(text: object) -> str:
    return html.escape(str(text))


SECTION = Section(10, results)
