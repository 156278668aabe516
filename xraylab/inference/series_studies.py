"""Studies of files whose DICOM slices are series: put in order and chosen by the rule that the model was trained with."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from xraylab.data.images.dicom import is_dicom
from xraylab.data.images.series import NO_HEADER, Slice, Volume
from xraylab.data.images.source import ARRAY, SUFFIXES
from xraylab.data.images.volumes import VolumeRule, headers_of, studies_of_series
from xraylab.errors import UserError, listed
from xraylab.inference.inputs import LEFT_OUT, Files, Skipped


def with_series(files: Files, rule: VolumeRule) -> tuple[Files, dict[str, Volume]]:
    """Studies in which series of slices stand as one reference each, and the slices of these.

    In a folder that was given, slices of one DICOM study (StudyInstanceUID) are one study wherever they lie, called as the
    deepest folder that holds them all. Studies without a slice stay as they are.

    Raises:
        UserError: no study is left.
    """
    rows: list[dict[str, Any]] = files.frame.to_dict("records")  # type: ignore[assignment]
    images = [i for row in rows for i in row["images"] if not i.lower().endswith((*SUFFIXES, ARRAY)) and is_dicom(Path(i))]
    headers = headers_of(Path(), images)
    rows = _by_study(rows, headers, files.top) if files.top is not None else rows
    bags = {row["id"]: [i for i in row["images"] if i in headers] for row in rows}
    bags = {study: of for study, of in bags.items() if any(not isinstance(headers[i], str) for i in of)}
    found = studies_of_series(Path(), bags, rule, headers)
    lost = list(files.missing)
    lost += [Skipped(study, "", kind, LEFT_OUT) for kind, studies in found.faults.items() for study in studies]
    left = []
    for row in rows:
        if row["id"] in found.images:
            left.append({**row, "images": found.images[row["id"]]})
        elif row["id"] not in bags and rule.parts:
            lost.append(Skipped(row["id"], row["path"], f"no series of which dataset.series={rule.series} takes parts", LEFT_OUT))
        elif row["id"] not in bags:
            left.append(row)
    if not left:
        raise UserError(f"{files.name}: no study is left: {listed(sorted({s.reason for s in lost}))}.")
    frame = pd.DataFrame(left)
    if rule.parts:
        frame["parts"] = [rule.parts] * len(frame)
    return replace(files, frame=frame, missing=lost), found.volumes


def _by_study(rows: Sequence[dict[str, Any]], headers: dict[str, list[Slice] | str], top: Path) -> list[dict[str, Any]]:
    """Rows of a folder, cut and joined so that slices of one DICOM study are one; the others are as they were."""
    above = os.path.abspath(top)
    bags: dict[str, list[str]] = defaultdict(list)  # by StudyInstanceUID, or by folder where there is none
    first: dict[str, dict[str, Any]] = {}
    others = []
    for row in rows:
        slices = {i: of for i in row["images"] if i in headers and not isinstance(of := headers[i], str)}
        broken = [i for i in row["images"] if headers.get(i) == NO_HEADER]
        if not slices:
            others.append(row)
            continue
        keys = []
        for image, of in slices.items():
            keys.append(of[0].study or row["id"])
            bags[keys[-1]].append(image)
            first.setdefault(keys[-1], row)
        for key in dict.fromkeys(keys):  # whose slice it would be is not known
            bags[key] += broken
    made = []
    for key in sorted(bags, key=lambda key: (first[key]["path"], key)):
        folder = os.path.commonpath([os.path.dirname(image) for image in bags[key]])
        study = os.path.relpath(folder, above)
        made.append({**first[key], "id": os.path.basename(above) if study == "." else study, "path": folder,
                     "images": tuple(bags[key])})  # fmt: skip
    names = [row["id"] for row in made]
    for place, row in enumerate(made):
        if names.count(names[place]) > 1:
            row["id"] = f"{names[place]}#{names[:place].count(names[place]) + 1}"
    taken = {row["id"] for row in made}
    return made + [{**row, "id": row["path"]} if row["id"] in taken else row for row in others]
