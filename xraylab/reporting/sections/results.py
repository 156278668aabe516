"""Results by split and unit: metrics, curves, operating points, readers, calibration."""

from __future__ import annotations

from markupsafe import Markup

from xraylab.evaluation.metrics import COUNTS, METRICS, number
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.result import SplitResult, Values, by_unit
from xraylab.reporting.decisions import calibration_table, operating_table, readers_table
from xraylab.reporting.figures import export
from xraylab.reporting.figures.calibration import reliability
from xraylab.reporting.figures.curves import KINDS, confusion, panels, side_by_side
from xraylab.reporting.frame import render, table
from xraylab.reporting.sections import Context, Section
from xraylab.run import Run

NONE = {"value": 0}
OVERLAID = 3  # findings whose curves share one picture


def results(c: Context) -> str:
    """Each split and unit; the figures are files too."""
    order = sorted(by_unit(c.evaluation), key=lambda of: (of[0] != "test", of[0] != "valid"))  # what counts most first
    return "".join(_split(c, split, result) for split, result in order)


def _split(c: Context, split: str, result: SplitResult) -> str:
    groups = {name: next(iter(part["labels"].values())) for name, part in result["groups"].items()}
    undefined: dict[tuple[str, str | None], list[str]] = {}
    for name, metrics in result["labels"].items():
        for metric, m in metrics.items():
            if m["value"] is None:
                undefined.setdefault((name, m["reason"]), []).append(metric.replace("_", " "))
    reasons = [f"{name} {', '.join(metrics)}: {reason}" for (name, reason), metrics in undefined.items()]
    parts = [render("results.html", split=split, r=result, metrics=_table, groups=groups, undefined=reasons)]
    path = Run(c.directory).predictions(split, result["unit"])
    if path.is_file():
        parts.append(_figures(c, PredictionTable.read(path), split, result))
    if "operating_points" in result:
        parts.append(operating_table(split, result["operating_points"]))
    if "readers" in result:
        parts.append(readers_table(split, result["readers"]))
    if "calibration" in result:
        figure = reliability(result["calibration"], f"{split} by {result['unit']}")
        drawn = export.drawn(figure, c.directory / "figures" / f"{split}_calibration.png", c.synthetic)
        parts += [calibration_table(split, result["calibration"]), drawn]
    return "".join(parts)


def _table(labels: dict[str, Values]) -> Markup:
    told = [c for c in COUNTS if c in ("positives", "negatives") or any(m.get(c, NONE)["value"] for m in labels.values())]
    head = ["", *(m.title for m in METRICS.values()), *told, "n"]
    columns = [*METRICS, *told]
    rows = [[name, *(number(m[c]) if c in m else "" for c in columns), m["auroc"]["n"]] for name, m in labels.items()]
    return Markup(table(head, rows, "metrics"))


def _figures(c: Context, of: PredictionTable, split: str, result: SplitResult) -> str:
    """Write ``figures/<split>_roc.png``, ``_pr.png`` and ``_confusion.png``, and return the curves for the page."""
    directory, synthetic, scored = c.directory, c.synthetic, Scoring.of(c.evaluation)
    where, end = f"{split} by {result['unit']}", "_images" * (result["unit"] == "image")
    drawn = []
    for kind in KINDS:
        figure = panels(kind, of, result, where, scored)
        drawn.append(export.svg(figure, synthetic) if len(result["labels"]) > OVERLAID else "")
        export.save_figure(figure, directory / "figures" / f"{split}_{kind}{end}.png", synthetic)
    export.save_figure(confusion(of, result, where, scored), directory / "figures" / f"{split}_confusion{end}.png", synthetic)
    return "".join(drawn) or export.svg(side_by_side(of, result, where, scored), synthetic)


SECTION = Section(10, results)
