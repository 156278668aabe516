"""Ensembles of a sweep's runs, made from their prediction tables.

A mean of members; each study by the member of its group; each finding by the member that is best at it; or, where members
have other studies of the same patients, as models of one view have, the mean of those that have the study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from xraylab.build import plain
from xraylab.data.table import SYNTHETIC
from xraylab.errors import UserError, listed
from xraylab.evaluation import CERTAIN, KEYS, evaluate_split, labels_of, read_table, write_table
from xraylab.operating import CHOSEN, Rules, judge
from xraylab.run import write_json


@dataclass(frozen=True)
class Ensemble:
    """Which runs of a sweep are members, and how they are joined.

    Attributes:
        members: how many runs it takes; with fewer it is not made.
        best: of these, join as many, of lowest validation loss; None: all.
        without: leave out runs whose configuration has any of these values, e.g. ``{body_part: all}``.
        only: leave out runs whose configuration has not all of these values.
        own: each study by the one member whose key of this name is the study's group, e.g. ``body_part``; None: their mean.
        best_by: ``label``: each finding by the member whose AUROC of it in valid is highest.
        union: the mean of those members that have the study.
    """

    members: int
    best: int | None = None
    without: Mapping[str, Any] | None = None
    only: Mapping[str, Any] | None = None
    own: str | None = None
    best_by: str | None = None
    union: bool = False

    def eligible(self, runs: Sequence[Path]) -> list[Path]:
        """The runs that it may take."""
        without, only = (plain(mapping or {}).items() for mapping in (self.without, self.only))
        return [r for r in runs if all(_config(r, k) == v for k, v in only) and not any(_config(r, k) == v for k, v in without)]

    def choose(self, runs: Sequence[Path]) -> list[Path]:
        """Its members among finished runs."""
        runs = self.eligible(runs)
        return sorted(runs, key=lowest_loss)[: self.best] if self.best else runs

    def join(self, members: Sequence[Path], file: str) -> pd.DataFrame:
        """One prediction table of the members' tables of that name.

        Raises:
            UserError: they are not about the same studies.
        """
        tables = [read_table(m / "predictions" / file) for m in members]
        names = [m.name for m in members]
        if self.own is not None:
            return own_table(tables, [str(_config(m, self.own)) for m in members])
        if self.best_by is not None:
            return best_table(tables, names, {label: c["member"] for label, c in chosen(members).items()})
        if self.union:
            require_same_splits(members)
            return union_table(tables, names)
        return mean_table(tables, names)


def mean_table(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """The mean of the members' probabilities, joined by id (and image).

    Raises:
        UserError: the members' studies or labels differ.
    """
    first = tables[0]
    probabilities = [f"p_{label}" for label in labels_of(first)]
    same = [aligned(first, table, name, names[0]) for table, name in zip(tables, names, strict=True)]
    return first.assign(**{p: np.mean([t[p].to_numpy() for t in same], axis=0) for p in probabilities})


def own_table(tables: Sequence[pd.DataFrame], groups: Sequence[str]) -> pd.DataFrame:
    """Each study by the member of its group.

    Raises:
        UserError: a group has no member, or the members' studies or labels differ.
    """
    first = tables[0]
    missing = sorted(set(first["group"]) - set(groups))
    if missing or len(set(groups)) < len(groups):
        raise UserError(
            f"no run of its own for {listed(missing)}" if missing else f"several runs for one group: {listed(groups)}"
        )
    same = {g: aligned(first, t, g, groups[0]) for t, g in zip(tables, groups, strict=True)}
    out = first.copy()
    for p in (f"p_{label}" for label in labels_of(first)):
        for group, table in same.items():
            rows = (first["group"] == group).to_numpy()
            out.loc[rows, p] = table.loc[rows, p]
    return out


def best_table(tables: Sequence[pd.DataFrame], names: Sequence[str], members: Mapping[str, str]) -> pd.DataFrame:
    """Each finding by one member.

    Args:
        members: label to the name of its member.

    Raises:
        UserError: the members' studies or labels differ.
    """
    same = {name: aligned(tables[0], table, name, names[0]) for table, name in zip(tables, names, strict=True)}
    return tables[0].assign(**{f"p_{label}": same[name][f"p_{label}"].to_numpy() for label, name in members.items()})


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
    probabilities = [c for c in first.columns if c.startswith("p_")]
    truth = [c for c in first.columns if c.startswith("y_")]
    for k, (table, name) in enumerate(zip(tables, names, strict=True)):
        if set(table.columns) != set(first.columns):
            raise UserError(f"runs {names[0]} and {name} have other columns")
        if table["id"].duplicated().any():
            raise UserError(f"run {name} has a study twice: {listed(table.loc[table['id'].duplicated(), 'id'])}")
        for other, earlier in zip(names[:k], tables[:k], strict=True):
            a, b = earlier.set_index("id"), table.set_index("id")
            shared = a.index.intersection(b.index)
            for what, columns in (("labels", truth), ("patients", ["patient"]), ("splits", ["split"])):
                if not a.loc[shared, columns].equals(b.loc[shared, columns]):
                    raise UserError(f"runs {other} and {name} have other {what}")
    together = pd.concat([t[first.columns] for t in tables], ignore_index=True).groupby("id", sort=False)
    out = together.head(1).reset_index(drop=True)  # in order of first appearance, as groupby with sort=False has it
    return out.assign(**{p: together[p].mean().to_numpy() for p in probabilities}, members=together.size().to_numpy())


def require_same_splits(members: Sequence[Path]) -> None:
    """Refuse members that have one study in different splits.

    Raises:
        UserError: they do.
    """
    seen: dict[str, tuple[str, str]] = {}
    for member in members:
        for file in sorted((member / "predictions").glob("*.csv")):
            if file.stem.endswith("_images"):
                continue
            for study in read_table(file)["id"]:
                split, name = seen.setdefault(study, (file.stem, member.name))
                if split != file.stem:
                    raise UserError(f"study {study} is in {split} of run {name} and in {file.stem} of run {member.name}")


def chosen(members: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """For each finding the member of highest AUROC in valid, ``{"member", "auroc"}``.

    Where no member has one, it is the member of lowest validation loss, and ``auroc`` is None.
    """
    valid = {m.name: json.loads((m / "evaluation.json").read_text())["splits"]["valid"]["labels"] for m in members}
    first, fallback = next(iter(valid.values())), min(members, key=lowest_loss).name
    out: dict[str, dict[str, Any]] = {}
    for label in first:
        values = {name: labels[label]["auroc"]["value"] for name, labels in valid.items() if label in labels}
        known = {name: value for name, value in values.items() if value is not None}
        name = max(known, key=known.__getitem__) if known else fallback
        out[label] = {"member": name, "auroc": known.get(name)}
    return out


def aligned(first: pd.DataFrame, table: pd.DataFrame, name: str, other: str) -> pd.DataFrame:
    """The rows of a table in the order of the first one."""
    keys = [k for k in ("id", "image") if k in first]
    if list(table.columns) != list(first.columns):
        raise UserError(f"runs {other} and {name} have other columns")
    a, b = first.set_index(keys), table.set_index(keys)
    if len(a) != len(b) or not a.index.is_unique or set(a.index) != set(b.index):
        raise UserError(f"runs {other} and {name} are of other {'images' if 'image' in keys else 'studies'}")
    out = b.loc[a.index]
    truth = [c for c in first.columns if c.startswith("y_")]
    if not out[truth].equals(a[truth]):
        raise UserError(f"runs {other} and {name} have other labels")
    return out.reset_index()[first.columns]


def write_ensemble(ensemble: Ensemble, name: str, runs: Sequence[Path], folder: Path) -> tuple[list[str], dict[str, Any]] | None:
    """Join the members' tables, evaluate, and write ``ensembles/<name>`` under a sweep's folder.

    Returns:
        Names of the members and the content of its ``evaluation.json``; None while there are too few members.

    Raises:
        UserError: members score labels otherwise.
    """
    if len(ensemble.eligible(runs)) < ensemble.members:
        return None
    members = ensemble.choose(runs)
    evaluations = [json.loads((m / "evaluation.json").read_text()) for m in members]
    first, splits, left_out = evaluations[0], {}, {}
    members_of: dict[str, dict[str, int]] = {}
    tables: dict[str, pd.DataFrame] = {}
    scored = [{**CERTAIN, **e.get("scored", {})} for e in evaluations]
    for member, other in zip(members, scored, strict=True):
        if other != scored[0]:
            words = [", ".join(f"{k} {v}" for k, v in s.items()) for s in (scored[0], other)]
            raise UserError(f"runs {members[0].name} and {member.name} score labels otherwise: {words[0]}; {words[1]}")
    for split, result in first["splits"].items():
        for unit, file in (("study", f"{split}.csv"), ("image", f"{split}_images.csv")):
            if unit == "image" and "images" not in result:
                continue
            try:
                table = ensemble.join(members, file)
            except UserError as error:
                left_out[file] = str(error)
                continue
            write_table(table[_columns(table)], folder / "ensembles" / name / "predictions" / file, first["data"] == SYNTHETIC)
            if ensemble.union and unit == "study":
                members_of[split] = {str(k): int(n) for k, n in table["members"].value_counts().sort_index().items()}
            b = result["bootstrap"]
            evaluated = evaluate_split(
                table, result["selected_on"], b["resamples"], b["seed"], "exclusive" in result, **scored[0]
            )
            if unit == "study":
                splits[split], tables[split] = evaluated, table
            elif split in splits:
                splits[split]["images"] = evaluated
    if tables:
        rules = Rules(**(_config(members[0], "operating") or {}))
        chosen_points = judge(splits, tables, rules, **scored[0])
        write_json(folder / "ensembles" / name / CHOSEN, {"data": first["data"], "scored": scored[0], **chosen_points})
    names = [f"{m.name} (valid/loss {lowest_loss(m):.4f})" if ensemble.best else m.name for m in members]
    evaluation = {
        "data": first["data"],
        "selection": first["selection"],
        "members": names,
        "left_out": left_out,
        "scored": scored[0],
        **({"chosen": chosen(members)} if ensemble.best_by else {}),
        **({"members_of_studies": members_of} if ensemble.union else {}),
        "splits": splits,
    }
    write_json(folder / "ensembles" / name / "evaluation.json", evaluation)
    return names, evaluation


def lowest_loss(run: Path) -> float:
    """The lowest validation loss of a run's history."""
    losses = pd.read_csv(run / "history.csv")["valid/loss"]
    return float(losses.min()) if losses.notna().any() else float("inf")


def _columns(table: pd.DataFrame) -> list[str]:
    return [c for c in table.columns if c in (*KEYS, "image") or c.startswith(("p_", "y_"))]


def _config(run: Path, key: str) -> Any:
    value = OmegaConf.select(OmegaConf.load(run / "config.yaml"), key)
    return plain(value) if OmegaConf.is_config(value) else value
