"""The base class of readers of chest X-rays: their lists, labels and views, and the way from images to studies."""

from __future__ import annotations

import csv
import gzip
import logging
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from xraylab.data.attributes import ATTRIBUTE, attributes_of
from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.csv_cells import differing, label_value
from xraylab.data.findings import VIEWS, chosen, finding, spelled, wanted_views
from xraylab.data.images.source import FileSource, check_bits, file_fault
from xraylab.data.stratification import written
from xraylab.data.study_table import ALL_LABELS, Problems, StudyTable
from xraylab.errors import UserError, did_you_mean, listed, refusing
from xraylab.system.progress import Pace

log = logging.getLogger(__name__)

KINDS = VIEWS["all"]
RANK = {kind: ("lateral", "other").index(kind) + 1 if kind in ("lateral", "other") else 0 for kind in KINDS}
CHUNK = 512  # files that a thread looks at in one go
THREADS = 16  # they wait for the disk


class Radiographs(DatasetReader):
    """Base class of readers of chest X-rays, with studies of one or more views.

    Args:
        root, on_error, sample: see :class:`~xraylab.data.DatasetReader`.
        view: ``frontal``, ``lateral``, ``pa``, ``ap``, ``all``, or a list of them; images of another view are left out.
        findings: ``all``, ``competition``, or a list of findings in any spelling: the labels.
        bits: how many bits the values of 16-bit files use.
    """

    known: tuple[str, ...]  # findings that ``all`` stands for
    on_request: tuple[str, ...] = ()  # others that the dataset has

    def __init__(
        self, root: str | None = None, view: str | Sequence[str] = "frontal", findings: str | Sequence[str] = "all",
        bits: int | None = None, on_error: str = "stop", sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, on_error, sample)
        self.bits = check_bits(bits)
        self.view = view if isinstance(view, str) else ",".join(map(str, view))
        self.kinds = wanted_views(view)
        self.findings = chosen(findings, self.known, self.on_request)

    def whole(self, path: Path) -> list[DatasetReader]:
        """One reader of all views and findings."""
        return [type(self)(self.root, "all", "all", self.bits, self.on_error, self.sample)]

    def table(self, path: Path, name: str, images: pd.DataFrame, problems: Problems) -> StudyTable:
        """The study table of images, of those views that are wanted and whose files are there.

        Args:
            path: of the dataset; references are relative to it.
            images: one row an image: id of its study, patient, split, view (one of ``KINDS``), image, and the study's labels,
                float32, which are the same in all its rows, and ``ALL_LABELS``; as they are written, any attributes, called
                ``attribute/<name>``; the index is of no matter.
            problems: what is wrong so far; those rows are not among the images.

        Raises:
            UserError: there are problems and ``on_error`` is ``stop``, or there is no image of a wanted view.
        """
        total = images["id"].nunique()
        images = self._of_view(path, images)
        fault = file_faults(path, images["image"].tolist())
        for kind in ("missing image files", "empty image files"):
            problems[kind] += images.loc[fault == kind, "image"].tolist()
        usable = images[fault == ""]
        empty = images.loc[(fault != "") & ~images["id"].isin(usable["id"]), "id"]
        problems["studies of whose images none can be used"] += empty.unique().tolist()
        frame = joined(usable, self.findings)
        cells = {str(c).removeprefix(ATTRIBUTE): usable[c] for c in usable if str(c).startswith(ATTRIBUTE)}
        frame = frame.join(attributes_of(usable["id"], cells, str(path)), on="id")
        total = max(total, sum(map(len, problems.values())))
        source = FileSource(path, bits=self.bits)
        return self.table_of(path, frame, problems, total, labels=self.findings, source=source, name=name, views=True)

    def _of_view(self, path: Path, images: pd.DataFrame) -> pd.DataFrame:
        counts = images["view"].value_counts()
        words = {kind: f"{kind} {counts[kind]:,}" for kind in KINDS if kind in counts}
        if len(images) and not any(kind in words for kind in self.kinds):
            raise UserError(
                f"view={self.view}: there is no such image in {path}. Images of each kind of view: {listed(words.values())}. "
                "Choose another: view=frontal, lateral, pa, ap or all."
            )
        if others := [word for kind, word in words.items() if kind not in self.kinds]:
            log.info(
                "view=%s: %s of %s images are of another view and left out: %s",
                self.view, f"{counts.drop(list(self.kinds), errors='ignore').sum():,}", f"{len(images):,}", listed(others),
            )  # fmt: skip
        return images[images["view"].isin(self.kinds)]


# ---- lists ----------------------------------------------------------------------------------------------------------


def read_list(
    path: Path, columns: Sequence[str], problems: Problems, labels: Sequence[str] = (), optional: Sequence[str] = (),
    ragged: bool = False, known: Sequence[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """Some columns of a CSV with a header, which may be gzipped; rows that are wrong are named and left out.

    A column is found by its name in any case, with or without spaces and underscores, or by another name of the finding.

    Args:
        columns: to be read as text, stripped.
        labels: findings to be read as labels.
        optional: those of ``columns`` that may be missing, and are then blank.
        ragged: rows may have more cells than the header, after those that are read.
        known: all findings that the dataset has, asked for or not; where one is missing, it is blank.

    Returns:
        One row a row, the index its line number: columns named by :func:`xraylab.data.findings.finding`; labels float32,
        1, 0, -1, NaN where blank, infinite where the cell is no label, which is named; and ``ALL_LABELS``, of ``known``.

    Raises:
        UserError: the file cannot be read, or columns are missing or there twice.
    """
    texts, lines, codes = list[tuple[str, ...]](), list[int](), list[int]()
    combinations: dict[tuple[str, ...], int] = {}  # of labels, far fewer than rows
    with _opened(path) as file:
        rows = csv.reader(file, strict=True)
        header = next(rows, [])
        places = _places(path, header, [*columns, *map(spelled, labels)], optional)
        names = [_plain(name) for name in header]  # of what is not asked for, nothing is refused
        places |= {spelled(x): names.index(_plain(x)) for x in known if x not in labels and _plain(x) in names}
        there = [c for c in columns if c in places]
        read = [*labels, *(x for x in known if x not in labels and spelled(x) in places)]
        pick, pick_labels = _picker([places[c] for c in there]), _picker([places[spelled(x)] for x in read])
        width, least = len(header), 1 + max(places.values())
        for row in rows:
            if len(row) != width and (not ragged or len(row) < least):
                if row:
                    kind = f"rows of {path.name} with another number of cells than its header, {width}"
                    problems[kind].append(f"line {rows.line_num} ({len(row)} cells)")
                continue
            picked = pick(row)
            if not any(picked) and not any(row):
                problems[f"empty rows of {path.name}"].append(f"line {rows.line_num}")
                continue
            texts.append(picked)
            lines.append(rows.line_num)
            codes.append(combinations.setdefault(pick_labels(row), len(combinations)))
    frame, found = pd.DataFrame(index=np.array(lines, np.int64)), list(combinations)
    for column, cells in zip(there, zip(*texts, strict=True) if texts else [()] * len(there), strict=True):
        frame[finding(column)] = np.array(list(map(sys.intern, map(str.strip, cells))), object)  # rows and files share texts
    frame[[finding(column) for column in columns if column not in there]] = ""
    table = np.array([[label_value(cell) for cell in cells] for cells in found], np.float32)
    values = pd.DataFrame(table.reshape(len(combinations), len(read)), columns=read)
    frame[list(labels)] = values[list(labels)].to_numpy()[codes]
    if known:
        frame[ALL_LABELS] = written(values.reindex(columns=list(known))).to_numpy(object)[codes]
    for i, k in np.argwhere(np.isinf(frame[list(labels)].to_numpy())).tolist():
        what = f"line {lines[i]} ({spelled(labels[k])} {found[codes[i]][k]!r})"
        problems[f"labels in {path.name} other than 1, 0, -1 and blank"].append(what)
    return frame


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A text file, gzipped or not, whatever its name says; what is wrong with it becomes a message."""
    again = ". Get it again."
    with (
        refusing(f"{path}: cannot be read", OSError),
        refusing(f"{path}: it is not a whole gzip file", EOFError, zlib.error, gzip.BadGzipFile, end=again),
        refusing(f"{path}: it is not a whole CSV", csv.Error, end=again),
        refusing(f"{path}: it is not a text of UTF-8", UnicodeDecodeError, end=again),
    ):
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if zipped else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file


def _plain(name: str) -> str:
    return finding(name).replace("_", "")


def _places(path: Path, header: Sequence[str], wanted: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """The number of each wanted column that is there."""
    names = [_plain(name) for name in header]
    found = {name: names.index(_plain(name)) for name in wanted if _plain(name) in names}
    shown = [name for name in header if name.strip()]
    if missing := [name for name in wanted if name not in found and name not in optional]:
        left = [name for name in shown if _plain(name) not in map(_plain, wanted)]
        needed = [name for name in wanted if name in found or name not in optional]
        hints = [f"{name}:{hint}" for name in missing if (hint := did_you_mean(name, left))]
        raise UserError(
            f"{path}: columns that are not there: {listed(missing, 20)}.{' ' if hints else ''}{' '.join(hints)}\n"
            f"expected: {listed(needed, 30)}\nfound:    {listed(shown, 30) or 'nothing; the file is empty'}"
        )
    if twice := [name for name in found if names.count(_plain(name)) > 1]:
        raise UserError(f"{path}: the column {twice[0]} is there twice. Keep one.")
    return found


def _picker(places: Sequence[int]) -> Any:
    """Cells of a row at some places, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    return (lambda row: (row[places[0]],)) if places else (lambda row: ())


def name_wrong(texts: pd.Series, what: str, name: str, problems: Problems) -> None:
    """Name rows of a list, by line number and text, that are not what they should be: paths that lead elsewhere, and the rest."""
    for line, text in texts.items():
        out = re.search(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:[/\\]", text)
        kind = f"paths of {name} that lead out of the dataset's folder" if out else f"rows of {name} that are not {what}"
        problems[kind].append(f"line {line}: {text[:80]}")


def with_lines(names: pd.Series) -> list[str]:
    """Names of rows and their line numbers."""
    return [f"{name} (line {line})" for line, name in names.items()]


# ---- from images to studies -----------------------------------------------------------------------------------------


def settled(images: pd.DataFrame, labels: Sequence[str], name: str, problems: Problems) -> pd.DataFrame:
    """The images of studies whose labels are labels and agree; those that do not agree are named.

    Args:
        images: with the id of each one's study, and labels as :func:`read_list` gives them.
        name: of the list that they come from.
    """
    wrong = set(images.loc[np.isinf(images[list(labels)].to_numpy()).any(1), "id"])
    torn = differing(images["id"], images[list(labels)])
    problems[f"studies of {name} whose images have different labels"] += [
        f"{study} ({', '.join(columns)})" for study, columns in torn.items() if study not in wrong
    ]
    return images[~images["id"].isin(wrong | set(torn))]


def joined(images: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Rows of a study table, studies in the order of their first image: frontal images come first, then by path.

    A study's group is the kinds of view among its images, sorted and joined by ``+``.

    Args:
        images: see :meth:`Radiographs.table`.
    """
    codes = pd.factorize(images["id"])[0]
    by_path = images["image"].to_numpy(object).argsort(kind="stable")
    order = by_path[np.lexsort((images["view"].map(RANK).to_numpy()[by_path], codes[by_path]))]
    images, codes = images.iloc[order], codes[order]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    ends = np.flatnonzero(np.diff(codes, append=-1)) + 1
    first = images.iloc[starts]
    kinds = 1 << images["view"].map(KINDS.index).to_numpy(np.int64)
    masks = np.bitwise_or.reduceat(kinds, starts) if len(starts) else kinds
    of_mask = {m: "+".join(sorted(kind for k, kind in enumerate(KINDS) if m >> k & 1)) for m in np.unique(masks)}
    references = images["image"].tolist()
    bags = [tuple(references[a:b]) for a, b in zip(starts, ends, strict=True)]
    views = images["view"].tolist()
    columns = {
        "id": first["id"].tolist(),
        "patient": first["patient"].tolist(),
        "group": [of_mask[m] for m in masks],
        "split": first["split"].tolist(),
        "images": pd.Series(bags, dtype=object),
        "views": pd.Series([tuple(views[a:b]) for a, b in zip(starts, ends, strict=True)], dtype=object),
        **{label: first[label].to_numpy(np.float32) for label in labels},
        ALL_LABELS: first[ALL_LABELS].tolist(),
    }
    return pd.DataFrame(columns)


def places_of(path: Path, folders: Iterable[str], start: str = "", end: str = "") -> dict[str, str]:
    """The folder of a dataset in which each name lies that starts and ends so; of several folders the last."""
    names = ((name, folder) for folder in folders if (path / folder).is_dir() for name in os.listdir(path / folder))
    return {name: folder for name, folder in names if name.startswith(start) and name.endswith(end)}


def file_faults(root: Path, images: Sequence[str]) -> np.ndarray:
    """Why each file cannot hold an image, an array of texts, empty where it can; see
    :func:`xraylab.data.images.source.file_fault`."""
    base = os.path.join(root, "")

    def faults(chunk: Sequence[str]) -> list[str]:
        return [file_fault(base + image) or "" for image in chunk]

    pace, found = Pace(len(images)), list[str]()
    with ThreadPoolExecutor(THREADS) as pool:
        for part in pool.map(faults, [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]):
            found += part
            if due := pace.due(len(found)):
                log.info("looking for image files: %s of %s, %.0f s to go", f"{len(found):,}", f"{len(images):,}", due[1])
    return np.array(found, object)
