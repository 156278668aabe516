"""Images of one's own, sorted into folders: ``{train,val,test}/<class>/<study>``.

A file in a class folder is a study of one image; a folder in it is a study of all images in that folder. Two classes are
one label, more are exclusive classes. A study's id is its path from the root on, a file's without the suffix.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from xraylab.data.reader import Reader, is_synthetic, mark_synthetic, tree
from xraylab.data.sources import FileSource, check_bits, file_fault
from xraylab.data.table import StudyTable, stop_or_skip
from xraylab.errors import UserError, did_you_mean, listed

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp")
SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
NEGATIVES = ("normal", "negative", "no", "0", "healthy", "control")
#: of the study table and of metrics, so no label can have them
RESERVED = ("id", "patient", "group", "split", "images", "image", "published", "number", "shuffle", "macro")
Problems = defaultdict[str, list[str]]


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
        return super().find()

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
        0001.png              (a study of one image)
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
        published = self._arrangement(path)
        classes = self._classes(path, published)
        labels = tuple(classes) if len(classes) > 2 else (self._positive(classes),)
        problems: Problems = defaultdict(list)
        stray: list[str] = []
        rows: list[dict[str, Any]] = []
        for folder, split in published.items():
            for entry in _entries(path / folder):
                if not entry.is_dir():
                    kind = problems["images in no class folder"] if _is_image(entry.name) else stray
                    kind.append(f"{folder}/{entry.name}")
            if missing := [name for name in classes if not (path / folder / name).is_dir()]:
                log.warning("%s has no class %s: metrics that need it are undefined there.", path / folder, listed(missing))
            for name in _folders(path / folder):
                values = {label: float(label == name) for label in labels}
                for study, images in _studies(path, f"{folder}/{name}", problems, stray):
                    rows.append({"id": study, "split": split, "images": images, **values})
        total = len(rows) + sum(map(len, problems.values()))
        if stray:
            log.warning("%s: %d files are not images and are left alone: %s", path, len(stray), listed(stray))
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
            source=FileSource(path, self.colour, self.bits),
            name=_name(path),
            synthetic=is_synthetic(path),
            patients_known=self.patient is not None,
            exclusive=len(labels) > 1,
            channels=3 if self.colour else 1,
            views=True,
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

    def _classes(self, path: Path, published: dict[str, str]) -> list[str]:
        """The classes of train, in order.

        Raises:
            UserError: there is one only, a held-out split has others, or it is not known which of two is positive.
        """
        train = next(folder for folder, split in published.items() if split == "train")
        classes = _folders(path / train)
        for folder in published:
            found = _folders(path / folder)
            if unknown := [name for name in found if name not in classes]:
                raise UserError(
                    f"{path / folder / unknown[0]}: train has no such class.{did_you_mean(unknown[0], classes)} "
                    f"The classes of train are: {listed(classes, 30)}. Rename or remove that folder, or add it to train."
                )
        if len(classes) < 2:
            raise UserError(f"{path / train} has one class only, {classes[0]}. Two or more are needed, each a folder.")
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


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, but for hidden entries."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}.") from error


def _folders(path: Path) -> list[str]:
    return [entry.name for entry in _entries(path) if entry.is_dir()]


def _splits(path: Path) -> list[str]:
    return [name for name in _folders(path) if name.lower() in SPLITS]


def _studies(root: Path, folder: str, problems: Problems, stray: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ids and images of the studies in a class folder; those with something wrong are named and left out."""
    found: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for entry in _entries(root / folder):
        name = f"{folder}/{entry.name}"
        if not entry.is_dir():
            if _is_image(name):
                found[name.rpartition(".")[0]].append((name, [name]))
            else:
                stray.append(name)
            continue
        images: list[str] = []
        deeper = False
        for inner in _entries(root / name):
            if inner.is_dir():
                problems["folders inside a study's folder, which holds images only"].append(f"{name}/{inner.name}")
                deeper = True
            else:
                (images if _is_image(inner.name) else stray).append(f"{name}/{inner.name}")
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


def write_folder(root: Path, train: int = 200, val: int = 60, test: int = 80, seed: int = 0) -> Path:
    """Write a synthetic dataset: ``{train,val,test}/{normal,abnormal}/`` with studies of 1-3 views, two studies a patient.

    Args:
        root: the folder to create.
        train, val, test: studies in each split, every other one abnormal.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already, or a split has fewer than 4 studies.
    """
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root} exists and is not empty; name another folder, or delete it first.")
    if min(train, val, test) < 4:
        raise UserError(f"train={train} val={val} test={test}: each is at least 4 studies.")
    number = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for i in range(count):
            rng = np.random.default_rng([seed, number])
            abnormal = i % 4 in (0, 3)
            study = root / split / ("abnormal" if abnormal else "normal") / f"patient{number // 2:05d}_study{number % 2 + 1}"
            views = [draw_picture(rng, blob=abnormal) for _ in range(rng.integers(1, 4))]
            study.mkdir(parents=True)
            for k, view in enumerate(views, start=1):
                cv2.imwrite(str(study / f"image{k}.png"), view)
            number += 1
        number += number % 2  # no patient in two splits
    mark_synthetic(root, f"folders of classes, seed {seed}")
    return root


def draw_picture(rng: np.random.Generator, blob: bool = False, band: bool = False) -> np.ndarray:
    """A noisy oval, uint8 (64-96, 64-96), with a bright blob, or a bright band at its foot, as findings.

    Gain and offset are drawn as well, so mean brightness tells little.
    """
    height, width = (int(n) for n in rng.integers(64, 97, 2))
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    body = np.exp(-((((x - 0.5) / 0.42) ** 2 + ((y - 0.5) / 0.45) ** 2) ** 3))
    image = 0.4 * body
    if blob:
        at = rng.uniform(0.3, 0.7, 2)
        image = image + 0.5 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 0.006)
    if band:
        image = image + 0.4 * body * np.exp(-(((y - rng.uniform(0.72, 0.82)) / 0.05) ** 2))
    image = image * rng.uniform(0.7, 1.1) + rng.uniform(0, 0.15) + rng.normal(0, 0.05, image.shape)
    return np.asarray(np.clip(image * 255, 0, 255).astype(np.uint8))
