"""Ensembles of a sweep's runs, made from their prediction tables.

A mean of members; a logistic regression on them; each study by the member of its group; each finding by the member that is
best at it; or, where members have other studies of the same patients, as models of one view have, the mean of those that
have the study.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from xraylab.config.instantiate import plain
from xraylab.config.settings import rules_of
from xraylab.data.study_table import SYNTHETIC
from xraylab.errors import UserError, listed
from xraylab.evaluation.ensembles.alignment import require_one_split
from xraylab.evaluation.ensembles.combination import Combination, stack_of, write_combination
from xraylab.evaluation.objective import require_alike
from xraylab.evaluation.operating_points import Rules
from xraylab.evaluation.predictions import CERTAIN, Scoring, read_table
from xraylab.evaluation.results import evaluate_tables, write_records

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")


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

    def combination(self, members: Sequence[Path], scoring: Scoring, seed: int) -> Combination:
        """What is done with the members' tables; a stack is fitted on those of valid.

        Raises:
            UserError: they are not about the same studies.
        """
        names = tuple(m.name for m in members)
        if self.own is not None:
            return Combination("own", names, groups=tuple(str(_config(m, self.own)) for m in members))
        if self.best_by is not None:
            return Combination("best", names, chosen=chosen(members))
        if self.stack:
            tables = [read_table(m / "predictions" / "valid.csv") for m in members]
            return stack_of(tables, names, "valid", scoring, seed)
        return Combination("union" if self.union else "mean", names)


def chosen(members: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """For each finding the member of highest AUROC in valid, ``{"member", "auroc"}``.

    Where no member has one, it is the member of lowest validation loss, and ``auroc`` is None.

    Raises:
        UserError: what is chosen by is not of the same studies, or weighed otherwise.
    """
    valid = {
        m.name: json.loads((m / "evaluation.json").read_text(encoding="utf-8"))["splits"]["valid"]["labels"] for m in members
    }
    out: dict[str, dict[str, Any]] = {}
    for label in next(iter(valid.values())):
        values = {name: labels[label]["auroc"]["value"] for name, labels in valid.items() if label in labels}
        known = {name: value for name, value in values.items() if value is not None}
        require_alike(members, f"valid/{label}/auroc" if known else "valid/loss")
        name = max(known, key=known.__getitem__) if known else min(members, key=lowest_loss).name
        out[label] = {"member": name, "auroc": known.get(name)}
    return out


def write_ensemble(ensemble: Ensemble, name: str, runs: Sequence[Path], folder: Path) -> tuple[list[str], dict[str, Any]] | None:
    """Join the members' tables, evaluate, and write ``ensembles/<name>`` under a sweep's folder, a run directory.

    Returns:
        Names of the members and the content of its ``evaluation.json``; None while there are too few members.

    Raises:
        UserError: members score labels otherwise, or a stack cannot be fitted.
    """
    if len(ensemble.eligible(runs)) < ensemble.members:
        return None
    members = ensemble.choose(runs)
    evaluations = [json.loads((m / "evaluation.json").read_text(encoding="utf-8")) for m in members]
    scoring = same_scoring(evaluations, [m.name for m in members])
    first, tables, left_out = evaluations[0], {}, {}
    members_of: dict[str, dict[str, int]] = {}
    directory = folder / "ensembles" / name
    seed = next(iter(first["splits"].values()))["bootstrap"]["seed"]
    combination = ensemble.combination(members, scoring, seed)
    rules = same_rules([rules_asked(_config(m, "operating"), e) for m, e in zip(members, evaluations, strict=True)], {})
    for split, result in first["splits"].items():
        for unit, file in (("study", f"{split}.csv"), ("image", f"{split}_images.csv")):
            if unit == "image" and ("images" not in result or ensemble.union):  # whose members have other images
                continue
            try:
                found = [read_table(m / "predictions" / file) for m in members]
                if ensemble.union:
                    require_one_split({m.name: _by_study(m) for m in members})
                table = combination.split(split, found)
            except UserError as error:
                left_out[file] = str(error)
                continue
            tables[file] = table
            if ensemble.union and unit == "study":
                members_of[split] = {str(k): int(n) for k, n in table["members"].value_counts().sort_index().items()}
    names = [f"{m.name} (valid/loss {lowest_loss(m):.4f})" if ensemble.best else m.name for m in members]
    evaluation = {
        "data": first["data"],
        "selection": first["selection"],
        "members": names,
        "left_out": left_out,
        "scored": asdict(scoring),
        "combination": combination.record(),
        **({"members_of_studies": members_of} if ensemble.union else {}),
        "splits": evaluate_tables(tables, directory, first["splits"], first["data"] == SYNTHETIC, scoring, rules),
    }
    write_combination(directory, combination, members, first["data"])
    write_records(
        directory,
        evaluation,
        {"name": name, "method": combination.method, "operating": asdict(rules)},
        "train",
        sys.argv[1:],
        seed,
    )
    return names, evaluation


def same_scoring(evaluations: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Scoring:
    """What blank and uncertain labels count as in all evaluations.

    Raises:
        UserError: not the same.
    """
    scored = [Scoring.of(e) for e in evaluations]
    if not scored:
        return CERTAIN
    for name, other in zip(names, scored, strict=True):
        if other != scored[0]:
            raise UserError(f"runs {names[0]} and {name} score labels otherwise: {scored[0]}; {other}")
    return scored[0]


def rules_asked(operating: Mapping[str, Any] | None, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """``operating`` of a member's settings, with what its last evaluation was asked for."""
    anew = evaluation.get("evaluated", {}).get("options", {})
    return {**(operating or {}), **{k: anew[k] for k in ("sensitivity", "specificity") if k in anew}}


def same_rules(operating: Sequence[Mapping[str, Any]], given: Mapping[str, float]) -> Rules:
    """The rules of the operating points: as given, else as in all members; where they differ, the standard ones, and it is said.

    Args:
        operating: those of each member, see :func:`rules_asked`.
        given: those that are asked for.

    Raises:
        UserError: a value that it cannot have.
    """
    all_of = [rules_of(of) for of in operating] or [rules_of({})]
    standard, common = rules_of({}), dict(all_of[0])
    for key in [k for k in common if k not in given and any(of[k] != common[k] for of in all_of)]:
        common[key] = standard[key]
        values = listed(dict.fromkeys(str(of[key]) for of in all_of))
        log.warning("members have different operating.%s (%s): taken is %s.", key, values, standard[key])
    return Rules(**rules_of({**common, **given}))


def _by_study(run: Path) -> dict[str, pd.DataFrame]:
    """A run's tables by study, by split."""
    files = [run / "predictions" / f"{split}.csv" for split in SPLITS]
    return {file.stem: read_table(file) for file in files if file.is_file()}


def lowest_loss(run: Path) -> float:
    """The lowest validation loss of a run's history."""
    losses = pd.read_csv(run / "history.csv")["valid/loss"]
    return float(losses.min()) if losses.notna().any() else float("inf")


def _config(run: Path, key: str) -> Any:
    value = OmegaConf.select(OmegaConf.load(run / "config.yaml"), key)
    return plain(value) if OmegaConf.is_config(value) else value
