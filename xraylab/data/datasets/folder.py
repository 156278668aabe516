"""Images of one's own, sorted into folders: ``{train,val,test}/<class>/<study>``.

A file in a class folder is a study of one image, a DICOM file of several frames one of their slices; a folder in it is a
study of all images in that folder. Two classes are one label, more are exclusive classes. A study's id is its path from the
root on, a file's without the suffix. Masks, and what archives and desktops leave behind, are left alone.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xraylab.data.datasets.base import Reader
from xraylab.data.images.dicom import dicom_layouts
from xraylab.data.images.source import ARRAY, SUFFIXES, AnyFileSource, check_bits, file_fault, is_picture, stem
from xraylab.data.study_table import StudyTable, stop_or_skip
from xraylab.data.synthetic.mark import is_synthetic
from xraylab.data.synthetic.pictures import write_folder
from xraylab.errors import UserError, did_you_mean, listed, printable
from xraylab.system.paths import LEAVINGS, tree

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
NEGATIVES = ("normal", "negative", "no", "0", "healthy", "control")
#: of the study table and of metrics, so no label can have them
RESERVED = ("id", "patient", "group", "split", "images", "image", "published", "number", "shuffle", "macro")
Problems = defaultdict[str, list[str]]
#: a class folder that holds pictures in one of these, often beside masks, as COVID-19 Radiography and COVID-QU-Ex have it
PICTURES = ("images", "image", "imgs", "pictures")
MASKS = re.compile(r"(?:^|.*[ _-])(?:masks?|segmentations?)$", re.IGNORECASE)  # a folder of them
MASK_OF = re.compile(r"(.+?)[ _-](?:masks?|segmentation)(?:[ _-]?\d+)?$", re.IGNORECASE)  # a file, and what it is the mask of
NO_UTF8 = "names that are not UTF-8, which results cannot hold: rename them"
LINKS = "links that lead nowhere or in circles"
EMPTY_CLASS = "class folders without an image"


class OwnData(Reader):
    """Data that is not published and so is nowhere to be looked for: ``root`` names it, or is ``sample``."""

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
    """Folders of classes.

    Args:
        positive: of two classes, the one that is labelled 1 and names the label; None: the other one of normal, negative,
            no, 0, healthy or control.
        patient: a regular expression with one group, searched in a study's id: the patient. None: not known.
        group: the same for the study's group. None: all are of one, named as the root is.
        colour: read three channels, not one.
        bits: how many bits the values of 16-bit files use, e.g. 12.
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
      abnormal/ ...           (or any other classes, two or more)
    val/ (or valid/, validation/)  and/or  test/
      normal/ ...  abnormal/ ..."""
    register = "your own: dataset.root=<folder> with {train,val,test}/<class>/"

    def __init__(
        self, root: str | None = None, positive: str | int | None = None, patient: str | None = None, group: str | None = None,
        colour: bool = False, bits: int | None = None, on_error: str = "stop", sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, on_error, sample)
        self.bits = check_bits(bits)
        self.positive = None if positive is None else str(positive)
        self.patient, self.group = _pattern("patient", patient), _pattern("group", group)
        self.colour = colour
        if colour:
            self.settings["backbone.in_chans"] = 3

    def matches(self, path: Path) -> bool:
        """A folder with at least one class under ``train``."""
        return path.is_dir() and any(_folders(path / name) for name in _splits(path) if SPLITS[name.lower()] == "train")

    def find(self) -> Path | None:
        """See :meth:`OwnData.find`. More than two classes need a loss for exclusive classes.

        Raises:
            UserError: also, the splits or classes do not make a dataset.
        """
        path = super().find()
        if path is not None:
            self.published_name = _name(path)
            if len(self._classes(path, self._arrangement(path))) > 2:
                self.settings["loss"] = "cross_entropy"
        return path

    def read(self, path: Path) -> StudyTable:
        """One row a study. With ``val`` or ``test`` alone beside ``train``, that is the held-out split."""
        problems: Problems = defaultdict(list)
        published = self._arrangement(path)
        classes = self._classes(path, published, problems)
        labels = tuple(classes) if len(classes) > 2 else (self._positive(classes),)
        aside = _Aside([], [])
        rows: list[dict[str, Any]] = []
        for folder, split in published.items():
            here = _entries(path, folder, problems)
            for entry in here:
                if not entry.folder:
                    kind = problems["images in no class folder"] if _is_image(path / folder / entry.name) else aside.strays
                    kind.append(f"{folder}/{entry.name}")
            there = {entry.name for entry in here if entry.folder}
            if missing := [name for name in classes if name not in there]:
                log.warning("%s has no class %s: metrics that need it are undefined there.", path / folder, listed(missing))
            for name in [name for name in classes if name in there]:
                values = {label: float(label == name) for label in labels}
                for study, images in _studies(path, f"{folder}/{name}", problems, aside):
                    rows.append({"id": study, "split": split, "images": images, **values})
        views, faults = by_layout(path, {row["id"]: row["images"] for row in rows}, views=True)
        rows = [row for row in rows if row["id"] not in {study for names in faults.values() for study in names}]
        problems |= faults
        total = len(rows) + sum(map(len, problems.values()))
        for what, names in (("files are not images", aside.strays), ("pictures are masks, by their names,", aside.masks)):
            if names:
                log.warning("%s: %d %s and are left alone: %s", path, len(names), what, listed(names))
        for key, pattern in (("patient", self.patient), ("group", self.group)):
            for row in rows:
                row[key] = _search(pattern, row["id"]) if pattern else {"patient": "", "group": _name(path)}[key]
            if pattern:
                unnamed = [row["id"] for row in rows if row[key] is None]
                problems[f"studies in whose path dataset.{key}={pattern.pattern} finds nothing"] += unnamed
                rows = [row for row in rows if row[key] is not None]
        stop_or_skip(problems, self.on_error, str(path), total)
        frame = pd.DataFrame(rows, columns=["id", "patient", "group", "split", "images", *labels])
        return StudyTable(
            frame=frame.astype(dict.fromkeys(labels, np.float32)),
            labels=labels,
            source=AnyFileSource(self.colour, self.bits, root=path),
            name=_name(path),
            synthetic=is_synthetic(path),
            patients_known=self.patient is not None,
            exclusive=len(labels) > 1,
            channels=3 if self.colour else 1,
            views=views,
            problems={kind: names for kind, names in problems.items() if names},
        )

    def _arrangement(self, path: Path) -> dict[str, str]:
        """The folders of splits that are there, and the split each is."""
        names = _splits(path)
        of: dict[str, str] = {}
        for name in names:
            split = SPLITS[name.lower()]
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
        found = {folder: _folders(path / folder) for folder in published}
        empty = {
            f"{folder}/{name}" for folder, names in found.items() for name in names if not _holds_image(path / folder / name)
        }
        if problems is not None and empty:
            problems[EMPTY_CLASS] += sorted(empty)
        classes = [name for name in found[train] if f"{train}/{name}" not in empty]
        masks = [name for name in classes if MASKS.match(name)]
        if masks and (pictures := [name for name in classes if name.lower() in PICTURES]):
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

    def write_sample(self, parent: Path, **options: Any) -> Path:
        """See :func:`write_folder`."""
        return write_folder(parent / self.published_name, **options)


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
    if given is None:
        return None
    try:
        pattern = re.compile(str(given))
    except re.error as error:
        raise UserError(f"dataset.{key}={given}: it is not a regular expression: {error}.") from None
    if pattern.groups != 1:
        raise UserError(
            f"dataset.{key}={given}: it has {pattern.groups} groups. It needs one, round the part of a study's path that names "
            rf"the {key}, as in \"dataset.{key}='{key}(\d+)'\"."
        )
    return pattern


def _search(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match.group(1) or None if match else None


def _name(path: Path) -> str:
    return os.path.basename(os.path.abspath(path)) or "data"


def _is_image(file: Path) -> bool:
    """Whether a file is of a kind that is read; arrays are not, they are for tables."""
    return file.suffix.lower() != ARRAY and is_picture(file)


class _Entry(NamedTuple):
    """What is in a folder."""

    name: str
    folder: bool


class _Aside(NamedTuple):
    """What is left alone: files that are no images, and masks."""

    strays: list[str]
    masks: list[str]


def _entries(root: Path, folder: str = "", problems: Problems | None = None) -> list[_Entry]:
    """What is in a folder below ``root``, by name, but for hidden entries and what archives and desktops leave.

    What cannot be used is named in ``problems``.
    """
    found = []
    try:
        with os.scandir(root / folder) as entries:
            given = sorted((e for e in entries if not LEAVINGS.match(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"{root / folder}: cannot be listed: {error.strerror}.") from error
    for entry in given:
        try:
            is_folder, whole = entry.is_dir(), not entry.is_symlink() or os.path.exists(entry.path)
        except OSError:  # a link to itself
            is_folder = whole = False
        fault = None if whole or _is_image(Path(entry.path)) else LINKS  # an image is named as missing
        if printable(entry.name) != entry.name:
            fault = NO_UTF8
        if fault is None:
            found.append(_Entry(entry.name, is_folder))
        elif problems is not None:
            problems[fault].append(printable(f"{folder}/{entry.name}"))
    return found


def _folders(path: Path) -> list[str]:
    return [entry.name for entry in _entries(path) if entry.folder]


def _splits(path: Path) -> list[str]:
    return [name for name in _folders(path) if name.lower() in SPLITS]


def _holds_image(folder: Path, deep: int = 2) -> bool:
    """Whether an image is in a folder, or so deep below it; or something that is named when it is read."""
    problems: Problems = defaultdict(list)
    entries = _entries(folder, problems=problems)
    files, folders = ([e.name for e in entries if e.folder is kind] for kind in (False, True))
    return (
        bool(problems)
        or any(_is_image(folder / name) for name in files)
        or (deep > 0 and any(_holds_image(folder / name, deep - 1) for name in folders))
    )


def _studies(root: Path, folder: str, problems: Problems, aside: _Aside) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ids and images of the studies in a class folder; those with something wrong are named and left out."""
    found: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    entries = _entries(root, folder, problems)
    files, folders = ([f"{folder}/{e.name}" for e in entries if e.folder is kind] for kind in (False, True))
    masks = [name for name in folders if MASKS.match(name)]
    folders = [name for name in folders if name not in masks]
    for name in masks:
        aside.masks.extend(f"{name}/{e.name}" for e in _entries(root, name, problems))
    pictures = _pictures(root, files, aside)
    if not pictures and len(folders) == 1 and os.path.basename(folders[0]).lower() in PICTURES:
        yield from _studies(root, folders[0], problems, aside)
        return
    for name in pictures:
        found[stem(name)].append((name, [name]))
    for name in folders:
        try:
            inside = _entries(root, name, problems)
        except UserError:
            problems["folders that cannot be listed"].append(name)
            continue
        deeper = [f"{name}/{inner.name}" for inner in inside if inner.folder]
        problems["folders inside a study's folder, which holds images only"] += deeper
        images = _pictures(root, [f"{name}/{inner.name}" for inner in inside if not inner.folder], aside)
        if not images and not deeper:
            problems["folders without an image"].append(name)
        elif not deeper:
            found[name].append((name, images))
    for study, candidates in found.items():
        if len(candidates) > 1:
            problems["studies of one name"].append(f"{study} ({', '.join(name for name, _ in candidates)})")
            continue
        images = candidates[0][1]
        faults = [(fault, image) for image in images if (fault := file_fault(root / image))]
        for fault, image in faults:
            problems[fault].append(image)
        if not faults:
            yield study, tuple(images)


def _pictures(root: Path, files: Sequence[str], aside: _Aside) -> list[str]:
    """The images among files; a picture of a mask lies beside that of which it is the mask."""
    images = [name for name in files if _is_image(root / name)]
    aside.strays.extend(name for name in files if name not in set(images))
    stems = {stem(name) for name in images}
    masks = {name for name in images if (match := MASK_OF.match(stem(name))) and match.group(1) in stems}
    aside.masks.extend(sorted(masks))
    return [name for name in images if name not in masks]


def by_layout(root: Path, studies: Mapping[str, Sequence[str]], views: bool) -> tuple[bool, dict[str, list[str]]]:
    """Whether the images of studies are views, and the studies that are not of one kind with the rest, by what is wrong.

    The frames of a DICOM file are slices of a volume, which is a study of its own.

    Args:
        studies: id and images of each, relative to ``root``.
        views: False: several files of a study are slices of a volume, in their order.

    Raises:
        UserError: there are DICOM files, and pydicom is not installed.
    """
    files = [i for images in studies.values() for i in images if not i.lower().endswith((*SUFFIXES, ARRAY))]
    if not files:
        return views, {}
    layouts = dict(zip(files, dicom_layouts([root / image for image in files]), strict=True))
    frames = {study: max(layouts.get(image, (1, False))[0] for image in images) for study, images in studies.items() if images}
    volumes = [study for study, number in frames.items() if number > 1]
    mixed = [study for study in volumes if len(studies[study]) > 1]
    series = [study for study, images in studies.items() if views and sum(layouts.get(i, (1, False))[1] for i in images) > 1]
    faults = {
        "studies of several files, one of which is a volume of its own (several frames)": mixed,
        "studies that look like a series of slices (CT, MR or PET, a file each), which would be taken for views; make each one "
        "file of several frames, or list its files in order in a table with dataset.views=false": series,
    }
    volumes = [study for study in volumes if study not in mixed]
    several = [study for study, images in studies.items() if len(images) > 1 and study not in {*mixed, *series}]
    if volumes and several and views:
        fewer = volumes if len(volumes) <= len(several) else several
        what = (
            "volumes (several frames) beside studies of" if fewer is volumes else "studies, beside volumes (several frames), of"
        )
        faults[f"{what} several views; make two datasets"] = fewer
        volumes = [] if fewer is volumes else volumes
    return views and not volumes, {kind: names for kind, names in faults.items() if names}
