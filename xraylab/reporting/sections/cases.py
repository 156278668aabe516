"""Pictures of confident mistakes and right calls, as a section of the report."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd

from xraylab.evaluation.predictions import THRESHOLD, PredictionTable, Scoring
from xraylab.evaluation.result import last_split
from xraylab.inference.cases import EACH, FOLDER, choose_cases
from xraylab.reporting.frame import picture
from xraylab.reporting.frame import table as html_table
from xraylab.reporting.sections import Context, Section
from xraylab.run import Run


def cases(c: Context) -> str:
    """Pictures where the run has them; else, of a table or a combination, whose images are not at hand, names."""
    if "checkpoint" in c.evaluation:
        return cases_section(c.directory)
    split, _ = last_split(c.evaluation)
    path = Run(c.directory).predictions(split)
    if not path.is_file():
        return ""
    return listed_section(PredictionTable.read(path), split, c.evaluation["data"], Scoring.of(c.evaluation))


def cases_section(directory: Path) -> str:
    """The part of a report that shows a run's cases, pictures embedded; empty where it has none."""
    path = directory / FOLDER / "cases.csv"
    if not path.is_file():
        return ""
    shown = pd.read_csv(path, dtype=str, keep_default_na=False)
    note = "The first view or the middle slice of each study."
    parts = [_heading(shown["data"].iloc[0], shown["split"].iloc[0], f"confident right calls. {note}")]
    for label, of_label in shown.groupby("label", sort=False):
        parts.append(f"<h3>{html.escape(str(label))}</h3>")
        for kind, of_kind in of_label.groupby("kind", sort=False):
            figures = []
            for case in of_kind.to_dict("records"):
                path = directory / FOLDER / case["picture"]
                if path.is_file():
                    words = f"{case['id']}: p {float(case['p']):.3f}" + (f", {case['what']}" if case["what"] else "")
                    figures.append(picture(words, path.read_bytes(), "case"))
            parts.append(f"<p>{html.escape(str(kind))}</p>{''.join(figures)}")
    return "".join(parts)


def listed_section(table: PredictionTable, split: str, data: str, scoring: Scoring) -> str:
    """The part of a report that names the cases of a prediction table whose images are not at hand.

    Args:
        table: by study.
        data: what the studies are of.
        scoring: what blank and uncertain labels count as.
    """
    chosen = choose_cases(table, EACH, scoring)
    if chosen.empty:
        return ""
    rows = []
    for (label, kind), of in chosen.groupby(["label", "kind"], sort=False):
        named = ", ".join(f"{case['id']} {case['p']:.3f}" for case in of.to_dict("records"))
        rows.append((label, kind, named))
    note = "confident right calls: each study's id and probability. The images are not at hand here."
    return f"{_heading(data, split, note)}<div class=settings>{html_table((), rows)}</div>"


def _heading(data: str, split: str, note: str) -> str:
    which = f"{split}: of each finding the most confident mistakes at {THRESHOLD}, then {note}"
    return f"<h2>Cases <small>{html.escape(data)}</small></h2><p class=n>{html.escape(which)}</p>"


SECTION = Section(40, cases)
