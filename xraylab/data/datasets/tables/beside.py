"""Which pictures beside a CSV its columns name, and how a reference is made of a cell."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from xraylab.data.datasets.tables.columns import part_of
from xraylab.data.images.dicom import SUFFIXES as DICOM
from xraylab.data.images.source import ARRAY, SUFFIXES
from xraylab.system.paths import LEAVINGS

MOST = 1_000_000  # files that are looked at
SAMPLE = 5_000  # cells that are
ALIKE = 200  # files of one name that are


class Named(NamedTuple):
    """The pictures that a column names.

    Attributes:
        text: of ``columns.images``; empty: no one text makes references of all cells.
        column: that names them.
        found, cells: so many of so many different cells name a picture.
        folder: that holds them all, relative to the CSV's.
    """

    text: str
    column: str
    found: int
    cells: int
    folder: str


class Pictures:
    """The pictures in and below a folder, by the name of the file with and without its suffix."""

    def __init__(self, folder: Path) -> None:
        self.number = 0
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for top, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not LEAVINGS.match(name))
            inside = os.path.relpath(top, folder)
            for name in sorted(names):
                if not name.lower().endswith((*SUFFIXES, *DICOM, ARRAY)) or LEAVINGS.match(name):
                    continue
                reference = name if inside == "." else f"{inside}/{name}"
                self.by_name[name].append(reference)
                self.by_stem[os.path.splitext(name)[0]].append(reference)
                self.number += 1
            if self.number > MOST:
                break

    def of(self, cell: str) -> str | None:
        """The picture that a cell names, by its last part and as many folders before it as agree; None: there is none, or
        several are as near."""
        parts = [part for part in re.split(r"[/\\]", cell) if part]
        if not parts:
            return None
        stem = os.path.splitext(parts[-1])[0]
        found = (self.by_name.get(parts[-1]) or self.by_stem.get(parts[-1]) or self.by_stem.get(stem, []))[:ALIKE]
        near = [_common(parts[:-1], reference.split("/")[:-1]) for reference in found]
        best = [reference for reference, n in zip(found, near, strict=True) if n == max(near)]
        return best[0] if len(best) == 1 else None


def named_pictures(cells: pd.DataFrame, pictures: Pictures) -> Named | None:
    """The pictures that the column names which names most; None: no column does."""
    best: tuple[int, int, str, dict[str, str]] | None = None
    for column in map(str, cells):
        words = sorted({part.strip() for cell in set(cells[column]) for part in re.split(r"[;|]", cell) if part.strip()})
        words = words[:: 1 + len(words) // SAMPLE]
        found = {word: reference for word in words if (reference := pictures.of(word)) is not None}
        if found and len(found) * 2 > len(words) and (best is None or len(found) > best[0]):
            best = len(found), len(words), column, found
    if best is None:
        return None
    number, of, column, found = best
    folder = os.path.commonpath([os.path.dirname(reference) for reference in found.values()]) if number else ""
    return Named(_text(cells, column, found), column, number, of, folder)


def _text(cells: pd.DataFrame, column: str, found: dict[str, str]) -> str:
    """The text that makes of each cell its reference; one other column may name a folder. Empty: there is none."""
    rows = cells.assign(**{column: cells[column].str.strip()}).drop_duplicates(column).set_index(column)
    for which in ("", "name", "stem", *(f"{k}:" for k in range(1, 9))):
        place = f"{{{column}:{which}}}" if which else f"{{{column}}}"
        around = {word: _around(part_of(word, which), reference) for word, reference in found.items()}
        if None in around.values() or any(not part_of(word, which) for word in found):
            continue
        for other in (None, *map(str, rows)):
            texts = set()
            for word, pair in around.items():
                before, after = pair or ("", "")
                folder = "" if other is None else str(rows[other].get(word, "")).strip()
                steps = [f"{{{other}}}" if folder and step == folder else step for step in before.split("/")]
                texts.add("/".join(steps) + place + after)
            if len(texts) == 1:
                text = texts.pop()
                return column if text == f"{{{column}}}" else text
    return ""


def _around(part: str, reference: str) -> tuple[str, str] | None:
    """What stands before and after a part of a reference, at its end or before its suffix; None: it is not there."""
    stem, suffix = os.path.splitext(reference)
    for whole, after in ((reference, ""), (stem, suffix)):
        if whole.endswith(part):
            return whole.removesuffix(part), after
    return None


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many last parts of two paths agree."""
    pairs = list(zip(reversed(one), reversed(other), strict=False))
    return next((k for k, (a, b) in enumerate(pairs) if a != b), len(pairs))
