"""Ensembles of a sweep's runs, made from their prediction tables: a mean of members, or each study by the member of its group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from xraylab.data.table import SYNTHETIC
from xraylab.errors import UserError, listed
from xraylab.evaluation import KEYS, evaluate_split, labels_of, read_table, write_table
from xraylab.run import write_json


@dataclass(frozen=True)
class Ensemble:
    """Which runs of a sweep are members, and how they are joined.

    Attributes:
        members: how many runs it takes; with fewer it is not made.
        best: of these, join as many, of lowest validation loss; None: all.
        without: leave out runs whose configuration has these values, e.g. ``{body_part: all}``.
        own: each study by the one member whose key of this name is the study's group, e.g. ``body_part``; None: their mean.
    """

    members: int
    best: int | None = None
    without: Mapping[str, Any] | None = None
    own: str | None = None

    def eligible(self, runs: Sequence[Path]) -> list[Path]:
        """The runs that it may take."""
        return [r for r in runs if not any(_config(r, k) == v for k, v in (self.without or {}).items())]

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
        if self.own is None:
            return mean_table(tables, [m.name for m in members])
        return own_table(tables, [str(_config(m, self.own)) for m in members])


def mean_table(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """The mean of the members' probabilities, joined by id (and image).

    Raises:
        UserError: the members' studies or labels differ.
    """
    first = tables[0]
    probabilities = [f"p_{label}" for label in labels_of(first)]
    aligned = [_align(first, table, name, names[0]) for table, name in zip(tables, names, strict=True)]
    return first.assign(**{p: np.mean([t[p].to_numpy() for t in aligned], axis=0) for p in probabilities})


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
    aligned = {g: _align(first, t, g, groups[0]) for t, g in zip(tables, groups, strict=True)}
    out = first.copy()
    for p in (f"p_{label}" for label in labels_of(first)):
        for group, table in aligned.items():
            rows = (first["group"] == group).to_numpy()
            out.loc[rows, p] = table.loc[rows, p]
    return out


def _align(first: pd.DataFrame, table: pd.DataFrame, name: str, other: str) -> pd.DataFrame:
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
    """
    if len(ensemble.eligible(runs)) < ensemble.members:
        return None
    members = ensemble.choose(runs)
    evaluations = [json.loads((m / "evaluation.json").read_text()) for m in members]
    first, splits, left_out = evaluations[0], {}, {}
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
            b = result["bootstrap"]
            evaluated = evaluate_split(table, result["selected_on"], b["resamples"], b["seed"], "exclusive" in result)
            if unit == "study":
                splits[split] = evaluated
            elif split in splits:
                splits[split]["images"] = evaluated
    names = [f"{m.name} (valid/loss {lowest_loss(m):.4f})" if ensemble.best else m.name for m in members]
    evaluation = {
        "data": first["data"],
        "selection": first["selection"],
        "members": names,
        "left_out": left_out,
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
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
