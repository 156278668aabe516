"""The release of MIMIC-CXR that a chest tutorial was made with: single X-rays in TFRecords, or in CSV tables beside JPEGs.

``{frontal,lateral}/{train,valid,test}-00000-of-00002.tfrecord``: a record has ``jpg_bytes`` and one int64 a label: 0 not
mentioned, 1 negative, 2 uncertain, 3 positive. It carries neither an id nor a patient, so it is a study of its own, named by
its shard and its place there. Instead there may be ``{frontal,lateral}/{train,valid,test}.csv`` with a column of paths and the
labels. Split and view are words of a file's path.
"""

from __future__ import annotations

import csv
import logging
import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.chest_xray import file_faults
from xraylab.data.datasets.folder import heldout_split
from xraylab.data.datasets.layout import SPLITS
from xraylab.data.findings import CHEXPERT, chosen, finding
from xraylab.data.images.source import FileSource, ImageSource, check_bits
from xraylab.data.images.tfrecord import SHARD, Records, TFRecordSource, index_shards, unpacked
from xraylab.data.stratification import written
from xraylab.data.study_table import ALL_LABELS, Problems, StudyTable, stop_or_skip
from xraylab.data.synthetic.chest import write_tutorial
from xraylab.data.synthetic.mark import is_synthetic
from xraylab.errors import UserError, did_you_mean, listed, refusing

log = logging.getLogger(__name__)

VIEWS = ("frontal", "lateral")
SPLIT_WORDS = {**SPLITS, "training": "train", "validate": "valid", "testing": "test"}
NUMBERED = re.compile(r"(.*-)(\d+)-of-(\d+)(.*)")
JPG = "jpg_bytes"
PATH_COLUMNS = ("path", "image_path", "image", "file", "filename", "file_name", "jpg", "jpg_path")
FEATURES = tuple("airspace_opacity" if name == "lung_opacity" else name for name in CHEXPERT)  # as the release spells them
VALUES = np.array([np.nan, 0, -1, 1], np.float32)  # of the codes 0 to 3


class MimicTutorial(DatasetReader):
    """Reader of the tutorial's release of MIMIC-CXR: single X-rays of one view or of both, with the 14 labels of CheXpert.

    Args:
        view: ``frontal``, ``lateral`` or ``all``.
        findings: ``all``, ``competition``, or a list of findings in any spelling: the labels.
        bits: how many bits the values of 16-bit images use, e.g. 12.

    >>> import tempfile
    >>> root = write_tutorial(Path(tempfile.mkdtemp()) / "mimic-cxr-tutorial", train=20, valid=20, test=20)
    >>> table = MimicTutorial(view="all", findings="edema").read(root)
    >>> sorted(set(table.frame["group"])), table.labels
    (['frontal', 'lateral'], ('edema',))
    """

    published_name = "mimic-cxr-tutorial"
    expected = """
  mimic-cxr-tutorial/
    frontal/
      train-00000-of-00002.tfrecord  train-00001-of-00002.tfrecord   (or .tfrecords, .tfrecord-00000-of-00002; also .gz)
      valid-00000-of-00001.tfrecord  test-00000-of-00001.tfrecord
    lateral/ ...
  or, instead of shards, CSV tables of path and labels: frontal/train.csv ... and the JPEG files
  The words frontal or lateral, and train, valid or test, may be anywhere in a file's path."""
    register = "made from MIMIC-CXR-JPG, for credentialed users of PhysioNet, https://physionet.org/content/mimic-cxr-jpg/"
    heldout = "test"
    writer = write_tutorial

    def __init__(
        self, root: str | None = None, view: str = "frontal", findings: str | Sequence[str] = "all", bits: int | None = None,
        on_error: str = "stop", sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, on_error, sample)
        if view not in (*VIEWS, "all"):
            raise UserError(f"view={view}: it is frontal, lateral or all.{did_you_mean(str(view), VIEWS)}")
        self.views = VIEWS if view == "all" else (view,)
        self.labels, self.bits = chosen(findings, CHEXPERT), check_bits(bits)

    def matches(self, path: Path) -> bool:
        """A folder with a shard or CSV whose path tells split and view, at most two folders deep."""
        if not path.is_dir() or (path / self.published_name).exists() or any(path.glob(f"*/{self.published_name}")):
            return False  # that folder is it, not this one
        return any(_told(name) for names in _listing(path, deep=2) for name in names)

    def read(self, path: Path) -> StudyTable:
        """One row a record; without a valid split, test is the held-out one."""
        shards, tables = _listing(path)
        parts = self._parts(path, shards or tables)
        problems: Problems = defaultdict(list)
        source: ImageSource = FileSource(path, bits=self.bits)
        if shards:
            source, found = self._shards(path, [part.file for part in parts], problems)
        else:
            found = [_rows(path, part.file, self.labels, problems) for part in parts]
        names = [name for records in found for name in records.names]
        total = len(names) + sum(map(len, problems.values()))
        problems_left = stop_or_skip(problems, self.on_error, str(path), total, "records" if shards else "images")
        published = heldout_split({part.split for part in parts}, f"{path}: there is no split beside train")
        sizes = [len(records.names) for records in found]
        codes = np.array([codes for records in found for codes in records.codes], np.int64).reshape(-1, len(CHEXPERT))
        values = pd.DataFrame(VALUES[codes], columns=list(CHEXPERT))
        columns = {
            "id": names,
            "patient": "",
            "group": np.repeat(np.array([part.view for part in parts], object), sizes),
            "split": np.repeat(np.array([published[part.split] for part in parts], object), sizes),
            "images": pd.Series([(image,) for records in found for image in records.images], dtype=object),
        }
        return StudyTable(
            frame=pd.DataFrame(columns | {label: values[label] for label in self.labels} | {ALL_LABELS: written(values)}),
            labels=self.labels,
            source=source,
            name=self.published_name,
            synthetic=is_synthetic(path),
            patients_known=False,
            views=True,
            problems=problems_left,
        )

    def _parts(self, path: Path, files: Sequence[str]) -> list[_Part]:
        """What the files of the wanted views hold.

        Raises:
            UserError: a path does not tell it, two files are of one name, or there is none of a view.
        """
        told = {name: _told(name) for name in files}
        if untold := [name for name, part in told.items() if part is None]:
            raise UserError(
                f"{path}: {len(untold)} of {len(files)} files do not tell in their path what they hold: {listed(untold)}. "
                "Each needs one of the words frontal and lateral, and one of train, valid and test, in its name or a folder's, "
                "as in frontal/train-00000-of-00002.tfrecord."
            )
        parts = [part for part in told.values() if part is not None]
        for stem, count in Counter(_stem(part.file) for part in parts).items():
            if count > 1:
                both = " and ".join(part.file for part in parts if _stem(part.file) == stem)
                raise UserError(f"{path}: {both} are of one name, and so would be their records. Keep one of them.")
        counts = Counter(part.view for part in parts)
        if missing := [view for view in self.views if not counts[view]]:
            there = ", ".join(f"{count} {view}" for view, count in counts.items())
            raise UserError(f"{path}: none of its files is {missing[0]}, only {there}. Choose view={parts[0].view}.")
        return [part for part in parts if part.view in self.views]

    def _shards(self, path: Path, files: Sequence[str], problems: Problems) -> tuple[ImageSource, list[Records]]:
        """What each shard holds; what is wrong with any is added to the problems.

        Raises:
            UserError: no record has an image, or one of the labels.
        """
        problems["shards that are not there"] += _missing(files)
        packed = {file: unpacked(path / file) for file in files if file.lower().endswith(".gz")}
        damaged = [file for file, place in packed.items() if place is None]
        problems["compressed shards that are damaged"] += damaged
        plain = {file: place for file, place in packed.items() if place is not None}
        whole = {file: _stem(file) for file in files if file not in damaged}
        found = dict(zip(whole, index_shards(path, whole, JPG, self.labels, plain, CHEXPERT), strict=True))
        records = sum(shard.parsed for shard in found.values())
        lacking: Problems = defaultdict(list)
        for shard in found.values():
            for feature, names in shard.lacking.items():
                lacking[feature] += names
            for kind, names in shard.faults.items():
                problems[kind] += names
        if nowhere := [_feature(name) for name, names in lacking.items() if len(names) == records]:
            features = set().union(*(shard.features for shard in found.values()))
            raise _unlike(f"{path}: no record has", nowhere, [JPG, *FEATURES], sorted(features))
        for name, names in lacking.items():
            problems[f"records without {_feature(name)}"] += names
        return TFRecordSource(path, JPG, self.bits, plain), [found.get(file, Records()) for file in files]

    def whole(self, path: Path) -> list[DatasetReader]:
        """One reader of all views that are there, and all findings."""
        views = {told.view for names in _listing(path) for name in names if (told := _told(name))}
        return [MimicTutorial(self.root, "all" if len(views) > 1 else min(views), "all", self.bits, self.on_error, self.sample)]

    def lists(self, path: Path) -> tuple[str, ...]:
        """The shards, or the CSVs."""
        shards, tables = _listing(path)
        return tuple(shards or tables)

    def _no_match(self, given: Path) -> str:
        shards = _listing(given)[0] if given.is_dir() else []
        untold = f"\nThe paths of these shards do not tell what they hold: {listed(shards)}" if shards else ""
        return super()._no_match(given) + untold


class _Part(NamedTuple):
    """A shard or CSV, relative to the dataset."""

    file: str
    split: str
    view: str


def _told(file: str) -> _Part | None:
    """What a file holds, by the words of its path; None where they do not tell, or tell two things."""
    words = re.split(r"[^a-z]+", file.lower())
    splits, views = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}, {word for word in words if word in VIEWS}
    return _Part(file, splits.pop(), views.pop()) if len(splits) == 1 and len(views) == 1 else None


def _stem(file: str) -> str:
    """What a file's records are named by."""
    match = SHARD.fullmatch(file)
    return f"{match.group(1)}{match.group(2) or ''}" if match else file


def _missing(files: Sequence[str]) -> list[str]:
    """Shards that the numbers of others tell of."""
    numbers: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for match in filter(None, map(NUMBERED.fullmatch, files)):
        start, number, total, end = match.groups()
        numbers[start, total, end].add(number)
    return [
        f"{start}{n:0{len(total)}}-of-{total}{end}"
        for (start, total, end), there in numbers.items()
        for n in range(int(total))
        if f"{n:0{len(total)}}" not in there
    ]


def _listing(path: Path, deep: int | None = None) -> tuple[list[str], list[str]]:
    """Shards and CSVs under a folder, relative to it and in order, but for hidden ones; None: however deep."""
    shards, tables = [], []
    for folder, folders, files in os.walk(path):
        inside = Path(folder).relative_to(path)
        folders[:] = [] if len(inside.parts) == deep else [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                shards += [(inside / name).as_posix()] if SHARD.fullmatch(name) else []
                tables += [(inside / name).as_posix()] if name.lower().endswith(".csv") else []
    return sorted(shards), sorted(tables)


def _rows(path: Path, file: str, labels: Sequence[str], problems: Problems) -> Records:
    """The rows of a CSV; those with something wrong are named.

    Raises:
        UserError: it is no CSV, or lacks a column.
    """
    unreadable = (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError)
    with refusing(f"{path / file}: cannot be read as CSV", *unreadable, end=""):
        with (path / file).open(encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text)
            widths = dict((rows.line_num, len(row)) for row in rows if row)  # noqa: C402 # by line; blank ones are none
        header = next(iter(widths.values()), 0)
        if uneven := [line for line, width in widths.items() if width != header]:
            more = f" and {len(uneven) - 1} more" if len(uneven) > 1 else ""
            raise UserError(f"{path / file}: line {uneven[0]}{more}: {widths[uneven[0]]} cells, and the header has {header}.")
        cells = pd.read_csv(path / file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    columns: dict[str, str] = {}
    for column in cells.columns:
        if columns.setdefault(finding(column), column) != column:
            raise UserError(f"{path / file}: the columns {columns[finding(column)]} and {column} are one. Keep one of them.")
    where = [name for name in PATH_COLUMNS if name in columns][:1]
    if missing := ([] if where else ["path"]) + [_feature(label) for label in labels if label not in columns]:
        raise _unlike(f"{path / file}: there is no column", missing, ["path", *FEATURES], list(cells.columns))
    given = cells[columns[where[0]]].str.strip().tolist()
    folder = posixpath.dirname(file)
    base = folder if any((path / folder / image).is_file() for image in given[:100] if image) else ""
    images = [posixpath.normpath(posixpath.join(base, image)) if image else "" for image in given]
    known = {label: cells[columns[label]].str.strip().str.removesuffix(".0") for label in CHEXPERT if label in columns}
    texts = pd.DataFrame(known, index=cells.index).reindex(columns=list(CHEXPERT))
    are_codes = texts.isin(["0", "1", "2", "3"])
    codes = texts.where(are_codes, "0").to_numpy(np.int64).tolist()
    wrong = ~are_codes[list(labels)].to_numpy(bool)
    records = Records()
    seen: set[str] = set()
    numbers = list(widths)[1:]
    for i, (number, image, fault, bad) in enumerate(zip(numbers, images, file_faults(path, images), wrong, strict=True)):
        line = f"{file} line {number}"
        if not image:
            problems["rows without an image"].append(line)
        elif image == ".." or image.startswith(("../", "/")):
            problems["images outside the dataset's folder"].append(f"{given[i]} ({line})")
        elif image in seen:
            problems["images twice in one table"].append(f"{image} ({line})")
        elif fault:
            problems[f"{fault} of {file}"].append(image)
        elif bad.any():
            column = columns[labels[int(bad.argmax())]]
            problems["labels other than 0, 1, 2 and 3"].append(f"{line} ({column}: {cells[column].iloc[i]!r})")
        else:
            records.names.append(image)
            records.images.append(image)
            records.codes.append(codes[i])
        seen.add(image)
    return records


def _feature(name: str) -> str:
    """A label as the release spells it."""
    return FEATURES[CHEXPERT.index(name)] if name in CHEXPERT else name


def _unlike(what: str, missing: Sequence[str], expected: Sequence[str], found: Collection[str]) -> UserError:
    """The error that shows what is expected beside what was found."""
    return UserError(
        f"{what} {listed(missing, 20)}.{did_you_mean(missing[0], found)}\n"
        f"  expected: {', '.join(expected)}\n  found:    {listed(found, 40)}"
    )
