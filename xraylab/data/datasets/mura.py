"""MURA: X-rays of the upper extremity, a study of several views of one body part (Rajpurkar et al. 2017, arXiv:1712.06957).

``MURA-v1.1/{train,valid}/XR_WRIST/patient00001/study1_positive/image1.png``; ``{train,valid}_image_paths.csv`` list the
images and ``{train,valid}_labeled_studies.csv`` the studies (path with a trailing slash, 0 or 1), both without a header and
with paths from ``MURA-v1.1/`` on. MURA-v1.0 has ``{train,valid}.csv`` of image and label instead. A patient can appear under
several body parts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.csv_cells import text_lines
from xraylab.data.images.source import FileSource, file_fault
from xraylab.data.published import MURA_STUDIES, Published
from xraylab.data.study_table import Problems, StudyTable, named
from xraylab.data.synthetic.bone import write_mura
from xraylab.errors import require_each_once

PARTS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
LABEL = "abnormal"
LISTS = {"v1.1": ("{}_image_paths.csv", "{}_labeled_studies.csv"), "v1.0": ("{}.csv",)}  # of each split
IMAGE = re.compile(r"(train|valid)/XR_([A-Z]+)/(patient\d+)/(study\w+)/([^/.][^/]*)")
STUDY = re.compile(r"(train|valid)/XR_([A-Z]+)/(patient\d+)/(study\w+)")
# published of v1.1
TOTALS = {
    "train": {"patients": 11184, "studies": 13457, "images": 36808},
    "heldout": {"patients": 783, "studies": 1199, "images": 3197},
}
IMAGES = {  # by body part: normal and abnormal of train, all of valid
    "elbow": (2925, 2006, 465), "finger": (3138, 1968, 461), "forearm": (1164, 661, 301), "hand": (4059, 1484, 460),
    "humerus": (673, 599, 288), "shoulder": (4211, 4168, 563), "wrist": (5765, 3987, 659),
}  # fmt: skip

TOTALS_V10 = {"patients": 12251, "studies": 14982, "images": 40895}


class MURA(DatasetReader):
    """Reader of MURA-v1.1 or v1.0: studies of some or all body parts, labelled normal or abnormal.

    Args:
        body_part: all, elbow, finger, forearm, hand, humerus, shoulder or wrist, or a list of them.
        test_part: the same for the published held-out split; None: as ``body_part``.

    >>> import tempfile
    >>> table = MURA().read(write_mura(Path(tempfile.mkdtemp()) / "MURA-v1.1", train=70, valid=40))
    >>> table.labels, table.many_views
    (('abnormal',), True)
    """

    published_name = "MURA-v1.1"
    other_names = ("MURA-v1.0",)
    expected = """
  MURA-v1.1/
    train/
      XR_WRIST/patient00001/study1_positive/image1.png     (also XR_ELBOW/ ... XR_SHOULDER/)
    valid/
      XR_WRIST/patient11185/study1_positive/image1.png
    train_image_paths.csv  train_labeled_studies.csv
    valid_image_paths.csv  valid_labeled_studies.csv     (v1.0: train.csv and valid.csv instead of the four)"""
    register = (
        "free for research after registration with the Stanford ML Group, https://stanfordmlgroup.github.io/competitions/mura/"
    )

    heldout = "valid"
    writer = write_mura

    def __init__(
        self, root: str | None = None, body_part: str | Sequence[str] = "all", test_part: str | Sequence[str] | None = None,
        on_error: str = "stop", sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, on_error, sample)
        self.parts = _parts("body_part", body_part)
        self.test_parts = self.parts if test_part is None else _parts("test_part", test_part)

    def matches(self, path: Path) -> bool:
        """A folder with the CSVs of v1.1, or of v1.0, for train and valid."""
        return path.is_dir() and _version(path) is not None

    def read(self, path: Path) -> StudyTable:
        """One row a study; the held-out split is the published valid."""
        version = _version(path)
        problems: Problems = defaultdict(list)
        frames = [self._read_split(path, split, version, problems) for split in ("train", "valid")]
        frame = pd.concat(frames, ignore_index=True)
        total = len(frame) + sum(map(len, problems.values()))
        about = {"labels": (LABEL,), "source": FileSource(path), "name": f"MURA-{version}", "views": True}
        return self.table_of(path, frame, problems, total, **about)

    def _read_split(self, path: Path, split: str, version: str | None, problems: Problems) -> pd.DataFrame:
        wanted = self.parts if split == "train" else self.test_parts
        listing = f"{split}_image_paths.csv" if version == "v1.1" else f"{split}.csv"
        images = _images(path / listing, split, wanted, version == "v1.0", problems)
        if version == "v1.1":
            labels = _labels(path / f"{split}_labeled_studies.csv", split, wanted, problems)
        else:
            labels = _labels_of_images(images, listing, problems)
        bags: dict[str, list[str]] = defaultdict(list)
        for image in images:
            fault = file_fault(path / image)
            if fault:
                problems[f"{fault} of {listing}"].append(image)
            else:
                bags[image.rpartition("/")[0]].append(image)
        listed = {image.rpartition("/")[0] for image in images}
        if version == "v1.1":
            problems[f"studies of {listing} without a label"] += sorted(listed - set(labels) - named(problems))
            problems[f"studies with a label but no image in {listing}"] += sorted(set(labels) - listed)
        problems[f"studies of {split} of whose images none can be used"] += sorted(listed & set(labels) - set(bags))
        studies = [s for s in bags if s in labels]
        folders = [s.split("/") for s in studies]  # split, body part, patient, study
        columns = {
            "id": studies,
            "patient": [patient for _, _, patient, _ in folders],
            "group": [part.removeprefix("XR_").lower() for _, part, _, _ in folders],
            "split": "train" if split == "train" else "heldout",
            "images": [tuple(bags[s]) for s in studies],
            LABEL: np.array([labels[s] for s in studies], np.float32),
        }
        return pd.DataFrame(columns)

    def whole(self, path: Path) -> list[DatasetReader]:
        """One reader of all body parts."""
        return [MURA(self.root, "all", "all", self.on_error, self.sample)]

    def published(self, table: StudyTable) -> list[Published]:
        """v1.1: totals, and images by body part and label; studies by body part and label from the literature."""
        if table.name != "MURA-v1.1":
            note = "of v1.0 as a whole, perhaps with its hidden test set"
            return [Published(unit, n, note=note) for unit, n in TOTALS_V10.items()]
        counts = [Published(unit, n, split) for split, of in TOTALS.items() for unit, n in of.items()]
        for part, (normal, abnormal, heldout) in IMAGES.items():
            counts += [
                Published("images", normal + abnormal, "train", part),
                Published("images", normal, "train", part, (LABEL, 0)),
                Published("images", abnormal, "train", part, (LABEL, 1)),
                Published("images", heldout, "heldout", part),
            ]
        for part, of_splits in MURA_STUDIES.items():
            for split, numbers in zip(TOTALS, of_splits, strict=True):
                counts += [Published("studies", n, split, part, (LABEL, v), "literature") for v, n in enumerate(numbers)]
        return counts

    def lists(self, path: Path) -> tuple[str, ...]:
        """The four CSVs of v1.1, or the two of v1.0."""
        return tuple(name.format(split) for split in ("train", "valid") for name in LISTS[_version(path) or "v1.0"])


def _parts(key: str, given: str | Sequence[str]) -> tuple[str, ...]:
    parts = (given,) if isinstance(given, str) else tuple(given)
    if parts == ("all",):
        return PARTS
    shown = given if isinstance(given, str) else list(given)
    require_each_once(parts, PARTS, f"{key}={shown}: it is all, one of {', '.join(PARTS)}, or a list of them, each once.")
    return parts


def _version(path: Path) -> str | None:
    for version, names in LISTS.items():
        if all((path / name.format(split)).is_file() for split in ("train", "valid") for name in names):
            return version
    return None


def _rows(
    path: Path, pattern: re.Pattern[str], split: str, labelled: bool, problems: Problems
) -> Iterator[tuple[int, str, str, str]]:
    """The rows of a CSV without a header that are an image, or a study, of a split; those that are not are named.

    Yields:
        The line's number, the path without its first part, which names the dataset, the body part, and the label's text.
    """
    what = "an image" if pattern is IMAGE else "a study"
    for number, line in enumerate(map(str.strip, text_lines(path)), start=1):
        cell, _, label = line.rpartition(",") if labelled else (line, "", "")
        name = cell.strip().strip('"').rstrip("/").partition("/")[2]
        match = pattern.fullmatch(name)
        apple_double = pattern is IMAGE and name.rpartition("/")[2].startswith(".")
        header = pattern is IMAGE and number == 1 and label == "label"
        if match and match.group(1) == split and match.group(2).lower() in PARTS:
            yield number, name, match.group(2).lower(), label.strip()
        elif line and not apple_double and not header:
            problems[f"rows of {path.name} that are not {what} of {split}"].append(f"line {number}: {line[:60]}")


def _images(path: Path, split: str, parts: Sequence[str], labelled: bool, problems: Problems) -> dict[str, str]:
    """Images of the wanted body parts, in order, each with its label's text (v1.0) or an empty one."""
    images: dict[str, str] = {}
    for number, name, part, label in _rows(path, IMAGE, split, labelled, problems):
        if name in images:
            problems[f"images twice in {path.name}"].append(f"{name} (line {number})")
        elif part in parts:
            images[name] = label
    return images


def _labels(path: Path, split: str, parts: Sequence[str], problems: Problems) -> dict[str, float]:
    """Labels by study from a ``labeled_studies.csv``; rows that are wrong are named and left out."""
    labels: dict[str, float] = {}
    seen: set[str] = set()
    for number, name, part, label in _rows(path, STUDY, split, True, problems):
        if part not in parts:
            continue
        if name in seen:
            problems[f"studies twice in {path.name}"].append(f"{name} (line {number})")
            labels.pop(name, None)
        elif _label_fault(name, label, path.name, f"line {number}", problems):
            labels[name] = float(label)
        seen.add(name)
    return labels


def _labels_of_images(images: dict[str, str], listing: str, problems: Problems) -> dict[str, float]:
    """Labels by study from the labels of their images (v1.0)."""
    of: dict[str, set[str]] = defaultdict(set)
    for image, label in images.items():
        of[image.rpartition("/")[0]].add(label)
    labels: dict[str, float] = {}
    for study, values in of.items():
        if len(values) > 1:
            problems[f"studies of {listing} whose images have different labels"].append(f"{study} ({', '.join(sorted(values))})")
        elif _label_fault(study, next(iter(values)), listing, "its images", problems):
            labels[study] = float(next(iter(values)))
    return labels


def _label_fault(study: str, label: str, listing: str, where: str, problems: Problems) -> bool:
    """Whether a label is usable; if not, it is named."""
    if label not in ("0", "1", "0.0", "1.0"):
        problems[f"labels in {listing} other than 0 and 1"].append(f"{study} ({label!r}, {where})")
        return False
    said = {"positive": 1.0, "negative": 0.0}.get(study.rpartition("_")[2])
    if said is not None and said != float(label):
        problems[f"labels in {listing} that contradict the study's folder"].append(f"{study} ({label}, {where})")
        return False
    return True
