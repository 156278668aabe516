"""Where in its images each case comes from, as a section of the report: what ``report explain=true`` has drawn."""

from __future__ import annotations

import html

import pandas as pd

from xraylab.inference.cases import FOLDER, MAPS
from xraylab.reporting.frame import picture
from xraylab.reporting.sections import Context, Section

NOTE = (
    "of each case the image that adds most, under its map, which is positive where a place speaks for the finding. It shows what "
    "the model looked at, and not that the model is right."
)


def maps(c: Context) -> str:
    """Maps of the cases, pictures embedded; empty where none have been drawn since the run was evaluated."""
    folder = c.directory / FOLDER
    if not (folder / MAPS).is_file():
        return ""
    shown = pd.read_csv(folder / MAPS, dtype=str, keep_default_na=False)
    if shown.empty:
        return ""
    first = shown.iloc[0]
    parts = [
        f"<h2>Maps of cases <small>{html.escape(first['data'])}</small></h2>",
        f"<p class=n>{html.escape(first['split'])}, {html.escape(first['method'])}: {NOTE}</p>",
    ]
    for label, of_label in shown.groupby("label", sort=False):
        parts.append(f"<h3>{html.escape(str(label))}</h3>")
        for kind, of_kind in of_label.groupby("kind", sort=False):
            drawn = [case for case in of_kind.to_dict("records") if (folder / case["picture"]).is_file()]
            figures = (
                picture(f"{case['id']}: {case['what']}", (folder / case["picture"]).read_bytes(), "case") for case in drawn
            )
            parts.append(f"<p>{html.escape(str(kind))}</p>{''.join(figures)}")
    return "".join(parts)


SECTION = Section(41, maps)
