"""Members become one: their tables joined, evaluated and written as a run directory has them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import pandas as pd

from xraylab.data.splits import require_apart
from xraylab.data.study_table import SYNTHETIC
from xraylab.errors import UserError, listed
from xraylab.evaluation.ensembles import members as of_members
from xraylab.evaluation.ensembles.alignment import require_one_split
from xraylab.evaluation.ensembles.combination import Combination, write_combination
from xraylab.evaluation.ensembles.members import SPLITS, Member
from xraylab.evaluation.ensembles.stacking import FOLDS, fit_stack
from xraylab.evaluation.evaluate_tables import TableOptions, evaluate_tables
from xraylab.evaluation.operating_points import Rules
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.result import Evaluation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CombineOptions:
    """How members are combined.

    Attributes:
        method: ``stack``, ``mean``, ``vote`` or ``own``, see :class:`xraylab.evaluation.ensembles.combination.Combination`.
        own: of ``method=own``, the key of the members' settings that names their group.
        fit_on, folds: of ``method=stack``.
        splits: None: those of valid and test that members have.
        bootstrap, seed: None: as the first member's.
        blank, uncertain: see :class:`xraylab.evaluation.predictions.Scoring`; None: as the members', or of tables ``ignore``.
            Members that were scored otherwise are named.
        rules: of the operating points; None: as :func:`xraylab.evaluation.ensembles.members.operating_rules` has them.
    """

    method: str
    own: str | None = None
    fit_on: str = "valid"
    folds: int = FOLDS
    splits: Sequence[str] | None = None
    bootstrap: int | None = None
    seed: int | None = None
    blank: str | None = None
    uncertain: str | None = None
    rules: Rules | None = None

    @property
    def needed(self) -> set[str]:
        """The splits whose tables are combined or fitted on."""
        return {*(SPLITS if self.splits is None else self.splits), *([self.fit_on] if self.method == "stack" else [])}


def combine(members: Sequence[Member], options: CombineOptions, directory: Path) -> Evaluation:
    """Combine members, evaluate, and leave predictions and ``combination.json`` in a directory.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        UserError: the members differ in their data, scoring, studies, labels, patients or splits, or lack what is needed.
    """
    given = {k: v for k, v in (("blank", options.blank), ("uncertain", options.uncertain)) if v is not None}
    scoring = of_members.scoring_of_members([m for m in members if m.evaluation], given)
    data = of_members.same_data(members)
    require_one_split(_by_study(members))
    of_split = [(f[:-4].removesuffix("_images"), t["patient"]) for m in members for f, t in m.tables.items()]
    require_apart(pd.concat([pd.DataFrame({"patient": patient, "split": split}) for split, patient in of_split]))
    files = of_members.common_files(
        members, [*SPLITS] if options.splits is None else [*options.splits], options.splits is not None
    )
    how = of_members.how_to_evaluate(members, {f[:-4].removesuffix("_images") for f in files}, options.bootstrap, options.seed)
    combination = _combination(members, options, scoring, next(iter(how.values())).seed)
    for line in combination.said():
        (log.warning if combination.in_sample else log.info)("%s.", line)
    evaluation = TableOptions(how, scoring, options.rules or of_members.operating_rules(members))
    return joined(members, of_members.described(members, scoring), combination, files, evaluation, data, directory)


def _combination(members: Sequence[Member], options: CombineOptions, scoring: Scoring, seed: int) -> Combination:
    names = [m.name for m in members]
    if options.method == "own":
        return Combination("own", tuple(names), tuple(of_members.group_of(m, options.own) for m in members))
    if options.method != "stack":
        return Combination(options.method, tuple(names))
    return stacked(members, scoring, seed, options.fit_on, options.folds)


def stacked(members: Sequence[Member], scoring: Scoring, seed: int, fit_on: str = "valid", folds: int = FOLDS) -> Combination:
    """A stack, fitted on the members' predictions of a split.

    Raises:
        UserError: a member has none, or they are of other studies.
    """
    if lacking := [m.name for m in members if f"{fit_on}.csv" not in m.tables]:
        more = " Train it with save_train_predictions=true." * (fit_on == "train")
        more = more or " A stack needs studies that its members were not trained on."
        raise UserError(f"fit_on={fit_on}: there is no predictions/{fit_on}.csv of {listed(lacking)}.{more}")
    names = [m.name for m in members]
    labels, out_of_fold = fit_stack([m.tables[f"{fit_on}.csv"] for m in members], names, scoring, seed, folds)
    kept = None if fit_on == "train" else out_of_fold
    return Combination("stack", tuple(names), fit_on=fit_on, folds=folds, labels=labels, out_of_fold=kept)


def _by_study(members: Sequence[Member]) -> dict[str, dict[str, pd.DataFrame]]:
    """Members' tables by study, by name and split."""
    return {m.name: {f[:-4]: t for f, t in m.tables.items() if not f.endswith("_images.csv")} for m in members}


def joined(
    members: Sequence[Member], names: Sequence[str], combination: Combination, files: Sequence[str], options: TableOptions,
    data: str, directory: Path, strict: bool = True,
) -> Evaluation:  # fmt: skip
    """Join the members' tables, evaluate them, and write them and ``combination.json`` into a directory.

    Args:
        names: of the members, as results show them.
        files: tables to join, as ``test.csv``.
        options: by which the joined tables are evaluated.
        data: what their studies are of.
        strict: a table by study that cannot be joined is an error; else it is left out, as one by image is.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        UserError: members are of other studies.
    """
    tables: dict[str, pd.DataFrame] = {}
    left_out: dict[str, str] = {}
    for file in files:
        try:
            if missing := [m.name for m in members if file not in m.tables]:
                raise UserError(f"there is no predictions/{file} of {listed(missing)}")
            if combination.method == "union":  # whose members have other studies
                require_one_split(_by_study(members))
            tables[file] = combination.split(file.removesuffix(".csv"), [m.tables[file] for m in members])
        except UserError as error:
            if strict and not file.endswith("_images.csv"):
                more = of_members.other_splits(files) if " are of other studies: " in str(error) else ""
                raise UserError(f"{file}: {error}.{more}") from None
            left_out[file] = str(error)
    write_combination(directory, combination, [m.path for m in members], data)
    by_study = [(file.removesuffix(".csv"), table) for file, table in tables.items() if "members" in table]
    counted = {split: table["members"].value_counts().sort_index() for split, table in by_study}
    members_of = {split: {str(k): int(n) for k, n in of.items()} for split, of in counted.items()}
    evaluated = {file: PredictionTable(table) for file, table in tables.items()}
    found = {
        "data": data,
        "selection": next((m.evaluation["selection"] for m in members if m.evaluation), "not known"),
        "members": list(names),
        "left_out": left_out,
        "scored": asdict(options.scoring),
        "combination": combination.record(),
        **({"members_of_studies": members_of} if members_of else {}),
        "splits": evaluate_tables(evaluated, directory, options, data == SYNTHETIC),
    }
    return cast(Evaluation, found)
