"""``python -m xraylab.combine method=stack runs=[…]``: several models become one, from their prediction tables."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from xraylab.config.launch import launch
from xraylab.errors import UserError, did_you_mean, listed
from xraylab.evaluation.ensembles.members import (
    METHODS,
    SPLITS,
    Member,
    common_files,
    described,
    group_of,
    how_to_evaluate,
    operating_rules,
    other_splits,
    read_members,
    same_data,
    scoring_of_members,
)

if TYPE_CHECKING:
    import pandas as pd

    from xraylab.evaluation.operating_points import Rules

log = logging.getLogger(__name__)

USAGE = """
xraylab.combine: make several models one, from their prediction tables; the result is a run like any other.

  python -m xraylab.combine method=stack runs=[outputs/mrnet/<a>,outputs/mrnet/<b>,outputs/mrnet/<c>]
  python -m xraylab.combine method=mean  runs=[outputs/mura_paper/<a>,outputs/mura_paper/<b>] splits=[test]
  python -m xraylab.combine method=own   runs=[outputs/mura_cnn/<a>,outputs/mura_cnn/<b>] own=body_part splits=[test]
  python -m xraylab.combine method=vote  runs=[a.csv,b.csv,c.csv] columns.id=path 'columns.p=predicted_{label}' …

Members are joined by id, and must have the same studies, labels, patients and splits. A stack is a logistic regression a
label on the members' logits. It is fitted on valid, never on studies that the members were trained on: valid is judged
out of fold, test by coefficients of all of valid. fit_on=train does what should not be done, and says so.
"""


def combine(
    members: Sequence[Member], method: str, directory: Path, own: str | None = None, fit_on: str = "valid", folds: int = 5,
    splits: Sequence[str] | None = None, bootstrap: int | None = None, seed: int | None = None, blank: str | None = None,
    uncertain: str | None = None, rules: Rules | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Combine members, evaluate, and leave predictions and ``combination.json`` in a directory.

    Args:
        own: of ``method=own``, the key of the members' settings that names their group.
        fit_on, folds: of ``method=stack``, see :class:`xraylab.evaluation.ensembles.combination.Combination`.
        splits: None: those of valid and test that members have.
        bootstrap, seed: None: as the first member's.
        blank, uncertain: what such labels count as, see :func:`xraylab.evaluation.predictions.scored_labels`; None: as the
            members', or of
            tables ``ignore``. Members that were scored otherwise are named.
        rules: of the operating points; None: as :func:`operating_rules` has them.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        UserError: the members differ in their data, scoring, studies, labels, patients or splits, or lack what is needed.
    """
    import pandas as pd

    from xraylab.data.splits import require_apart
    from xraylab.data.study_table import SYNTHETIC
    from xraylab.evaluation.ensembles.alignment import require_one_split
    from xraylab.evaluation.ensembles.combination import Combination, stack_of, write_combination
    from xraylab.evaluation.results import evaluate_tables

    names = [m.name for m in members]
    runs = [m for m in members if m.evaluation]
    scoring = scoring_of_members(runs, {k: v for k, v in (("blank", blank), ("uncertain", uncertain)) if v is not None})
    data = same_data(members)
    by_study = {m.name: {f[:-4]: t for f, t in m.tables.items() if not f.endswith("_images.csv")} for m in members}
    require_one_split(by_study)
    of_split = [(f[:-4].removesuffix("_images"), t["patient"]) for m in members for f, t in m.tables.items()]
    require_apart(pd.concat([pd.DataFrame({"patient": patient, "split": split}) for split, patient in of_split]))
    files = common_files(members, [*SPLITS] if splits is None else [*splits], splits is not None)
    how = how_to_evaluate(members, {f.removesuffix(".csv").removesuffix("_images") for f in files}, bootstrap, seed)
    seed = next(iter(how.values()))["bootstrap"]["seed"]
    if method == "stack":
        lacking = [m.name for m in members if f"{fit_on}.csv" not in m.tables]
        if lacking:
            raise UserError(f"fit_on={fit_on}: there is no predictions/{fit_on}.csv of {listed(lacking)}.{_fitting(fit_on)}")
        tables = [m.tables[f"{fit_on}.csv"] for m in members]
        combination = stack_of(tables, names, fit_on, scoring, seed, folds)
    else:
        groups = tuple(group_of(m, own) for m in members) if method == "own" else None
        combination = Combination(method, tuple(names), groups)
    joined: dict[str, pd.DataFrame] = {}
    left_out: dict[str, str] = {}
    for file in files:
        try:
            joined[file] = combination.split(file.removesuffix(".csv"), [m.tables[file] for m in members])
        except UserError as error:
            if not file.endswith("_images.csv"):
                more = other_splits(files) if " are of other studies: " in str(error) else ""
                raise UserError(f"{file}: {error}.{more}") from None
            left_out[file] = str(error)
    for line in combination.said():
        (log.warning if combination.in_sample else log.info)("%s.", line)
    write_combination(directory, combination, [m.path for m in members], data)
    return {
        "data": data,
        "selection": next((m.evaluation["selection"] for m in runs), "not known"),
        "members": described(members, scoring),
        "left_out": left_out,
        "scored": asdict(scoring),
        "combination": combination.record(),
        "splits": evaluate_tables(joined, directory, how, data == SYNTHETIC, scoring, rules or operating_rules(members)),
    }


def _fitting(fit_on: str) -> str:
    more = " Train it with save_train_predictions=true." if fit_on == "train" else ""
    return more or " A stack needs studies that its members were not trained on."


def job(cfg: DictConfig) -> None:
    """Combine, and report."""
    from hydra.core.hydra_config import HydraConfig

    from xraylab.config.settings import rules_of, scoring_of, several
    from xraylab.evaluation.results import write_records
    from xraylab.reporting.log_results import record_made
    from xraylab.reporting.run_report import write_report
    from xraylab.reporting.summary import closing_table

    started = time.monotonic()
    for key in ("runs", "method"):
        if OmegaConf.is_missing(cfg, key):
            raise UserError(f"{key} must be given: {key}=…  (--help explains it)")
    if cfg.method not in METHODS:
        raise UserError(f"method={cfg.method}: it is one of {', '.join(METHODS)}.{did_you_mean(str(cfg.method), METHODS)}")
    if cfg.fit_on not in ("valid", "train"):
        raise UserError(f"fit_on={cfg.fit_on}: it is valid, or train.")
    for key, least in (("folds", 2), ("bootstrap", 0), ("seed", 0)):
        if cfg[key] is not None and (not isinstance(cfg[key], int) or cfg[key] < least):
            raise UserError(f"{key}={cfg[key]}: it is a whole number from {least} on.")
    scoring_of(cfg.blank, cfg.uncertain)
    given = {k: cfg[k] for k in ("sensitivity", "specificity") if cfg[k] is not None}
    rules_of(given)
    paths = several("runs", cfg.runs)
    splits = None if cfg.splits is None else several("splits", cfg.splits)
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    if (directory / "config.yaml").exists():
        raise UserError(f"{directory} holds a run already. Name another hydra.run.dir.")
    members = read_members(paths, dict(cfg.columns))
    rules = operating_rules(members, given)
    evaluation = combine(
        members, cfg.method, directory, cfg.own, cfg.fit_on, cfg.folds, splits, cfg.bootstrap, cfg.seed, cfg.blank,
        cfg.uncertain, rules,
    )  # fmt: skip
    seed = next(iter(evaluation["splits"].values()))["bootstrap"]["seed"]
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    asked = {str(k): v for k, v in config.items() if k not in ("sensitivity", "specificity")} | {"operating": asdict(rules)}
    write_records(directory, evaluation, asked, "combine", list(hydra.overrides.task), seed)
    write_report(directory)
    record_made(directory, evaluation, config, [m.path for m in members], "combine")  # type: ignore[arg-type]
    log.info("%s", closing_table(evaluation, directory, f"{time.monotonic() - started:.0f} s"))


def main() -> None:
    """The entry point."""
    launch("combine", job, USAGE)


if __name__ == "__main__":
    main()
