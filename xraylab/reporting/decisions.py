"""Parts of pages about decisions: operating points, confusion, calibration. HTML tables, and figures to embed."""

from __future__ import annotations

import html
from collections.abc import Mapping

from xraylab.evaluation.metrics import RATES, number
from xraylab.evaluation.operating_points import CELLS, FIXED, threshold_text
from xraylab.evaluation.result import Calibration, Decision, OperatingPoint, ReaderStudy
from xraylab.reporting.frame import render, table
from xraylab.reporting.summary import after_temperature

PARTS = ["miscalibration", "discrimination", "uncertainty"]
WORTH = [*(m.title for m in RATES.values()), *CELLS, "n"]  # heads of what calls are worth


def operating_table(split: str, points: Mapping[str, OperatingPoint]) -> str:
    """Every operating point of every finding: threshold, rates with intervals, and the four counts of the confusion.

    Args:
        points: ``operating_points`` of a split's result.
    """
    rows = [
        [label, threshold_text(point["labels"][label]["threshold"]), name, *_worth(point["labels"][label])]
        for label in next(iter(points.values()))["labels"]
        for name, point in points.items()
    ]
    missing = {f"{label} ({f['reason']})" for p in points.values() for label, f in p["labels"].items() if f["threshold"] is None}
    chosen = {name: point for name, point in points.items() if name != FIXED}
    return render(
        "operating_points.html", split=split, points=points, chosen=chosen, worth=WORTH, rows=rows, missing=sorted(missing)
    )


def readers_table(split: str, block: ReaderStudy) -> str:
    """What each reader's calls are worth, by finding.

    Args:
        block: ``readers`` of a split's result.
    """
    rows = [[reader, label, *_worth(found)] for reader, of in block["readers"].items() for label, found in of["labels"].items()]
    note = f"{block['file']}; n: the studies that were read and whose label is scored. Kappa is with the truth."
    title = f"<h3>readers <small>{split}</small></h3>"
    return f"{title}<p class=n>{html.escape(note)}</p>{table(['', '', *WORTH], rows, 'decisions')}"


def _worth(found: Decision) -> list[object]:
    """What calls are worth, in cells."""
    counts = found["confusion"] or dict.fromkeys(CELLS, "")
    return [*(number(found[m]) for m in RATES), *(counts[c] for c in CELLS), found["kappa"]["n"]]


def calibration_table(split: str, block: Calibration) -> str:
    """Calibration of every finding, before and after its temperature.

    Args:
        block: ``calibration`` of a split's result.
    """
    labels = block["labels"].items()
    rows = [
        [label, number(f["ece"]), number(f["brier"]), *_parts(f["parts"] or {}), *after_temperature(f), f["n"]]
        for label, f in labels
    ]
    missing = [f"{label} ({f['temperature']['reason']})" for label, f in labels if f["temperature"]["value"] is None]
    return render("calibration.html", split=split, block=block, parts=PARTS, rows=rows, missing=missing)


def _parts(parts: Mapping[str, float]) -> list[str]:
    return [f"{parts[k]:.4f}" if k in parts else "-" for k in PARTS]
