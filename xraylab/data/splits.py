"""Assignment of studies to train, valid and test, by patient: holdout, folds, official splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from xraylab.config.settings import parse_fold
from xraylab.data.stratification import stratified, written
from xraylab.data.study_table import ALL_LABELS, HELD_BACK, StudyTable, patients_of
from xraylab.errors import UserError, listed

#: how a seed becomes a split: 3: iterative stratification; as runs of before have it, 2: without a draw of where counts begin,
#: 1: :func:`places`
SPLIT_VERSION = 3


def assign_splits(
    table: StudyTable, selection: str, fold: str | None, valid_fraction: float, seed: int, version: int = SPLIT_VERSION
) -> StudyTable:
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


def in_parts(
    frame: pd.DataFrame, labels: Sequence[str], shares: Sequence[float], seed: int, version: int = SPLIT_VERSION
) -> np.ndarray:
    """A part for each row's patient, int64 (N,): seeded, stratified by labels and group; 0 to the number of shares less one.

    Args:
        labels: columns of raw labels; not looked at where the frame has :data:`ALL_LABELS`.
        shares: of the patients, of each part: two, or several that are equal.
        version: see :data:`SPLIT_VERSION`.
    """
    if version > 1:
        raw = frame[ALL_LABELS] if ALL_LABELS in frame else written(frame[sorted(labels)])
        return stratified(patients_of(frame), frame["group"], raw, shares, seed, drawn=version > 2)
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
