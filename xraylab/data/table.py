"""The study table: what every reader returns and everything downstream knows; its splits and counts.

One row is a study: ``id``, ``patient`` (empty where unknown), ``group``, ``split``, ``images`` (a tuple of references
that the table's source reads) and one column a label: 1 positive, 0 negative, -1 uncertain, NaN not mentioned. Optional:
``views``, a tuple of each image's view; ``parts``, a tuple of each reference's part, where a study is several volumes;
``labels/all``, see :data:`ALL_LABELS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from xraylab.config.settings import parse_fold
from xraylab.data.sources import ImageSource
from xraylab.data.stratification import dealt, written
from xraylab.errors import UserError, listed

SYNTHETIC = "synthetic sample"
HELD_BACK = "held_back"  # a part of train that is not trained on; see :func:`hold_back`
UNREADABLE = "images that cannot be read"  # a kind of problem
BLANK = "pictures of one value, on which nothing can be seen"  # another
# a column: all labels that the dataset has, whichever are asked for, so that these do not decide the split; texts of
# :func:`xraylab.data.stratification.written`; where it is missing, the table has them all
ALL_LABELS = "labels/all"
SPLIT_VERSION = 2  # how a seed becomes a split: iterative stratification; 1: :func:`places`, as runs of before have it


@dataclass(frozen=True)
class StudyTable:
    """A dataset: its studies, how to read their images, and what has to be said about it."""

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
                extra = [
                    f"{n} {word}" for word, n in (("uncertain", (values == -1).sum()), ("blank", np.isnan(values).sum())) if n
                ]
                counts.append(f"{label} {(values == 1).sum()}+/{(values == 0).sum()}-" + "".join(f" {e}" for e in extra))
            images = f" of {part['images'].map(len).sum()} images" if self.many_views else ""
            lines.append(f"  {split:<6}{' ' * (split == HELD_BACK)}{len(part)} studies{images}{patients}; {listed(counts, 14)}")
            groups = part["group"].value_counts().sort_index()
            if len(groups) > 1:
                lines.append(f"            by group: {listed((f'{g} {n}' for g, n in groups.items()), 14)}")
        return "\n".join(lines)


def stop_or_skip(problems: dict[str, list[str]], on_error: str, where: str, total: int, unit: str = "studies") -> None:
    """Raise one summary of what is wrong with a dataset, unless it is to be skipped.

    Args:
        total: of so many ``unit``.

    Raises:
        UserError: there are problems and ``on_error`` is ``stop``.
    """
    if on_error not in ("stop", "skip"):
        raise UserError(f"dataset.on_error={on_error}: it is stop or skip.")
    problems = {kind: names for kind, names in problems.items() if names}
    if problems and on_error == "stop":
        lines = [f"  {len(names)} {kind}: {listed(names)}" for kind, names in problems.items()]
        raise UserError(
            f"{where}: something is wrong with {sum(map(len, problems.values()))} of {total} {unit}.\n"
            + "\n".join(lines)
            + f"\nMend the data, or go on without these {unit} with dataset.on_error=skip (the results will name them)."
        )


def assign_splits(
    table: StudyTable, selection: str, fold: str | None, valid_fraction: float, seed: int, version: int = SPLIT_VERSION
) -> StudyTable:  # fmt: skip
    """The table with its ``split`` column set to train, valid or test, no patient in two of them; ``published`` as it was.

    A reader leaves ``train`` and ``heldout`` (two published splits) or ``train``, ``valid`` and ``test`` (three, kept).

    Args:
        selection: ``holdout`` - a seeded, stratified, patient-disjoint part of train is valid, the published held-out
            split is test; ``official`` - the held-out split is valid, there is no test; ``split_valid`` - the held-out
            split is halved into valid and test by patient.
        fold: ``k/n`` - valid is the k-th of n such parts of everything that is not test.
        valid_fraction: of train's patients, for ``holdout``.
        version: see :data:`SPLIT_VERSION`.

    Raises:
        UserError: the request does not fit the published splits, a split would be empty, or patients are shared.
    """
    frame = table.frame.assign(published=table.frame["split"])
    published = set(frame["split"])
    if "train" not in published:
        raise UserError(f"{table.name}: there is no study in train; there are {len(frame)} in {listed(sorted(published))}.")
    three = "valid" in published
    if three and selection != "holdout":
        raise UserError(
            f"selection={selection}: {table.name} publishes train, valid and test, and they are kept. Leave selection=holdout."
        )
    if fold is not None:
        k, n = parse_fold(fold)
        if selection != "holdout":
            raise UserError(f"fold={fold} with selection={selection}: folds are parts of train. Leave selection=holdout.")
        pool = frame["split"].isin(["train", "valid"]) if three else frame["split"] == "train"
        part = in_parts(frame[pool], table.labels, [1 / n] * n, seed, version)
        frame.loc[pool, "split"] = np.where(part == k - 1, "valid", "train")
    elif selection == "official":
        frame.loc[frame["split"] == "heldout", "split"] = "valid"
    elif selection == "split_valid":
        held = frame["split"] == "heldout"
        frame.loc[held, "split"] = np.where(in_parts(frame[held], table.labels, [0.5, 0.5], seed, version) == 0, "valid", "test")
    elif not three:
        train = frame["split"] == "train"
        part = in_parts(frame[train], table.labels, [1 - valid_fraction, valid_fraction], seed, version)
        frame.loc[train, "split"] = np.where(part == 1, "valid", "train")
    frame.loc[frame["split"] == "heldout", "split"] = "test"

    for split in ["train", "valid"] + ([] if selection == "official" else ["test"]):
        if not (frame["split"] == split).any():
            raise UserError(
                f"selection={selection} leaves no study in {split}: {len(frame)} studies in all, "
                f"{(frame['split'] == 'train').sum()} in train."
            )
    if table.patients_known:
        require_apart(frame)
    return replace(table, frame=frame)


def require_apart(frame: pd.DataFrame, where: str = "") -> None:
    """Refuse studies of which one patient is in several splits; those whose patient is not known are of no matter.

    Args:
        frame: columns ``patient`` and ``split``.
        where: what is before the message, as ``t.csv: ``.

    Raises:
        UserError: there are such patients.
    """
    shared = frame[frame["patient"] != ""].groupby("patient")["split"].nunique()
    shared = shared[shared > 1]
    if len(shared):
        raise UserError(
            f"{where}{len(shared)} patients are in more than one split: {listed(shared.index)}. "
            "Results would be too good. Put each patient into one split."
        )


def hold_back(table: StudyTable, fraction: float, most: int, seed: int, version: int = SPLIT_VERSION) -> StudyTable:
    """The table with a seeded, stratified, patient-disjoint part of its train as the split ``held_back``.

    Args:
        table: with its splits assigned.
        fraction: of train's patients.
        most: about so many studies at most.
        version: see :data:`SPLIT_VERSION`.

    Raises:
        UserError: train has too few patients.
    """
    train = table.frame["split"] == "train"
    share = min(fraction, most / max(train.sum(), 1))
    chosen = in_parts(table.frame[train], table.labels, [1 - share, share], seed, version) == 1
    if chosen.all() or not chosen.any():
        raise UserError(f"loss.held_back={fraction}: of {train.sum()} studies in train that leaves none on one side.")
    frame = table.frame.copy()
    frame.loc[train, "split"] = np.where(chosen, HELD_BACK, "train")
    return replace(table, frame=frame)


def patients_of(frame: pd.DataFrame) -> pd.Series:
    """Whose each row is; a study whose patient is not known is a patient of its own, called as no patient is."""
    return frame["patient"].where(frame["patient"] != "", "\x1f" + frame["id"])


def in_parts(
    frame: pd.DataFrame, labels: Sequence[str], shares: Sequence[float], seed: int, version: int = SPLIT_VERSION
) -> np.ndarray:  # fmt: skip
    """A part for each row's patient, int64 (N,): seeded, stratified by labels and group; 0 to the number of shares less one.

    Args:
        labels: columns of raw labels; not looked at where the frame has :data:`ALL_LABELS`.
        shares: of the patients, of each part: two, or several that are equal.
        version: see :data:`SPLIT_VERSION`.
    """
    if version > 1:
        raw = frame[ALL_LABELS] if ALL_LABELS in frame else written(frame[sorted(labels)])
        return dealt(patients_of(frame), frame["group"], raw, shares, seed)
    place = places(frame, labels, seed)
    if len(set(shares)) == 1:
        return place % len(shares)
    # every 1/share-th place: exact to one patient, in all and in every long enough stretch of like patients
    return (np.floor((place + 1) * shares[1]) > np.floor(place * shares[1])).astype(np.int64)


def places(frame: pd.DataFrame, labels: Sequence[str], seed: int) -> np.ndarray:
    """A place for each row's patient in a line of all patients, sorted by group and labels and shuffled among equals.

    Parts made of every n-th place share no patient, and each has the same share of every combination of labels, to
    within one patient. The line starts at a seeded place.
    """
    key, last = patients_of(frame), len(labels) + 1
    values = frame[list(labels)].fillna(-2.0).set_axis(range(1, last), axis=1)  # numbers, for a label may have any name
    values[0] = -pd.factorize(frame["group"], sort=True)[0]
    patients = values.groupby(key).max().sort_index()
    patients[0] = -patients[0]  # of several groups, the first
    rng = np.random.default_rng(seed)
    patients[last] = rng.permutation(len(patients))
    order = patients.sort_values(sorted(patients.columns)).index
    place = pd.Series(np.arange(len(order)) + rng.integers(len(order)), index=order)
    return place.loc[key].to_numpy()
