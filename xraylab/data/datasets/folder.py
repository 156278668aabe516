"""Images of one's own, sorted into folders: ``{train,val,test}/<class>/<study>``.

A file in a class folder is a study of one image; a DICOM file of several frames, or a NIfTI file, of their slices. A folder in it
is a study of all images in that folder, or of the series of DICOM slices in it and below, which are put in order. Two classes
are one label, more are exclusive classes. A study's id is its path from the root on, a file's without the suffix. Masks, and
what archives and desktops leave behind, are left alone.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.datasets import layout
from xraylab.data.datasets.base import DatasetReader
from xraylab.data.images.any_file import AnyFileSource
from xraylab.data.images.intensity import check_window
from xraylab.data.images.source import check_bits
from xraylab.data.images.volumes import LARGEST, VolumeRule
from xraylab.data.study_table import Problems, StudyTable
from xraylab.data.synthetic.pictures import write_folder
from xraylab.errors import UserError, did_you_mean, listed, printable
from xraylab.system.paths import tree

log = logging.getLogger(__name__)

NEGATIVES = ("normal", "negative", "no", "0", "healthy", "control")
#: of the study table and of metrics, so no label can have them
RESERVED = ("id", "patient", "group", "split", "images", "image", "published", "number", "shuffle", "macro")
EMPTY_CLASS = "class folders without an image"


class OwnData(DatasetReader):
    """Base class of readers of data that is not published and so is looked for nowhere: ``root`` names it, or is ``sample``."""

    needed: str  # what root must hold, in words

    def find(self) -> Path | None:
        """The path that ``root`` names; None: the embedded sample.

        Raises:
            UserError: ``root`` was not given, is missing or does not match.
        """
        if self.root is None:
            raise UserError(
                f"dataset.root must be given: dataset.root={self.needed}, as below; or dataset.root=sample for a synthetic one.\n"
                f"expected:\n{self.expected.strip(chr(10))}"
            )
        path = super().find()
        if path is not None and printable(str(path.absolute())) != str(path.absolute()):
            raise UserError(f"dataset.root={printable(str(path))}: its path has a name that is not UTF-8. Rename it.")
        return path

    def _no_match(self, given: Path) -> str:
        found = tree(given) if given.exists() else "  (there is no such file or folder)"
        return (
            f"dataset.root={self.root}: {self.needed} is not there.\n"
            f"expected:\n{self.expected.strip(chr(10))}\nfound at {given.absolute()}:\n{found}"
        )


class Folder(OwnData):
    """Reader of one's own images in a folder for each class.

    Args:
        positive: of two classes, the one that is labelled 1 and names the label; None: the other one of normal, negative,
            no, 0, healthy or control.
        patient: a regular expression with one group, searched in a study's id: the patient. None: not known.
        group: the same for the study's group. None: all are of one, named as the root is.
        colour: read three channels, not one.
        bits: how many bits the values of 16-bit files use, e.g. 12.
        series, window, slices: of volumes, see :class:`xraylab.data.images.volumes.VolumeRule`.

    >>> import cv2, tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for k, place in enumerate(("train/normal/a.png", "train/broken/b.png", "test/normal/c.png", "test/broken/d.png")):
    ...     (root / place).parent.mkdir(parents=True)
    ...     _ = cv2.imwrite(str(root / place), np.full((8, 8), 10 * k, np.uint8))
    >>> Folder(str(root), positive="broken").read(root).labels
    ('broken',)
    """

    published_name = "folder_of_classes"
    needed = "<a folder with train/<class>/>"
    expected = """
  <root>/
    train/
      normal/
        0001.png              (a study of one image; of a DICOM file of several frames, their slices)
        patient7_study1/      (a study of all images in it)
          front.png  side.png
        patient8/             (or a series of DICOM slices, or a disk of several)
      abnormal/ ...           (or any other classes, two or more)
    val/ (or valid/, validation/)  and/or  test/
      normal/ ...  abnormal/ ..."""
    register = "your own: dataset.root=<folder> with {train,val,test}/<class>/"
    writer = write_folder

    def __init__(
        self, root: str | None = None, positive: str | int | None = None, patient: str | None = None, group: str | None = None,
        colour: bool = False, bits: int | None = None, on_error: str = "stop", sample: dict[str, Any] | None = None,
        series: str = LARGEST, window: str | Sequence[str] | None = None, slices: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, on_error, sample)
        self.bits = check_bits(bits)
        self.rule = VolumeRule(series, check_window(window), slices)
        self.positive = None if positive is None else str(positive)
        self.patient, self.group = _pattern("patient", patient), _pattern("group", group)
        self.colour = colour or self.rule.colour
        if self.colour:
            self.settings["backbone.in_chans"] = 3

    def matches(self, path: Path) -> bool:
        """A folder with at least one class under ``train``."""
        return path.is_dir() and any(
            layout.folders(path / name) for name in layout.split_folders(path) if layout.SPLITS[name.lower()] == "train"
        )

    def find(self) -> Path | None:
        """See :meth:`OwnData.find`. More than two classes need a loss for exclusive classes.

        Raises:
            UserError: also, the splits or classes do not make a dataset.
        """
        path = super().find()
        if path is not None:
            self.published_name = layout.readable_name(path)
            if len(self._classes(path, self._arrangement(path))) > 2:
                self.settings["loss"] = "cross_entropy"
        return path

    def read(self, path: Path) -> StudyTable:
        """One row a study. With ``val`` or ``test`` alone beside ``train``, that is the held-out split."""
        problems: Problems = defaultdict(list)
        published = self._arrangement(path)
        classes = self._classes(path, published, problems)
        labels = tuple(classes) if len(classes) > 2 else (self._positive(classes),)
        aside = layout.Aside([], [])
        rows: list[dict[str, Any]] = []
        for folder, split in published.items():
            files, there = layout.listed_entries(path, folder, problems)
            for file in files:
                kind = problems["images in no class folder"] if layout.is_image(path / folder / file) else aside.strays
                kind.append(f"{folder}/{file}")
            if missing := [name for name in classes if name not in there]:
                log.warning("%s has no class %s: metrics that need it are undefined there.", path / folder, listed(missing))
            for name in [name for name in classes if name in there]:
                values = {label: float(label == name) for label in labels}
                for study, images in layout.studies_of(path, f"{folder}/{name}", problems, aside):
                    rows.append({"id": study, "split": split, "images": images, **values})
        arranged = layout.arranged(path, {row["id"]: row["images"] for row in rows}, self.rule, views=True)
        rows = [{**row, "images": arranged.images[row["id"]]} for row in rows if row["id"] in arranged.images]
        problems |= arranged.faults
        total = len(rows) + sum(map(len, problems.values()))
        for what, names in (("files are not images", aside.strays), ("pictures are masks, by their names,", aside.masks)):
            if names:
                log.warning("%s: %d %s and are left alone: %s", path, len(names), what, listed(names))
        for key, pattern, otherwise in (("patient", self.patient, ""), ("group", self.group, layout.readable_name(path))):
            for row in rows:
                found = pattern.search(row["id"]) if pattern else None
                row[key] = otherwise if pattern is None else found and found.group(1)
            if pattern:
                unnamed = [row["id"] for row in rows if not row[key]]
                if len(unnamed) == len(rows) > 0:
                    raise UserError(
                        f"dataset.{key}={pattern.pattern}: it finds nothing in the path of any of {len(rows)} studies, as "
                        f"{listed(unnamed, 3)}. Change it, or leave it out."
                    )
                problems[f"studies in whose path dataset.{key}={pattern.pattern} finds nothing"] += unnamed
                rows = [row for row in rows if row[key]]
        frame = pd.DataFrame(rows, columns=["id", "patient", "group", "split", "images", *labels])
        if self.rule.parts:
            frame["parts"] = [self.rule.parts] * len(frame)
        return self.table_of(
            path,
            frame.astype(dict.fromkeys(labels, np.float32)),
            problems,
            total,
            labels=labels,
            source=AnyFileSource(self.colour, self.bits, root=path, rule=self.rule, series=arranged.series),
            name=layout.readable_name(path),
            patients_known=self.patient is not None,
            exclusive=len(labels) > 1,
            channels=3 if self.colour else 1,
            views=arranged.views,
            parts=self.rule.parts,
        )

    def _arrangement(self, path: Path) -> dict[str, str]:
        """The folders of splits that are there, and the split each is."""
        names = layout.split_folders(path)
        of: dict[str, str] = {}
        for name in names:
            split = layout.SPLITS[name.lower()]
            if split in of:
                raise UserError(f"{path}: {of[split]}/ and {name}/ are both the {split} split. Keep one of them.")
            of[split] = name
        called = heldout_split(of, f"{path}: there is no test/ or val/")
        return {name: called[split] for split, name in of.items()}

    def _classes(self, path: Path, published: dict[str, str], problems: Problems | None = None) -> list[str]:
        """The classes of train, in order; folders without an image are none, and named in ``problems``.

        Raises:
            UserError: there is one only, a held-out split has others, or it is not known which of two is positive.
        """
        train = next(folder for folder, split in published.items() if split == "train")
        found = {folder: layout.folders(path / folder) for folder in published}
        empty = {
            f"{folder}/{name}"
            for folder, names in found.items()
            for name in names
            if not layout.holds_image(path / folder / name)
        }
        if problems is not None and empty:
            problems[EMPTY_CLASS] += sorted(empty)
        classes = [name for name in found[train] if f"{train}/{name}" not in empty]
        masks = [name for name in classes if layout.MASKS.match(name)]
        if masks and (pictures := [name for name in classes if name.lower() in layout.PICTURES]):
            raise UserError(
                f"{path / train}: {masks[0]}/ beside {pictures[0]}/ are masks and their pictures, no classes.\n"
                f"expected:\n{self.expected.strip(chr(10))}"
            )
        for folder, names in found.items():
            if unknown := [name for name in names if name not in classes and f"{folder}/{name}" not in empty]:
                hint = " Its folder there has no image." if unknown[0] in found[train] else did_you_mean(unknown[0], classes)
                raise UserError(
                    f"{path / folder / unknown[0]}: train has no such class.{hint} "
                    f"The classes of train are: {listed(classes, 30)}. Rename or remove that folder, or add it to train."
                )
        if len(classes) < 2:
            one = f"one class only, {classes[0]}" if classes else "no class"
            without = f" Without an image: {listed(sorted(empty))}." if empty else ""
            raise UserError(f"{path / train} has {one}. Two or more are needed, each a folder with images.{without}")
        if len(classes) == 2:
            check_names([self._positive(classes)], f"{path / train}: a class folder")
        elif self.positive is not None:
            raise UserError(
                f"dataset.positive={self.positive}: it is for two classes; {path} has {len(classes)}, which are exclusive: "
                f"{listed(classes, 30)}. Leave it out."
            )
        else:
            check_names(classes, f"{path / train}: a class folder")
        return classes

    def _positive(self, classes: list[str]) -> str:
        """The positive one of two classes."""
        if self.positive is None:
            left = [name for name in classes if name.lower() not in NEGATIVES]
            if len(left) == 1:
                return left[0]
            one, other = classes
            raise UserError(
                f"the classes are {one} and {other}: say which is positive, dataset.positive={one} or dataset.positive={other}."
            )
        if self.positive not in classes:
            hint = did_you_mean(self.positive, classes)
            raise UserError(
                f"dataset.positive={self.positive}: there is no such class.{hint} There are: {' and '.join(classes)}."
            )
        return self.positive


def heldout_split(found: Collection[str], what: str) -> dict[str, str]:
    """What a study table calls each split that is published; the only one beside train is ``heldout``.

    Args:
        found: of train, valid, test, heldout.
        what: the start of the message where there is only train.

    Raises:
        UserError: there is no train, nothing else, or ``heldout`` beside another one.
    """
    others = sorted(set(found) - {"train"})
    if "train" not in found or not others:
        missing = what if "train" in found else f"there is no train split, only {listed(others)}"
        raise UserError(f"{missing}. A model is fitted on one split and judged on another: train and test, or train and valid.")
    if "heldout" in others and len(others) > 1:
        raise UserError(f"the splits are train and {listed(others)}: with heldout there is no other. Call it test.")
    if others == ["valid"]:
        log.warning(
            "there is no test split: valid is held out as the test, and a part of train selects. "
            "selection=official selects and reports on valid instead."
        )
    return {split: split if split == "train" or len(others) > 1 else "heldout" for split in found}


def check_names(labels: Collection[str], where: str) -> None:
    """Refuse names that a label cannot have.

    Raises:
        UserError: one is a column of the study table, or has a slash.
    """
    if wrong := [name for name in labels if name in RESERVED or "/" in name]:
        raise UserError(
            f"{where} is called {wrong[0]}, which cannot name a label: results use that word, or the slash, for something else. "
            "Rename it."
        )


def _pattern(key: str, given: str | None) -> re.Pattern[str] | None:
    example = f"\"dataset.{key}='{key}(\\d+)'\""  # as a shell takes it
    wants = f". It needs one, round the part of a study's path that names the {key}, as in {example}."
    return None if given is None else layout.id_pattern(f"dataset.{key}", given, wants)
