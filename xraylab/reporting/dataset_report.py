"""What a dataset holds: counts, labels, sizes, pictures; a page and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from xraylab.data.images.source import of_one_value
from xraylab.data.integrity import counts, of_each
from xraylab.data.study_table import SPLITS, UNREADABLE, StudyTable
from xraylab.errors import UserError

ALL = "all"
SIDE = 150  # pixels of a picture in the report


@dataclass
class Description:
    """What is known of a dataset once it was gone through."""

    table: StudyTable  # split as training would
    counts: pd.DataFrame  # see ``xraylab.data.integrity.counts``; without ``data``
    totals: pd.DataFrame  # the same by split only
    per_study: pd.DataFrame  # split, images, studies
    per_patient: pd.DataFrame | None  # split, studies, patients; None: patients are not known
    sizes: pd.DataFrame  # height, width, images
    sized: tuple[int, int]  # images whose sizes were read, of so many
    pictures: dict[str, list[tuple[str, np.ndarray]]]  # by group: caption, uint8 (H,W[,3])
    skipped: dict[str, list[str]] = field(default_factory=dict)
    looked: int = 0  # so many images were decoded ...
    blank: list[str] = field(default_factory=list)  # ... and these are of one value

    @property
    def splits(self) -> list[str]:
        """Those with studies, in order."""
        return [s for s in SPLITS if (self.totals["split"] == s).any()]

    @property
    def groups(self) -> list[str]:
        """In order, and last ``all`` where there are several."""
        groups = sorted(self.counts["group"].unique())
        return [*groups, ALL] if len(groups) > 1 else groups

    def count(self, split: str, group: str, column: str) -> int | None:
        """A number of the counts; None where the split has none of the group."""
        table = self.totals if group == ALL else self.counts
        rows = table[(table["split"] == split) & (table["group"] == group)]
        return int(rows[column].iloc[0]) if len(rows) else None


# ---- going through it -----------------------------------------------------------------------------------------------


def describe(table: StudyTable, sizes_of: int | None, pictures: int, seed: int, skip: bool) -> Description:
    """Count, measure and picture a dataset.

    Args:
        table: with its splits assigned.
        sizes_of: so many images, drawn by the seed, are read, and of views their sizes; None: all. Volumes are all measured.
        pictures: studies of each kind to show.
        skip: name images that cannot be read; else they stop it.

    Raises:
        UserError: an image cannot be read, and is not to be skipped.
    """
    frame = table.frame
    row = np.repeat(np.arange(len(frame)), frame["images"].map(len))
    images = [image for study in frame["images"] for image in study]
    chosen = np.arange(len(images))
    in_files = bool(images) and table.source.path(images[0]) is not None
    if table.views and in_files and sizes_of is not None and len(images) > sizes_of:
        chosen = np.sort(np.random.default_rng(seed).choice(len(images), sizes_of, replace=False))
    skipped = {kind: list(names) for kind, names in table.problems.items()}
    measured, bad = [], []
    found = of_each(table.source.shape, table.source, [images[i] for i in chosen], "reading headers")
    for i, shape in zip(chosen, found, strict=True):
        if isinstance(shape, UserError):
            if not skip:
                raise shape
            bad.append(images[i])
        else:
            measured.append((row[i], *shape))
    sizes = pd.DataFrame(measured, columns=["row", "number", "height", "width"])
    if table.views:
        number = frame["images"].map(len).to_numpy()
    else:
        number = sizes.groupby("row")["number"].sum().reindex(range(len(frame)), fill_value=0).to_numpy()
    shown, broken = _pictures(table, pictures, seed, skip)
    drawn = chosen if sizes_of is None or len(chosen) <= sizes_of else chosen[:: -(-len(chosen) // sizes_of)]
    blank, unread = _looked_at(table, [image for image in (images[i] for i in drawn) if image not in set(bad)], skip)
    if bad := list(dict.fromkeys([*bad, *broken, *unread])):
        skipped[UNREADABLE] = bad
    counted = frame.assign(number=number)
    per_patient = _studies_per_patient(counted) if table.patients_known else None
    return Description(
        table,
        counts(counted, table.labels, table.patients_known),
        counts(counted.assign(group=ALL), table.labels, table.patients_known),
        _in_order(counted.groupby(["split", "number"]).size().rename_axis(["split", "images"]).reset_index(name="studies")),
        per_patient,
        sizes.groupby(["height", "width"])["number"].sum().rename("images").reset_index(),
        (int(sizes["number"].sum()), int(number.sum())),
        shown,
        skipped,
        len(drawn),
        blank,
    )


def _studies_per_patient(counted: pd.DataFrame) -> pd.DataFrame:
    studies = counted.groupby(["split", "patient"]).size().reset_index(name="studies")
    return _in_order(studies.groupby(["split", "studies"]).size().reset_index(name="patients"))


def _looked_at(table: StudyTable, images: Sequence[str], skip: bool) -> tuple[list[str], list[str]]:
    """The images that are of one value, and those that cannot be read."""
    found = of_each(lambda image: of_one_value(table.source.read([image])), table.source, images, "reading images")
    if not skip and (errors := [error for error in found if isinstance(error, UserError)]):
        raise errors[0]
    pairs = list(zip(images, found, strict=True))
    return [image for image, is_blank in pairs if is_blank is True], [i for i, error in pairs if isinstance(error, UserError)]


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by split, train first."""
    return frame.sort_values("split", key=lambda s: s.map(SPLITS.index), kind="stable", ignore_index=True)


def _pictures(
    table: StudyTable, each: int, seed: int, skip: bool
) -> tuple[dict[str, list[tuple[str, np.ndarray]]], list[str]]:  # fmt: skip
    """Captioned pictures of training studies, the first view or the middle slice; and what could not be read.

    Of each group, so many with and without the first label; of exclusive labels, so many of each; of more than three findings,
    one where each is positive, and one where it is uncertain.
    """
    rng = np.random.default_rng(seed)
    shown: dict[str, list[tuple[str, np.ndarray]]] = {}
    broken = []
    train = table.part("train")
    wanted = [(label, 1.0, label) for label in table.labels]
    if not table.exclusive:
        values, chosen = {"positive": 1.0, "negative": 0.0}, table.labels[:1]
        if len(table.labels) > 3:
            values, chosen, each = {"positive": 1.0, "uncertain": -1.0}, table.labels, min(each, 1)
        wanted = [(label, value, f"{label} {word}") for label in chosen for word, value in values.items()]
    for group, part in train.groupby("group"):
        for label, value, words in wanted:
            rows = part[part[label] == value]
            for place in np.sort(rng.permutation(len(rows))[:each]):
                study = rows.iloc[place]
                try:
                    images = table.source.read(study["images"][:1])
                except UserError:
                    if not skip:
                        raise
                    broken.append(study["images"][0])
                    continue
                i = 0 if table.views else len(images) // 2
                of = len(study["images"]) if table.views else len(images)
                kind = "view" if table.views else " ".join([*table.parts[:1], "slice"])
                what = f", {kind} {i + 1} of {of}" if of > 1 else ""
                shown.setdefault(str(group), []).append((f"{words}: {study['id']}{what}", images[i]))
    return shown, broken


# ---- writing it down ------------------------------------------------------------------------------------------------
