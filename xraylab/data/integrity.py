"""Check that a dataset is whole and sound: files, labels, splits, pictures."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from xraylab.config.dataset import no_study
from xraylab.data.attributes import attribute_counts
from xraylab.data.datasets.base import DatasetReader
from xraylab.data.images.burnt_in_text import text_lines
from xraylab.data.images.source import ImageSource, of_one_value
from xraylab.data.published import Published
from xraylab.data.study_table import BLANK, UNREADABLE, StudyTable
from xraylab.data.synthetic.mark import SYNTHETIC_MARK
from xraylab.errors import UserError, listed
from xraylab.system.paths import LEAVINGS
from xraylab.system.progress import in_threads

log = logging.getLogger(__name__)

T = TypeVar("T")
Number = int | tuple[int, int] | None

TEXT = "images with burnt-in text"
STATES = {"positive": 1, "negative": 0, "uncertain": -1, "blank": np.nan}


def of_each(look: Callable[[str], T], source: ImageSource, images: Sequence[str], title: str) -> list[T | UserError]:
    """What is found of every reference of a source; an error stands for one that cannot be read."""

    def found(image: str) -> T | UserError:
        try:
            return look(image)
        except UserError as error:
            return error

    in_memory = not images or source.path(images[0]) is None
    return [found(i) for i in images] if in_memory else list(in_threads(found, images, title))


def counts(frame: pd.DataFrame, labels: Sequence[str], patients_known: bool) -> pd.DataFrame:
    """One row a split and group, train first: studies, patients, images, and how often each label has each value.

    Args:
        frame: of a study table, with a column ``number`` of the images in each study.
    """
    rows = []
    for (split, group), part in frame.groupby(["split", "group"], sort=False):
        row: dict[str, Any] = {"split": split, "group": group, "studies": len(part)}
        row["patients"] = part["patient"].nunique() if patients_known else None
        row["images"] = int(part["number"].sum())
        states = {f"{label}_{word}": int(part[label].isin([v]).sum()) for label in labels for word, v in STATES.items()}
        rows.append(row | states)
    order = ["train", "heldout", "valid", "test"]
    rows.sort(key=lambda row: order.index(row["split"]))
    columns = ["split", "group", "studies", "patients", "images"]
    columns += [f"{label}_{word}" for label in labels for word in STATES]
    return pd.DataFrame(rows, columns=columns).astype({"patients": "Int64"})


# ---- what is found --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A published number beside the one that was found."""

    what: str
    published: Number
    found: Number
    note: str  # why the two are not judged; empty: they are

    @property
    def excess(self) -> int:
        """1: more than published was found, or images a study beyond the published range; 0: the same; -1: less."""
        if self.found == self.published:
            return 0
        if isinstance(self.found, tuple) and isinstance(self.published, tuple):
            return 1 if self.found[0] < self.published[0] or self.found[1] > self.published[1] else -1
        return 1 if isinstance(self.found, int) and isinstance(self.published, int) and self.found > self.published else -1

    @property
    def sign(self) -> str:
        """``excess`` in a word."""
        words = ("beyond", "narrower") if isinstance(self.published, tuple) else ("more", "less")
        return {0: "", 1: words[0], -1: words[1]}[self.excess]

    def __str__(self) -> str:
        return f"{self.what} {_shown(self.found)}, published {_shown(self.published)}"


@dataclass(frozen=True)
class Findings:
    """Result of the check of a dataset."""

    name: str
    path: Path
    synthetic: bool
    counts: pd.DataFrame  # see the function of that name; splits as published
    labels: tuple[str, ...]
    compared: list[Compared]
    faults: dict[str, list[str]]
    strays: list[str]  # files that belong to nothing
    dotfiles: int
    read: int | None  # files whose images were read; None: not asked for
    texts: list[str]  # of those that were read, the images with burnt-in text
    attributes: list[tuple[str, str]] = field(default_factory=list)  # name and, in words, the values of each

    @property
    def verdict(self) -> tuple[str, str]:
        """``complete``, ``partial``, ``not this dataset``, ``synthetic sample`` or ``no published counts``; and why."""
        if self.synthetic:
            return "synthetic sample", "drawings, which are not compared with what is published"
        judged = [c for c in self.compared if not c.note]
        numbers = [(c, c.found, c.published) for c in self.compared if c.note]  # not certain, but not by a tenth
        far = [str(c) for c, found, n in numbers if isinstance(found, int) and isinstance(n, int) and found < 0.9 * n]
        if far and not judged:
            return "partial", f"far less than published: {'; '.join(far[:3])}"
        if not judged:
            sound = "" if self.faults or self.read is None else "; no faults were found"
            return "no published counts", f"there is nothing to compare with{sound}"
        for word, why, excess in (("not this dataset", "beyond what is published", 1), ("partial", "less than published", -1)):
            if rows := [str(c) for c in judged if c.excess == excess]:
                more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
                return word, f"{why}: {'; '.join(rows[:3])}{more}"
        return "complete", f"all {len(judged)} published numbers are found"

    @property
    def failed(self) -> bool:
        """Whether something is missing, too much or broken."""
        return bool(self.faults) or self.verdict[0] in ("partial", "not this dataset")

    @property
    def line(self) -> str:
        """The verdict in one line."""
        n = sum(map(len, self.faults.values()))
        faults = f"; {n} {'fault' if n == 1 else 'faults'}, named above" if n else ""
        return f"{self.name} at {self.path}: {self.verdict[0]} ({self.verdict[1]}){faults}"

    def text(self, most: int | None = 20) -> str:
        """The report.

        Args:
            most: so many names of every kind of fault; None: all.
        """
        about = [f"{name}: {values}" for name, values in self.attributes]
        parts = [self._published(), self._counts(), self._labels(), *([about] if about else []), self._faults(most)]
        lines = [line for part in parts for line in (*part, "")]
        return "\n".join([f"{self.name} at {self.path.absolute()}", "", *lines, "verdict: {}: {}".format(*self.verdict)])

    def _published(self) -> list[str]:
        if self.synthetic or not self.compared:
            return ["synthetic sample: not compared with what is published"] if self.synthetic else ["no published counts"]
        rows = [("", "published", "found", "", "")]
        for c in self.compared:
            rows.append((c.what, _shown(c.published), _shown(c.found), c.sign, f"({c.note})" if c.note else ""))
        return aligned_rows(rows, left=(0, 3, 4))

    def _counts(self) -> list[str]:
        shown = ["split", "group", "studies", "patients", "images"]
        rows = [[_shown(row[c]) for c in shown] for row in _records(self.counts)]
        return aligned_rows([shown, *rows], left=(0, 1))

    def _labels(self) -> list[str]:
        rows = [["split", "group", "label", *STATES]]
        counts = self.counts
        if len(self.labels) > 3 and len(set(counts["group"])) > 1:
            summed = counts.groupby("split", sort=False).sum(numeric_only=True).reset_index()
            counts = summed.assign(group="all")
        for row in _records(counts):
            rows += [[row["split"], row["group"], x, *(_shown(row[f"{x}_{word}"]) for word in STATES)] for x in self.labels]
        return aligned_rows(rows, left=(0, 1, 2))

    def _faults(self, most: int | None) -> list[str]:
        out = []
        for kind, names in self.faults.items():
            out += [f"{len(names):,} {kind}:", *(f"  {name}" for name in names[:most])]
            if most is not None and len(names) > most:
                out.append(f"  ... and {len(names) - most:,} more; names=null names all")
        out += [] if self.faults else ["no faults"]
        read = f"image files read: {self.read:,}" if self.read else "images: read with the file that holds them"
        out.append("image files were not read" if self.read is None else read)
        if self.texts:
            named = listed(self.texts, most or len(self.texts))
            out.append(f"{TEXT}, by its shape (look whether it names patients): {len(self.texts):,} ({named})")
        if self.strays:
            named = listed(self.strays, most or len(self.strays))
            out.append(f"stray files, which belong to nothing and do no harm: {len(self.strays):,} ({named})")
        if self.dotfiles:
            out.append(f"dotfiles, as archives and desktops leave them and which do no harm: {self.dotfiles:,}")
        return out


def examine(reader: DatasetReader, path: Path, read_images: bool = True) -> Findings:
    """Read everything of a dataset at a path that matches.

    Args:
        reader: skips what is wrong.
        read_images: decode every image, not only look for its file.
    """
    readers = reader.whole(path)
    tables = [r.read(path) for r in readers]
    if all(table.frame.empty for table in tables):
        raise no_study(reader, path, tables[0])
    faults: dict[str, list[str]] = {}
    lists = reader.lists(path)
    _add(faults, "lists that are not there", [name for name in lists if not (path / name).is_file()])
    for table in tables:
        for kind, names in table.problems.items():
            _add(faults, kind, names)
    frames = []
    for table in tables:
        numbers, unreadable = image_numbers(table)
        _add(faults, UNREADABLE, unreadable)
        frames.append(table.frame.assign(number=numbers))
    frame, first = pd.concat(frames, ignore_index=True), tables[0]
    _add(faults, "studies without images", frame.loc[frame["images"].map(len) == 0, "id"].tolist())
    if first.patients_known:
        splits = frame.groupby("patient")["split"].nunique()
        _add(faults, "patients in more than one split", splits.index[splits > 1].tolist())
    read, texts = None, list[str]()
    if read_images:
        read, named = _read_images(tables)
        texts = named.pop(TEXT)
        for kind, names in named.items():
            _add(faults, kind, names)
        _add(faults, "files with the same bytes in more than one split", _copies(tables))
    strays, dotfiles = _strays(path, tables, lists, faults) if path.is_dir() else ([], 0)
    called = {"heldout": reader.heldout}
    found = counts(frame, first.labels, first.patients_known).replace({"split": called})
    compared = [Compared(_wording(p, called), p.number, _found(p, frame), p.note) for p in reader.published(first)]
    return Findings(
        first.name, path, first.synthetic, found, first.labels, compared, faults, strays, dotfiles, read, texts,
        attribute_counts(frame),
    )  # fmt: skip


def image_numbers(table: StudyTable) -> tuple[list[int], list[str]]:
    """How many images each study has, and the references whose headers do not say it."""
    if table.views:
        return table.frame["images"].map(len).tolist(), []
    images = [image for study in table.frame["images"] for image in study]
    found = dict(zip(images, of_each(table.source.shape, table.source, images, "reading headers"), strict=True))
    slices = {image: 0 if isinstance(shape, UserError) else shape[0] for image, shape in found.items()}
    unreadable = [image for image, shape in found.items() if isinstance(shape, UserError)]
    return [sum(slices[image] for image in study) for study in table.frame["images"]], unreadable


def _read_images(tables: Sequence[StudyTable]) -> tuple[int, dict[str, list[str]]]:
    """Decode every image; how many files there were, and those that cannot be read, are of one value, or have text."""
    jobs = [(t.source, image) for t in tables for image in dict.fromkeys(i for study in t.frame["images"] for i in study)]
    files = sum(source.path(image) is not None for source, image in jobs)  # what lies in memory was read with the lists

    def look(job: tuple[ImageSource, str]) -> tuple[str, str] | None:
        source, image = job
        try:
            images = source.read([image])
        except (UserError, OSError, ValueError, EOFError) as error:
            reason = str(error).split(". ")[0].rpartition(": ")[2].rstrip(".")
            return UNREADABLE, f"{image} ({reason})" if isinstance(error, UserError) else image
        if of_one_value(images):
            return BLANK, image
        return (TEXT, image) if any(text_lines(one) for one in images) else None

    if files:
        log.info("reading %s image files ...", f"{files:,}")
    named: dict[str, list[str]] = {UNREADABLE: [], BLANK: [], TEXT: []}
    for found in in_threads(look, jobs, "reading images") if files else map(look, jobs):
        if found is not None:
            named[found[0]].append(found[1])
    return files, named


def _copies(tables: Sequence[StudyTable]) -> list[str]:
    """Files of images in one split whose bytes are those of one in another, beside it."""
    of: dict[str, tuple[str, str]] = {}  # file -> split and reference
    for table in tables:
        for split, images in zip(table.frame["split"], table.frame["images"], strict=True):
            for image in images:
                for file in table.source.files(image):
                    of.setdefault(str(file), (split, image))

    def size(file: str) -> int:
        try:
            return os.stat(file).st_size
        except OSError:
            return 0

    def digest(file: str) -> bytes:
        try:
            with open(file, "rb") as opened:
                return hashlib.file_digest(opened, "sha256").digest()
        except OSError:
            return os.fsencode(file)

    def alike(files: Iterable[str], key: Callable[[str], Any]) -> list[list[str]]:
        """Those of one key, where they are of several splits."""
        groups: dict[Any, list[str]] = {}
        for file in files:
            groups.setdefault(key(file), []).append(file)
        return [group for group in groups.values() if len({of[file][0] for file in group}) > 1]

    copies = [group for one_size in alike(of, size) for group in alike(one_size, digest)]
    return [" = ".join(f"{of[file][1]} ({of[file][0]})" for file in group) for group in copies]


def _strays(
    path: Path, tables: Sequence[StudyTable], lists: Sequence[str], faults: dict[str, list[str]]
) -> tuple[list[str], int]:
    """Files under a folder that are neither in the tables, nor lists, nor named as faulty; and the number of dotfiles."""
    known = {os.path.abspath(path / name) for name in (*lists, SYNTHETIC_MARK)}
    for table in tables:
        files = (file for study in table.frame["images"] for image in study for file in table.source.files(image))
        known |= {os.path.abspath(file) for file in files}
    named = {word for names in faults.values() for name in names for word in (name, name.split(" ", 1)[0])}
    strays, dotfiles = [], 0
    top = os.path.abspath(path)
    for folder, folders, names in os.walk(top):
        folders.sort()
        inside = Path(folder).relative_to(top)
        hidden = any(LEAVINGS.match(part) for part in inside.parts)
        for name in sorted(names):
            if hidden or LEAVINGS.match(name):
                dotfiles += 1
                continue
            faulty = {(inside / name).as_posix(), inside.as_posix(), name, name.rpartition(".")[0]} & named
            if os.path.join(folder, name) not in known and not faulty:
                strays.append((inside / name).as_posix())
    return strays, dotfiles


def _found(published: Published, frame: pd.DataFrame) -> Number:
    """The number in the study table that answers a published one."""
    rows = frame
    for column, wanted in (("split", published.split), ("group", published.group)):
        rows = rows if wanted is None else rows[rows[column] == wanted]
    if published.label is not None:
        label, value = published.label
        rows = rows[rows[label] == value] if label in rows else rows[:0]
    if published.unit == "images a study":
        return (int(rows["number"].min()), int(rows["number"].max())) if len(rows) else None
    if published.unit == "images":
        return int(rows["number"].sum())
    return int(rows[{"studies": "id", "patients": "patient"}[published.unit]].nunique())


def _wording(published: Published, called: dict[str, str]) -> str:
    where = [called.get(published.split, published.split)] if published.split else ["all"]
    words = [*where, *([published.group] if published.group else []), published.unit]
    if published.label is None:
        return " ".join(words)
    label, value = published.label
    return f"{' '.join(words)}, {label} {next(word for word, v in STATES.items() if v == value)}"


def _add(faults: dict[str, list[str]], kind: str, names: Iterable[str]) -> None:
    """Add names to a kind of fault, each once."""
    if merged := list(dict.fromkeys([*faults.get(kind, []), *names])):
        faults[kind] = merged


def _shown(value: Number | str) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"{value[0]}-{value[1]}"
    return value if isinstance(value, str) else f"{value:,}"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, None where there is no value."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")  # type: ignore[return-value]


def aligned_rows(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Cells in columns, the given ones flush left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]
