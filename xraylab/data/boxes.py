"""Boxes round findings: those of ChestX-ray14, those that the sample generators write, and a user's own.

A table of boxes has the columns ``image, slice, finding, x, y, width, height``: the image as the study table refers to it, the
slice from 1 on in a file of several (blank: of one), and the box in pixels from the upper left corner. ``finding`` is as labels
are written, in small letters with ``_``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from xraylab.data.findings import NIH, finding, spelled
from xraylab.errors import UserError, listed, refusing

COLUMNS = ("image", "slice", "finding", "x", "y", "width", "height")
FILE = "boxes.csv"  # of a generated sample, below its folder
NIH_FILE = "BBox_List_2017.csv"
NIH_SIDE = 1024.0  # pixels of the published pictures, whatever size these here are
NIH_NAMES = {"infiltrate": "infiltration"}  # as that file alone calls it


BoxRow = tuple[str, int | None, str, int, int, int, int]  # in the order of COLUMNS


class Box(NamedTuple):
    """Box as fractions of the image's width and height: left, top, right and bottom edge."""

    left: float
    top: float
    right: float
    bottom: float


def boxes_of(mask: np.ndarray, joined: float = 0.0) -> list[tuple[int, int, int, int]]:
    """Boxes x, y, width, height round what is True in a mask (H,W).

    Args:
        joined: what lies closer than this share of the longer side is in one box; 1: everything.

    >>> boxes_of(np.array([[0, 1, 0, 0, 1], [0, 1, 0, 0, 0]], bool))
    [(1, 0, 1, 2), (4, 0, 1, 1)]
    """
    if not mask.any():
        return []
    if joined >= 1:
        return [cv2.boundingRect(mask.astype(np.uint8))]  # type: ignore[list-item]
    reach = round(joined * max(mask.shape))
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((reach + 1, reach + 1), np.uint8)) if reach else mask.astype(np.uint8)
    count, parts = cv2.connectedComponents(grown)
    found = [mask & (parts == k) for k in range(1, count)]
    return [cv2.boundingRect(part.astype(np.uint8)) for part in found if part.any()]  # type: ignore[misc]


def write_boxes(path: Path, rows: Sequence[BoxRow]) -> None:
    """Write a table of boxes, ordered by image."""
    frame = pd.DataFrame(sorted(rows, key=lambda row: (row[0], row[1] or 0, *row[2:])), columns=list(COLUMNS))
    frame.assign(slice=frame["slice"].astype("Int64")).to_csv(path, index=False)


def write_nih_boxes(path: Path, rows: Sequence[BoxRow], sizes: Sequence[tuple[int, int]]) -> None:
    """Write boxes as ChestX-ray14 has them, in pixels of its pictures of 1024x1024.

    Args:
        sizes: width and height of each row's own picture.
    """
    published = {"pleural_effusion": "Effusion"} | {ours: theirs.title() for theirs, ours in NIH_NAMES.items()}
    lines = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"]
    for (image, _, name, *box), (width, height) in zip(rows, sizes, strict=True):
        scaled = (value * NIH_SIDE / side for value, side in zip(box, (width, height, width, height), strict=True))
        lines.append(",".join([image, published.get(name, spelled(name)), *(f"{value:.6f}" for value in scaled)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def find_boxes(image: Path) -> Path | None:
    """The table of boxes of the dataset that an image is of: of ChestX-ray14, or of a generated sample; None: there is none."""
    files = (folder / name for folder in image.parents for name in (FILE, NIH_FILE))
    return next((file for file in files if file.is_file()), None)


def read_boxes(path: Path) -> pd.DataFrame:
    """A table of boxes, as above or as ChestX-ray14 has it; ``slice`` may be missing.

    Returns:
        As above, with the columns ``unit_width`` and ``unit_height``: of what picture the pixels are, 0: of the image as it is.

    Raises:
        UserError: the file cannot be read, or a column is missing, or a box has no size.
    """
    with refusing(f"boxes={path}: cannot be read as a table", OSError, ValueError):
        frame = pd.read_csv(path)
    if path.name == NIH_FILE:
        return _of_nih(frame)
    if "slice" not in frame:
        frame["slice"] = np.nan
    if missing := [name for name in COLUMNS if name not in frame]:
        raise UserError(f"boxes={path}: there is no {listed(missing)}. Columns are {', '.join(COLUMNS)}; slice may be missing.")
    empty = ~((frame["width"] > 0) & (frame["height"] > 0))
    if empty.any():
        raise UserError(f"boxes={path}: the box of {frame['image'][empty].iloc[0]} has no width or no height.")
    return frame.assign(unit_width=0.0, unit_height=0.0)


def _of_nih(frame: pd.DataFrame) -> pd.DataFrame:
    """The published table, whose fourth header names four columns."""
    columns = dict(zip(frame.columns[:6], ("image", "finding", "x", "y", "width", "height"), strict=False))
    named = frame.rename(columns=columns)
    names = named["finding"].map(finding).replace(NIH_NAMES)
    if unknown := sorted(set(names) - set(NIH)):
        raise UserError(f"{NIH_FILE}: {listed(unknown)} is no finding of ChestX-ray14.")
    out = named.assign(finding=names, slice=np.nan, unit_width=NIH_SIDE, unit_height=NIH_SIDE)
    return out[[*COLUMNS, "unit_width", "unit_height"]]
