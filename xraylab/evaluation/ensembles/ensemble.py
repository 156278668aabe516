"""Ensembles of a sweep's runs, made from their prediction tables.

A mean of members; a logistic regression on them; each study by the member of its group; each finding by the member that is
best at it; or, where members have other studies of the same patients, as models of one view have, the mean of those that
have the study.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from xraylab.config.instantiate import plain
from xraylab.evaluation.ensembles.combination import Combination
from xraylab.evaluation.ensembles.combine import joined, stacked
from xraylab.evaluation.ensembles.members import Member, group_of, how_to_evaluate, member_of_run, operating_rules, same_scoring
from xraylab.evaluation.evaluate_tables import TableOptions, write_records
from xraylab.evaluation.objective import require_alike
from xraylab.evaluation.predictions import Scoring
from xraylab.evaluation.result import Evaluation
from xraylab.run import Run


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
        stack: a logistic regression a label on the members' logits, fitted on valid and judged there out of fold.
    """

    members: int
    best: int | None = None
    without: Mapping[str, Any] | None = None
    only: Mapping[str, Any] | None = None
    own: str | None = None
    best_by: str | None = None
    union: bool = False
    stack: bool = False

    def eligible(self, runs: Sequence[Path]) -> list[Path]:
        """The runs that it may take."""
        without, only = (plain(mapping or {}).items() for mapping in (self.without, self.only))
        return [r for r in runs if all(_config(r, k) == v for k, v in only) and not any(_config(r, k) == v for k, v in without)]

    def choose(self, runs: Sequence[Path]) -> list[Path]:
        """Its members among finished runs.

        Raises:
            UserError: their validation losses cannot be compared.
        """
        runs = self.eligible(runs)
        if self.best:
            require_alike(runs, "valid/loss")
        return sorted(runs, key=lowest_loss)[: self.best] if self.best else runs

    def combination(self, members: Sequence[Member], scoring: Scoring, seed: int) -> Combination:
        """What is done with the members' tables; a stack is fitted on those of valid.

        Raises:
            UserError: they are not about the same studies.
        """
        names = tuple(m.name for m in members)
        if self.own is not None:
            return Combination("own", names, groups=tuple(group_of(m, self.own) for m in members))
        if self.best_by is not None:
            return Combination("best", names, chosen=chosen(members))
        if self.stack:
            return stacked(members, scoring, seed)
        return Combination("union" if self.union else "mean", names)


def chosen(members: Sequence[Member]) -> dict[str, dict[str, Any]]:
    """For each finding the member of highest AUROC in valid, ``{"member", "auroc"}``.

    Where no member has one, it is the member of lowest validation loss, and ``auroc`` is None.

    Raises:
        UserError: what is chosen by is not of the same studies, or weighed otherwise.
    """
    valid = {m.name: m.evaluation["splits"]["valid"]["labels"] for m in members if m.evaluation}
    paths = [m.path for m in members]
    out: dict[str, dict[str, Any]] = {}
    for label in next(iter(valid.values())):
        values = {name: labels[label]["auroc"]["value"] for name, labels in valid.items() if label in labels}
        known = {name: value for name, value in values.items() if value is not None}
        require_alike(paths, f"valid/{label}/auroc" if known else "valid/loss")
        name = max(known, key=known.__getitem__) if known else min(members, key=lambda m: lowest_loss(m.path)).name
        out[label] = {"member": name, "auroc": known.get(name)}
    return out


def write_ensemble(ensemble: Ensemble, name: str, runs: Sequence[Path], folder: Path) -> tuple[list[str], Evaluation] | None:
    """Join the members' tables, evaluate, and write ``ensembles/<name>`` under a sweep's folder, a run directory.

    Returns:
        Names of the members and the content of its ``evaluation.json``; None while there are too few members.

    Raises:
        UserError: members score labels otherwise, or a stack cannot be fitted.
    """
    if len(ensemble.eligible(runs)) < ensemble.members:
        return None
    members = [member_of_run(run, run.name) for run in ensemble.choose(runs)]
    first = members[0].evaluation
    assert first is not None
    splits = first["splits"]
    scoring = same_scoring([m.scoring for m in members], [m.name for m in members])
    seed = next(iter(splits.values()))["bootstrap"]["seed"]
    combination, rules = ensemble.combination(members, scoring, seed), operating_rules(members)
    files = [f"{split}.csv" for split in splits]
    if not ensemble.union:  # whose members have other images
        files = [f for s, of in splits.items() for f in (f"{s}.csv", f"{s}_images.csv") if f == f"{s}.csv" or "images" in of]
    names = [f"{m.name} (valid/loss {lowest_loss(m.path):.4f})" if ensemble.best else m.name for m in members]
    directory, data = folder / "ensembles" / name, first["data"]
    options = TableOptions(how_to_evaluate(members, set(splits), None, None), scoring, rules)
    evaluation = joined(members, names, combination, files, options, data, directory, strict=False)
    config = {"name": name, "method": combination.method, "operating": rules.model_dump()}
    write_records(directory, evaluation, config, "train", sys.argv[1:], seed)
    return names, evaluation


def lowest_loss(run: Path) -> float:
    """The lowest validation loss of a run's history."""
    losses = pd.read_csv(Run(run).history_file)["valid/loss"]
    return float(losses.min()) if losses.notna().any() else float("inf")


def _config(run: Path, key: str) -> Any:
    value = OmegaConf.select(OmegaConf.load(Run(run).config_file), key)
    return plain(value) if OmegaConf.is_config(value) else value
