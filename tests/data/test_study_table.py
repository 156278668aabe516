"""Splits: disjoint, stratified, seeded; and what they refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from xraylab.data.splits import assign_splits
from xraylab.data.study_table import StudyTable
from xraylab.errors import UserError


def table(train=500, heldout=100, patients_known=True):
    rng = np.random.default_rng(0)
    n = train + heldout
    patient = [f"p{i // 2}" for i in range(n)]  # two studies each
    finding = (rng.random(n) < 0.1).astype(float)
    frame = pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(n)],
            "patient": patient if patients_known else "",
            "group": np.where(np.arange(n) // 2 % 3 == 0, "hand", "wrist"),
            "split": ["train"] * train + ["heldout"] * heldout,
            "images": [("x",)] * n,
            "finding": finding,
        }
    )
    return StudyTable(frame, ("finding",), None, "Made-v1", patients_known=patients_known)


def splits(assigned):
    return {s: set(part["patient"]) for s, part in assigned.frame.groupby("split")}


@pytest.mark.parametrize("seed", range(5))
def test_holdout_is_patient_disjoint_stratified_and_of_the_size_asked_for(seed):
    assigned = assign_splits(table(), "holdout", None, 0.2, seed)
    by = splits(assigned)
    assert not by["train"] & by["valid"]
    assert abs(len(by["valid"]) - 50) <= 1
    assert by["test"] == set(table().part("heldout")["patient"])
    frame = assigned.frame
    for value in ("hand", "wrist"):
        share = (frame[frame["split"] == "valid"]["group"] == value).mean()
        assert abs(share - (frame[frame["split"] == "train"]["group"] == value).mean()) < 0.03
    rate = frame.groupby("split")["finding"].mean()
    assert abs(rate["valid"] - rate["train"]) < 0.03


def test_a_seed_is_a_split():
    one, same, other = (assign_splits(table(), "holdout", None, 0.2, s).frame["split"] for s in (1, 1, 2))
    assert one.equals(same)
    assert not one.equals(other)
    shuffled = table()
    shuffled = StudyTable(shuffled.frame.sample(frac=1, random_state=0), shuffled.labels, None, "Made-v1")
    again = assign_splits(shuffled, "holdout", None, 0.2, 1).frame["split"].sort_index()
    assert again.equals(one), "the order of rows does not matter"


def test_folds_partition_train():
    seen = []
    for k in range(1, 6):
        by = splits(assign_splits(table(), "holdout", f"{k}/5", 0.2, 3))
        assert not by["train"] & by["valid"]
        assert len(by["test"]) == 50
        seen.append(by["valid"])
    assert len(set.union(*seen)) == sum(map(len, seen)) == 250
    assert {len(s) for s in seen} == {50}


def test_official_selects_on_the_heldout_split_and_has_no_test():
    assigned = assign_splits(table(), "official", None, 0.2, 0)
    assert assigned.frame["split"].value_counts().to_dict() == {"train": 500, "valid": 100}


def test_split_valid_halves_the_heldout_split_by_patient():
    by = splits(assign_splits(table(), "split_valid", None, 0.2, 0))
    assert len(by["valid"]) == len(by["test"]) == 25
    assert not by["valid"] & by["test"]


def test_a_shared_patient_is_refused_by_name():
    bad = table()
    bad.frame.loc[599, "patient"] = "p3"
    with pytest.raises(UserError, match="1 patients are in more than one split: p3"):
        assign_splits(bad, "official", None, 0.2, 0)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="folds are parts of train"):
        assign_splits(table(), "official", "1/5", 0.2, 0)
    with pytest.raises(UserError, match="no study in valid"):
        assign_splits(table(train=6), "holdout", None, 0.01, 0)


def test_without_patient_ids_studies_are_split():
    assigned = assign_splits(table(patients_known=False), "holdout", None, 0.2, 0)
    assert (assigned.frame["split"] == "valid").sum() == 100
