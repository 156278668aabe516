"""Sections of a report about decisions: operating points, confusion, calibration. HTML tables, and figures to embed."""

from __future__ import annotations

import html
from collections.abc import Mapping

from xraylab.evaluation.metrics import RATES, number
from xraylab.evaluation.operating_points import CELLS, FIXED, threshold_text, trivial
from xraylab.evaluation.result import Calibration, Decision, OperatingPoint, ReaderStudy
from xraylab.reporting.frame import table

PARTS = ("miscalibration", "discrimination", "uncertainty")
CALIBRATION = ["", "ECE", "Brier", *PARTS, "temperature", "ECE after", "Brier after", "n"]


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
    rules = "; ".join(f"{name}: {point['rule']}" for name, point in points.items() if name != FIXED)
    chosen = {on for name, point in points.items() if name != FIXED and (on := point["chosen_on"])}
    where = f"chosen on {', '.join(sorted(chosen))}" if chosen else "not chosen: there is no validation split"
    note = f"A study is called positive at or above (>=) the threshold, {where}. {rules}."
    if split in chosen:
        note += " On the studies that chose them, the numbers of chosen thresholds are too good."
    none = {f"{label} ({f['reason']})" for p in points.values() for label, f in p["labels"].items() if f["threshold"] is None}
    missing = f"<p>No threshold: {html.escape('; '.join(sorted(none)))}.</p>" if none else ""
    noted = [f"{label}, {name}: {f['note']}" for name, p in points.items() for label, f in p["labels"].items() if "note" in f]
    missing += "".join(f"<p>{html.escape(line)}.</p>" for line in noted)
    missing += "".join(f"<p><b>Trivial:</b> {html.escape(line)}.</p>" for line in trivial(points))
    title = f"<h3>operating points and confusion <small>{split}</small></h3>"
    shown = table(["", "threshold", "", *_of_worth()], rows, "decisions")
    return f"{title}<p class=n>{html.escape(note)}</p>{shown}{missing}"


def readers_table(split: str, block: ReaderStudy) -> str:
    """What each reader's calls are worth, by finding.

    Args:
        block: ``readers`` of a split's result.
    """
    rows = [[reader, label, *_worth(found)] for reader, of in block["readers"].items() for label, found in of["labels"].items()]
    note = f"{block['file']}; n: the studies that were read and whose label is scored. Kappa is with the truth."
    title = f"<h3>readers <small>{split}</small></h3>"
    return f"{title}<p class=n>{html.escape(note)}</p>{table(['', '', *_of_worth()], rows, 'decisions')}"


def _of_worth() -> list[str]:
    """The heads of :func:`_worth`."""
    return [*(m.title for m in RATES.values()), *CELLS, "n"]


def _worth(found: Decision) -> list[object]:
    """What calls are worth, in cells."""
    counts = found["confusion"] or dict.fromkeys(CELLS, "")
    return [*(number(found[m]) for m in RATES), *(counts[c] for c in CELLS), found["kappa"]["n"]]


def calibration_table(split: str, block: Calibration) -> str:
    """Calibration of every finding, before and after its temperature.

    Args:
        block: ``calibration`` of a split's result.
    """
    rows, none = [], []
    for label, found in block["labels"].items():
        parts = found["parts"] or {}
        shown = [f"{parts[k]:.4f}" if k in parts else "-" for k in PARTS]
        t, after = found["temperature"], found["after"]
        if t["value"] is None:
            none.append(f"{label} ({t['reason']})")
        changed = [number(after["ece"]), number(after["brier"])] if after else ["-", "-"]
        temperature = "-" if t["value"] is None else f"{t['value']:.3f}"
        rows.append([label, number(found["ece"]), number(found["brier"]), *shown, temperature, *changed, found["n"]])
    where = block["chosen_on"] or "nothing: there is no validation split"
    note = (
        f"ECE: over {block['bins']} bins of equal width. Brier = miscalibration - discrimination + uncertainty, by isotonic "
        f"regression. The temperature, one a finding, is fitted on {where}; it is applied only where asked for (predict's "
        "calibrate=true), so every other number here is without it."
    )
    if split == block["chosen_on"]:
        note += " On the studies that it was fitted on, what is after is too good."
    missing = f"<p>No temperature: {html.escape('; '.join(none))}.</p>" if none else ""
    title = f"<h3>calibration <small>{split}</small></h3>"
    return f"{title}<p class=n>{note}</p>{table(CALIBRATION, rows)}{missing}"
