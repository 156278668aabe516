"""The study table, which every reader returns and which is all that the rest knows of a dataset.

One row is a study: ``id``, ``patient`` (empty where unknown), ``group``, ``split``, ``images`` (a tuple of references
that the table's source reads) and one column a label: 1 positive, 0 negative, -1 uncertain, NaN not mentioned. Optional:
``views``, a tuple of each image's view; ``called``, of what results call each image, where that is not its reference;
``parts``, a tuple of each reference's part, where a study is several volumes;
``labels/all``, see :data:`ALL_LABELS`; ``attribute/<name>``, see :mod:`xraylab.data.attributes`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from xraylab.data.images.source import ImageSource
from xraylab.errors import UserError, listed

SYNTHETIC = "synthetic sample"
SPLITS = ("train", "valid", "test")  # once they are assigned
HELD_BACK = "held_back"  # a part of train that is not trained on; see :func:`hold_back`
UNREADABLE = "images that cannot be read"  # a kind of problem
BLANK = "pictures of one value, on which nothing can be seen"  # another
# a column: all labels that the dataset has, whichever are asked for, so that these do not decide the split; texts of
# :func:`xraylab.data.stratification.written`; where it is missing, the table has them all
ALL_LABELS = "labels/all"
Problems = defaultdict[str, list[str]]  # what is wrong with a dataset: kind -> names


@dataclass(frozen=True)
class StudyTable:
    """Table of a dataset: its studies, how to read their images, and what has to be said about it.

    >>> from pathlib import Path
    >>> from xraylab.data.images.source import FileSource
    >>> rows = {"id": ["s1", "s2"], "patient": ["p1", "p2"], "group": "knee", "split": ["train", "test"], "acl": [1.0, 0.0]}
    >>> frame = pd.DataFrame({**rows, "images": [("a.png", "b.png"), ("c.png",)]})
    >>> table = StudyTable(frame, ("acl",), FileSource(Path()), "mine", views=True)
    >>> table.many_views, len(table.by_image().frame)
    (True, 3)
    """

    frame: pd.DataFrame
    labels: tuple[str, ...]
    source: ImageSource
    name: str  # the published name, e.g. MRNet-v1.0
    synthetic: bool = False
    patients_known: bool = True
    exclusive: bool = False  # exactly one label of a study is positive
    channels: int = 1
    views: bool = False  # an image on its own bears the study's label, as views do and slices do not
    parts: tuple[str, ...] = ()  # where a study is several volumes, each pooled on its own: their names, in order
    problems: dict[str, list[str]] = field(default_factory=dict)  # what was wrong and skipped: kind -> names

    @property
    def data(self) -> str:
        """How results name their data."""
        return SYNTHETIC if self.synthetic else self.name

    def part(self, split: str) -> pd.DataFrame:
        """The rows of one split; its index is the row number in ``frame``."""
        return self.frame[self.frame["split"] == split]

    def by_image(self) -> StudyTable:
        """One row an image with its study's labels, and columns ``image``, its place in the study, and ``view``, if known."""
        images = [image for study in self.frame["images"] for image in study]
        counts = self.frame["images"].map(len).to_numpy()
        frame = self.frame.loc[self.frame.index.repeat(counts)].reset_index(drop=True)
        frame["images"] = pd.Series([(image,) for image in images], dtype=object)
        frame["image"] = np.concatenate([np.arange(n) for n in counts])
        if "called" in frame:
            frame["called"] = pd.Series([(name,) for study in self.frame["called"] for name in study], dtype=object)
        if "views" in frame:
            frame["view"] = [view for study in self.frame["views"] for view in study]
        return replace(self, frame=frame)

    def split_digest(self) -> str:
        """A checksum of which study is in which split."""
        pairs = sorted(zip(self.frame["id"].astype(str), self.frame["split"], strict=True))
        return hashlib.sha256("\n".join("\t".join(pair) for pair in pairs).encode()).hexdigest()[:16]

    def label_values(self, rows: pd.Index | None = None) -> np.ndarray:
        """Raw labels, float32 (studies, labels)."""
        frame = self.frame if rows is None else self.frame.loc[rows]
        return frame[list(self.labels)].to_numpy(np.float32, copy=True)

    @property
    def many_views(self) -> bool:
        """Whether studies of several views can also be looked at image by image."""
        return self.views and bool((self.frame["images"].map(len) > 1).any())

    @property
    def train_groups(self) -> list[str]:
        """The groups of the training split, in order."""
        return sorted(self.part("train")["group"].unique())

    def group_numbers(self) -> np.ndarray:
        """int64 (studies,), the place of each study's group in ``train_groups``; -1 where it has none."""
        return pd.Index(self.train_groups).get_indexer(pd.Index(self.frame["group"])).astype(np.int64)

    def summary(self) -> str:
        """Studies and positives / negatives / uncertain / not mentioned by split and label, one line each."""
        lines = []
        for split in [s for s in ("train", HELD_BACK, "valid", "test") if (self.frame["split"] == s).any()]:
            part = self.part(split)
            patients = f", {part['patient'].nunique()} patients" if self.patients_known else ""
            counts = []
            for label in self.labels:
                values = part[label].to_numpy()
                others = {"uncertain": (values == -1).sum(), "blank": np.isnan(values).sum()}
                extra = [f"{n} {word}" for word, n in others.items() if n]
                counts.append(f"{label} {(values == 1).sum()}+/{(values == 0).sum()}-" + "".join(f" {e}" for e in extra))
            images = f" of {part['images'].map(len).sum()} images" if self.many_views else ""
            lines.append(f"  {split:<6}{' ' * (split == HELD_BACK)}{len(part)} studies{images}{patients}; {listed(counts, 14)}")
            groups = part["group"].value_counts().sort_index()
            if len(groups) > 1:
                lines.append(f"            by group: {listed((f'{g} {n}' for g, n in groups.items()), 14)}")
        return "\n".join(lines)


def stop_or_skip(
    problems: Mapping[str, Sequence[str]], on_error: str, where: str, total: int, unit: str = "studies"
) -> dict[str, list[str]]:
    """What is wrong with a dataset, the kinds of which there is something; or one summary of it as an error.

    Args:
        total: of so many ``unit``.

    Raises:
        UserError: there are problems and ``on_error`` is ``stop``.
    """
    found = {kind: list(names) for kind, names in problems.items() if names}
    if found and on_error == "stop":
        lines = [f"  {len(names)} {kind}: {listed(names)}" for kind, names in found.items()]
        raise UserError(
            f"{where}: something is wrong with {sum(map(len, found.values()))} of {total} {unit}.\n"
            + "\n".join(lines)
            + f"\nMend the data, or go on without these {unit} with dataset.on_error=skip (the results will name them)."
        )
    return found


def named(problems: Problems) -> set[str]:
    """Images and studies already named as wrong."""
    return {name.split(" ", 1)[0] for names in problems.values() for name in names}


def patients_of(frame: pd.DataFrame) -> pd.Series:
    """The patient of each row; a study whose patient is not known is a patient of its own, called as no patient is."""
    return frame["patient"].where(frame["patient"] != "", "\x1f" + frame["id"])
