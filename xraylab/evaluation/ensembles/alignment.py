"""Prediction tables of several models, joined into one by id (and image).

Members must be about the same studies, with the same labels, patients and splits; what differs is named. A study's patient
that a member does not know is that of another. Groups may differ, as those of the planes of one exam do: a study's group is
then all of them, ``axial+coronal+sagittal``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from xraylab.errors import UserError, listed
from xraylab.evaluation.predictions import COLUMNS, UNKNOWN, logit_columns, with_logits
from xraylab.evaluation.probabilities import mean_logit

VOTES_AT = 0.5  # a member votes for a finding from this probability on


def mean_table(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """The mean of the members' probabilities, and its logit where all members have logits.

    Raises:
        UserError: the members' studies or labels differ.
    """
    same = alike(tables, names)
    found = {p[2:]: mean_of(same, p[2:]) for p in probabilities(same[0])}
    out = same[0].assign(**{f"p_{label}": p for label, (p, _) in found.items()})
    return with_logits(out, {label: z for label, (_, z) in found.items()})


def mean_of(tables: Sequence[pd.DataFrame], label: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The mean of members' probabilities (N,), and its logit; None where a member has none."""
    p = np.mean([t[f"p_{label}"].to_numpy() for t in tables], axis=0)
    if any(f"logit_{label}" not in t for t in tables):
        return p, None
    z = np.concatenate([t[f"logit_{label}"].to_numpy() for t in tables])
    return p, mean_logit(z, np.tile(np.arange(len(p)), len(tables)))


def vote_table(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """The share of members that call a finding positive, at 0.5. At the same threshold, half of them are a majority.

    Raises:
        UserError: the members' studies or labels differ.
    """
    same = alike(tables, names)
    votes = {p: np.mean([t[p].to_numpy() >= VOTES_AT for t in same], axis=0) for p in probabilities(same[0])}
    return with_logits(same[0].assign(**votes), {})


def own_table(tables: Sequence[pd.DataFrame], groups: Sequence[str]) -> pd.DataFrame:
    """Each study by the member of its group.

    Raises:
        UserError: a group has no member, or the members' studies, groups or labels differ.
    """
    first = tables[0]
    missing = sorted(set(first["group"]) - set(groups))
    if missing or len(set(groups)) < len(groups):
        raise UserError(
            f"no run of its own for {listed(missing)}" if missing else f"several runs for one group: {listed(groups)}"
        )
    same = alike(tables, groups)
    other = same[0]["group"] != first["group"]
    if other.any():
        raise UserError(
            f"runs {listed(groups)} have other groups of the same studies: {listed(same[0].loc[other, 'group'].unique(), 5)}. "
            "With method=own every run has all groups, each study in the same one. What sees the same studies in several ways, "
            "as planes, is joined by method=stack or mean"
        )
    of = np.select([first["group"] == group for group in groups], range(len(groups)))  # the member of each row

    def by_group(column: str) -> np.ndarray | None:
        there = all(column in table for table in same)
        return np.stack([table[column].to_numpy() for table in same])[of, np.arange(len(of))] if there else None

    labels = [p[2:] for p in probabilities(first)]
    out = same[0].assign(**{f"p_{label}": by_group(f"p_{label}") for label in labels})
    return with_logits(out, {label: by_group(f"logit_{label}") for label in labels})


def best_table(tables: Sequence[pd.DataFrame], names: Sequence[str], members: Mapping[str, str]) -> pd.DataFrame:
    """Each finding by one member.

    Args:
        members: label to the name of its member.

    Raises:
        UserError: the members' studies or labels differ.
    """
    same = dict(zip(names, alike(tables, names), strict=True))
    out = same[names[0]].assign(**{f"p_{label}": same[name][f"p_{label}"].to_numpy() for label, name in members.items()})
    there = {label: same[name] for label, name in members.items() if f"logit_{label}" in same[name]}
    return with_logits(out, {label: table[f"logit_{label}"].to_numpy() for label, table in there.items()})


def union_table(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """The studies of all members, each by the mean of the members that have it; ``members`` says how many those are.

    What else a table says of a study, as its group, is the first such member's.

    Raises:
        UserError: the members' labels, or the patients or splits of studies that they share, differ; or tables by image,
            whose numbers mean other images in each member.
    """
    first = tables[0]
    if "image" in first:
        raise UserError("a union is of studies, and not of images")
    for k, (table, name) in enumerate(zip(tables, names, strict=True)):
        _require_columns(first, table, names[0], name)
        if table["id"].duplicated().any():
            raise UserError(f"run {name} has a study twice: {listed(table.loc[table['id'].duplicated(), 'id'])}")
        for other, earlier in zip(names[:k], tables[:k], strict=True):
            a, b = earlier.set_index("id"), table.set_index("id")
            shared = a.index.intersection(b.index)
            _require_equal(a.loc[shared], b.loc[shared], other, name)
    known = [c for c in first.columns if all(c in t for t in tables)]
    rows = pd.concat([t[known] for t in tables], ignore_index=True)
    together = rows.groupby("id", sort=False)
    out = together.head(1).reset_index(drop=True)  # in order of first appearance, as groupby with sort=False has it
    means = {p: together[p].mean().to_numpy() for p in probabilities(first)}
    logits = {c[6:]: mean_logit(rows[c].to_numpy(), together.ngroup().to_numpy()) for c in known if c.startswith("logit_")}
    patient = together["patient"].max().to_numpy()  # the known one, which is above a blank
    return with_logits(out.assign(patient=patient, **means), logits).assign(members=together.size().to_numpy())


def alike(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> list[pd.DataFrame]:
    """The members' tables, their rows in the order of the first and of one group.

    Raises:
        UserError: their columns, studies, labels, patients or splits differ.
    """
    same = [aligned(tables[0], table, name, names[0]) for table, name in zip(tables, names, strict=True)]
    patient = same[0]["patient"]
    for k, table in enumerate(same[1:], 1):
        for other, earlier in zip(names[1:k], same[1:k], strict=True):  # the first may not know what these do
            _require_equal(earlier.set_index("id"), table.set_index("id"), other, names[k])
        patient = patient.where(patient != "", table["patient"])
    told = [t["group"] for t in same if not (t["group"] == UNKNOWN["group"]).all()] or [same[0]["group"]]
    group = told[0]
    if not all(other.equals(group) for other in told):
        rows = ("+".join(map(str, row)).split("+") for row in zip(*told, strict=True))
        group = pd.Series(["+".join(dict.fromkeys(row)) for row in rows], dtype=group.dtype)
    return [table.assign(patient=patient, group=group) for table in same]


def aligned(first: pd.DataFrame, table: pd.DataFrame, name: str, other: str) -> pd.DataFrame:
    """The rows of a table in the order of the first one; logits, which one may have and another not, are its own.

    Raises:
        UserError: the columns, studies, labels, patients or splits differ; it names the runs and some studies.
    """
    keys = [k for k in ("id", "image") if k in first]
    _require_columns(first, table, other, name)
    a, b = first.set_index(keys), table.set_index(keys)
    if len(a) != len(b) or not a.index.is_unique or set(a.index) != set(b.index):
        only = [f"{listed(_ids(x.index.difference(y.index)), 5)} only in {n}" for x, y, n in ((a, b, other), (b, a, name))]
        said = "; ".join(o for o in only if not o.startswith(" only"))
        twice = [f"{listed(_ids(x.index[x.index.duplicated()]), 5)} twice in {n}" for x, n in ((a, other), (b, name))]
        said = said or "; ".join(t for t in twice if not t.startswith(" twice"))
        raise UserError(f"runs {other} and {name} are of other {'images' if 'image' in keys else 'studies'}: {said}")
    out = b.loc[a.index]
    _require_equal(a, out, other, name)
    return out.reset_index()[[*first.columns.drop(logit_columns(first)), *logit_columns(table)]]


def require_one_split(files: Mapping[str, Mapping[str, pd.DataFrame]]) -> None:
    """Refuse members that have one study in different splits.

    Args:
        files: member to its tables by study, split to table.

    Raises:
        UserError: they do.
    """
    seen: dict[str, tuple[str, str]] = {}
    for name, tables in files.items():
        for split, table in tables.items():
            for study in table["id"]:
                other, earlier = seen.setdefault(study, (split, name))
                if split != other:
                    raise UserError(f"study {study} is in {other} of run {earlier} and in {split} of run {name}")


def probabilities(table: pd.DataFrame) -> list[str]:
    """The columns of probabilities."""
    return [c for c in table.columns if c.startswith("p_")]


def _require_columns(first: pd.DataFrame, table: pd.DataFrame, other: str, name: str) -> None:
    differing = [c for x, y in ((first, table), (table, first)) for c in x.columns.drop(logit_columns(x)) if c not in y]
    if differing:
        labels = dict.fromkeys(c[2:] if c not in COLUMNS else c for c in differing)
        raise UserError(f"runs {other} and {name} have other columns: {listed(labels)} only in one of them")


def _require_equal(a: pd.DataFrame, b: pd.DataFrame, other: str, name: str) -> None:
    """Refuse tables of the same rows whose labels, patients or splits differ."""
    truth = [c for c in a.columns if c.startswith("y_")]
    for what, columns in (("labels", truth), ("patients", ["patient"]), ("splits", ["split"])):
        for c in columns:
            x, y = a[c], b[c]
            differ = ((x != y) & ~(x.isna() & y.isna())).to_numpy()
            if what == "patients":
                differ = differ & ((x != "") & (y != "")).to_numpy()  # what is not known is no difference
            if differ.any():
                rows = zip(_ids(a.index[differ]), np.flatnonzero(differ), strict=True)
                some = [f"{i} is {_value(x.iloc[k])} and {_value(y.iloc[k])}" for i, k in rows]
                of = f" of {c[2:]}" if what == "labels" else ""
                raise UserError(f"runs {other} and {name} have other {what}{of}: {listed(some, 5)}")


def _value(value: object) -> str:
    return "blank" if value == "" or pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)  # type: ignore[call-overload]


def _ids(index: pd.Index) -> list[str]:
    return ["/".join(map(str, i)) if isinstance(i, tuple) else str(i) for i in index]
