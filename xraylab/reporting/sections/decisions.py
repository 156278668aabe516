"""Sections of a report about decisions: operating points, confusion, calibration. HTML tables, and figures to embed."""

from __future__ import annotations

import html
from collections.abc import Mapping

from xraylab.evaluation.metrics import RATES, number
from xraylab.evaluation.operating_points import CELLS, FIXED, threshold_text, trivial
from xraylab.evaluation.result import Calibration, OperatingPoint, ReaderStudy


def operating_table(split: str, points: Mapping[str, OperatingPoint]) -> str:
    """Every operating point of every finding: threshold, rates with intervals, and the four counts of the confusion.

    Args:
        points: ``operating_points`` of a split's result.
    """
    head = "".join(f"<th>{c}</th>" for c in ["", "threshold", "", *(m.title for m in RATES.values()), *CELLS, "n"])
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
    table = f"<table class=decisions><tr>{head}</tr>{''.join(rows)}</table>"
    return f"{title}<p class=n>{html.escape(note)}</p>{table}{missing}"


def readers_table(split: str, block: ReaderStudy) -> str:
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
    head = "".join(f"<th>{c}</th>" for c in ["", "", *(m.title for m in RATES.values()), *CELLS, "n"])
    note = f"{block['file']}; n: the studies that were read and whose label is scored. Kappa is with the truth."
    title = f"<h3>readers <small>{split}</small></h3>"
    return f"{title}<p class=n>{html.escape(note)}</p><table class=decisions><tr>{head}</tr>{''.join(rows)}</table>"


def calibration_table(split: str, block: Calibration) -> str:
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
