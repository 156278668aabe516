"""Cells of a CSV of studies: read as text, checked, and turned into numbers, words and paths."""

from __future__ import annotations

import csv
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from xraylab.data.datasets.layout import SPLITS, dicom_below, folder_of
from xraylab.data.images.dicom import SUFFIXES as DICOM
from xraylab.data.images.source import ARRAY, SUFFIXES, file_fault, is_picture
from xraylab.errors import UserError, did_you_mean, listed, refusing

log = logging.getLogger(__name__)

COLUMNS = ("id", "patient", "group", "split", "images", "image")  # the last two are synonyms
SPLIT_NAMES = {**SPLITS, "validate": "valid", "heldout": "heldout"}


class Faults:
    """Record of what is wrong with a table: kinds with the studies they concern, and rows without an id."""

    def __init__(self) -> None:
        self.nameless: list[str] = []
        self.studies: set[str] = set()
        self._by_kind: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, study: str, detail: str = "") -> None:
        self.studies.add(study)
        self._by_kind[kind].append(f"{study} ({detail})" if detail else study)

    def add_rows(self, kind: str, ids: pd.Series, cells: pd.Series | None = None) -> None:
        """Name rows, given by the ids of their studies, by line and, where a cell is wrong, by that."""
        shown = [""] * len(ids) if cells is None else [f"{cell!r}, " for cell in cells[ids.index]]
        for line, study, cell in zip(ids.index, ids, shown, strict=True):
            self.add(kind, study, f"{cell}line {line}")

    def problems(self) -> dict[str, list[str]]:
        return ({"rows without an id": self.nameless} if self.nameless else {}) | dict(self._by_kind)


def read_cells(path: Path) -> tuple[pd.DataFrame, dict[int, int]]:
    """The text of a CSV's cells, columns by the header and the index by line; and how many cells the rows have that are short.

    Raises:
        UserError: it cannot be read as CSV, holds no row, or a column has no name or that of another.
    """
    try:
        cells = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, na_filter=False, skip_blank_lines=False, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: it is empty.") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        what = "a text of UTF-8" if isinstance(error, UnicodeDecodeError) else "a whole CSV"
        reason = str(error).split("C error: ")[-1].strip()
        raise UserError(f"{path}: it is not {what}: {reason}. Save it as CSV, with commas and in UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from error
    cells.index = cells.index + 1
    cells = cells[(cells != "").any(axis=1)]
    if cells.empty:
        raise UserError(f"{path}: it is empty.")
    header = cells.iloc[0].str.strip().tolist()
    cells = cells.iloc[1:]
    if cells.empty:
        raise UserError(f"{path}: it has no rows but a header: {listed(header, 30)}.")
    keep = [name != "" or bool((cells[i] != "").any()) for i, name in enumerate(header)]
    if len(header) > 1 and header[0] == "" and cells[0].tolist() == [str(k) for k in range(len(cells))]:
        keep[0] = False  # the index of pandas
    cells, names = cells.loc[:, keep], [name for name, kept in zip(header, keep, strict=True) if kept]
    if wrong := [name for i, name in enumerate(names) if name == "" or name in names[:i]]:
        what = f"two columns are called {wrong[0]}" if wrong[0] else f"column {header.index('') + 1} has no name"
        raise UserError(f"{path}: {what}. Give each column a name of its own.")
    cells.columns = pd.Index(names)
    stripped = {name: cells[name].str.strip() for name in COLUMNS if name in names}
    with open(path, encoding="utf-8-sig", newline="") as file:  # pandas fills such rows up
        counts = {line: len(row) for line, row in enumerate(csv.reader(file), start=1)}
    named = max(i for i, kept in enumerate(keep) if kept) + 1
    return cells.assign(**stripped), {line: counts[line] for line in cells.index if counts.get(line, named) < named}


def counted(column: pd.Series) -> str:
    """The words of a column, and how often each is there."""
    return listed((f"{word!r} in {n} rows" for word, n in column.value_counts().items()), 20)


def is_given(cells: pd.DataFrame, name: str) -> bool:
    """Whether there is such a column and it is not all blank."""
    return name in cells and bool((cells[name] != "").any())


def renamed_columns(cells: pd.DataFrame, others: Sequence[str]) -> str:
    """A sentence on each column that is not there and may go by another name, or an empty string."""
    hints = [(name, did_you_mean(name, others)) for name in ("patient", "group", "split") if name not in cells]
    return "".join(f" There is no column {name}.{hint}" for name, hint in hints if hint)


def text_lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8.

    Raises:
        UserError: it cannot be read.
    """
    with refusing(f"{path}: cannot be read", OSError, UnicodeDecodeError, end=""):
        return path.read_text(encoding="utf-8-sig").splitlines()


def label_value(cell: str) -> float:
    """The raw label of a cell: 1, 0, -1, NaN where it is blank, infinite for anything else."""
    try:
        value = float(cell.strip() or "nan")
    except ValueError:
        return np.inf
    return value if value in (1, 0, -1) or np.isnan(value) else np.inf


def numbers_of(column: pd.Series, value: Callable[[str], float] = label_value) -> np.ndarray:
    """float32 (rows,), the raw label of each cell."""
    codes, texts = pd.factorize(column)
    return np.array([value(text) for text in texts], np.float32)[codes]


def every_label(cells: pd.DataFrame, value: Callable[[str], float] = label_value) -> pd.DataFrame:
    """Raw labels of every column that holds labels, whichever are asked for, sorted by name."""
    found = {name: numbers_of(cells[name], value) for name in sorted(map(str, cells)) if name not in COLUMNS}
    return pd.DataFrame({name: of for name, of in found.items() if are_labels(of)}, index=cells.index)


def are_labels(values: np.ndarray) -> bool:
    """Whether :func:`numbers_of` of a column are labels, but for a few mistakes."""
    filled = (~np.isnan(values)).sum()
    return bool(filled and np.isinf(values).sum() * 2 <= filled)


def check_agreement(rows: pd.DataFrame, faults: Faults) -> None:
    """Name the ids whose rows differ in anything but the images."""
    for study, columns in differing(rows["id"], rows.drop(columns="id")).items():
        faults.add("ids whose rows do not agree", study, f"in {listed(columns)}")


def differing(ids: pd.Series, values: pd.DataFrame) -> dict[str, list[str]]:
    """Studies whose rows do not agree, each with the columns in which they differ.

    Args:
        ids: of each row's study.
        values: of the same rows; blanks are equal.
    """
    codes, names = pd.factorize(ids)
    first = np.zeros(len(names), np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    found: dict[int, list[str]] = defaultdict(list)
    for column in values:
        numbers = pd.factorize(values[column], use_na_sentinel=False)[0]
        for code in np.unique(codes[numbers != numbers[first[codes]]]).tolist():
            found[code].append(str(column))
    return {str(names[code]): columns for code, columns in sorted(found.items())}


def bags_of(ids: pd.Series, cells: pd.Series, path: Path) -> list[list[str]]:
    """The images of each id as given, ids in the order of their first row; one that an earlier row has as well is there once."""
    bags: dict[str, list[str]] = {}
    again = 0
    for study, cell in zip(ids.tolist(), cells.tolist(), strict=True):
        bag = bags.setdefault(study, [])
        parts = [part.strip() for part in cell.replace("|", ";").split(";") if part.strip()]
        fresh = [part for part in parts if part not in bag]
        again += len(parts) - len(fresh)
        bag += fresh
    if again:
        log.info("%s: %d rows name a picture that an earlier row of their study names; it is there once.", path, again)
    return list(bags.values())


def inside(image: str, base: str) -> str | None:
    """A path relative to the folder ``base``; None if it leads elsewhere."""
    if not os.path.isabs(image) and "./" not in image and "//" not in image:
        return image if image != ".." else None
    path = os.path.relpath(os.path.join(base, image), base)
    return None if path == ".." or path.startswith("../") else path


def path_fault(base: str, image: str) -> str | None:
    """Why a file cannot be used, as a kind of problem, from its name, size and, of a volume, its header."""
    if (folder := folder_of(Path(base), image)) is not None and dicom_below(Path(base), folder):
        return None
    path, fault = os.path.join(base, image), file_fault(os.path.join(base, image))
    if image.lower().endswith(ARRAY):
        return fault or volume_fault(path)
    known = image.lower().endswith((*SUFFIXES, *DICOM))
    if known or (fault and not os.path.splitext(image)[1]) or (not fault and is_picture(path)):
        return fault
    return f"images that are neither {', '.join(SUFFIXES)} nor DICOM nor NIfTI nor .npy"


def volume_fault(path: str) -> str | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return "arrays that cannot be read"
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.size == 0:
        return "arrays other than uint8 (slices, height, width)"
    return "arrays of one picture in colours, where slices (slices, height, width) are wanted" if array.shape[-1] == 3 else None
