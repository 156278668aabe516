"""How several models become one: the content of a run's ``combination.json``, and what it makes of their tables."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from xraylab.errors import UserError
from xraylab.evaluation.ensembles.alignment import best_table, mean_table, own_table, union_table, vote_table
from xraylab.evaluation.ensembles.stacking import PENALTY, stacked_table
from xraylab.evaluation.result import StackFit
from xraylab.system.files import write_json

INPUTS = "logits, as tables have them; of tables without, those of probabilities"
CLIPPED = "logits of probabilities, clipped to [1e-06, 1 - 1e-06]"  # of combinations of before
IN_SAMPLE = "fitted on predictions of studies that the members were trained on: it trusts those that learnt them by heart"


@dataclass(frozen=True)
class Combination:
    """What is done with the members' probabilities.

    Attributes:
        method: ``stack``, a logistic regression on the logits; ``mean``; ``vote``, the share of members that call a finding
            positive; ``own``, each study by the member of its group; ``best``, each finding by one member; ``union``, the mean
            of those members that have the study.
        names: of the members.
        groups: of ``own``: the group of each member.
        chosen: of ``best``: label to ``{"member", "auroc"}``.
        fit_on: of ``stack``: the split that its coefficients are of.
        folds: of ``stack``: parts in which the studies of that split are judged.
        labels: of ``stack``: what :func:`xraylab.evaluation.ensembles.stacking.fit_stack` returns.
        inputs: of ``stack``: what its coefficients are of, in words.
        out_of_fold: of ``stack``: its table of the split that it was fitted on; not in the record.
    """

    method: str
    names: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    chosen: Mapping[str, Any] | None = None
    fit_on: str | None = None
    folds: int | None = None
    labels: Mapping[str, StackFit] | None = None
    inputs: str = INPUTS
    out_of_fold: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    @property
    def in_sample(self) -> bool:
        """Whether it was fitted on studies that the members were trained on."""
        return self.fit_on == "train"

    def join(self, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """One table of those of the members, which may lack labels.

        Raises:
            UserError: they are not about the same studies, or by image where that cannot be.
        """
        if self.method == "own":
            assert self.groups is not None
            return own_table(tables, self.groups)
        if self.method == "best":
            assert self.chosen is not None
            return best_table(tables, self.names, {label: c["member"] for label, c in self.chosen.items()})
        if self.method == "stack":
            if "image" in tables[0]:
                raise UserError("a stack is of studies, and not of images")
            assert self.labels is not None
            farthest = math.log(1e6 - 1) if self.inputs == CLIPPED else math.inf
            return stacked_table(tables, self.names, self.labels, farthest)
        return {"mean": mean_table, "vote": vote_table, "union": union_table}[self.method](tables, self.names)

    def split(self, split: str, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """As :meth:`join`; of the split that a stack was fitted on, out of fold.

        Raises:
            UserError: as :meth:`join`.
        """
        if split == self.fit_on and self.out_of_fold is not None and "image" not in tables[0]:
            return self.out_of_fold
        return self.join(tables)

    def said(self) -> list[str]:
        """How it was fitted, in sentences without a full stop; nothing of a method that is not."""
        if self.method != "stack":
            return []
        how = f"a logistic regression a label on the members' logits, fitted on {self.fit_on}"
        lines = [f"{how}: {IN_SAMPLE}" if self.in_sample else f"{how}, and judged there out of fold, in {self.folds} parts"]
        lines += [f"{la}: {v['reason']}" for la, v in (self.labels or {}).items() if v["reason"]]
        lines += [
            f"{la}: {n} probabilities of {name} are exactly 0 or 1, and it has no logits: they count as its farthest"
            for la, v in (self.labels or {}).items()
            for name, n in v.get("certain", {}).items()
        ]
        return lines

    def record(self) -> dict[str, Any]:
        """What is written, all but the members' paths; :meth:`of_record` turns it back."""
        out: dict[str, Any] = {"method": self.method, "names": list(self.names)}
        if self.groups is not None:
            out["groups"] = list(self.groups)
        if self.chosen is not None:
            out["chosen"] = self.chosen
        if self.labels is not None:
            out |= {
                "fit_on": self.fit_on,
                "in_sample": self.in_sample,
                "folds": self.folds,
                "inputs": self.inputs,
                "penalty": f"l2, C={PENALTY:g}",
                "labels": self.labels,
            }
        return out

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Combination:
        """The combination that was recorded."""
        groups = tuple(record["groups"]) if "groups" in record else None
        fitted = (record.get("fit_on"), record.get("folds"), record.get("labels"), record.get("inputs", INPUTS))
        return cls(record["method"], tuple(record["names"]), groups, record.get("chosen"), *fitted)


def write_combination(directory: Path, combination: Combination, members: Sequence[Path], data: str) -> None:
    """Write ``combination.json``; the members' paths are relative to its directory.

    Args:
        data: what their studies are of.
    """
    paths = [Path(os.path.relpath(m.absolute(), directory.absolute())).as_posix() for m in members]
    write_json(directory / "combination.json", {"data": data, **combination.record(), "paths": paths})


def read_combination(directory: Path) -> tuple[Combination, list[Path]] | None:
    """The combination of a run directory and where its members are; None where it is no combination.

    Raises:
        UserError: it cannot be read, or a member is not there.
    """
    path = directory / "combination.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        combination, members = Combination.of_record(record), [directory / p for p in record["paths"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a combination: {error!r}. Make it anew with xraylab.combine.") from error
    if missing := [m for m in members if not m.exists()]:
        raise UserError(f"{path}: its member {missing[0].resolve()} is not there. Put it back, or combine anew.")
    return combination, members
