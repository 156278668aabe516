"""``python -m xraylab.combine method=stack runs=[…]``: several models become one, from their prediction tables."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xraylab.config.launch import launch
from xraylab.errors import UserError, did_you_mean
from xraylab.run import Run

log = logging.getLogger(__name__)

USAGE = """
xraylab.combine: make several models one, from their prediction tables; the result is a run like any other.

  python -m xraylab.combine method=stack runs=[outputs/mrnet/<a>,outputs/mrnet/<b>,outputs/mrnet/<c>]
  python -m xraylab.combine method=mean  runs=[outputs/mura_paper/<a>,outputs/mura_paper/<b>] splits=[test]
  python -m xraylab.combine method=own   runs=[outputs/mura_cnn/<a>,outputs/mura_cnn/<b>] own=body_part splits=[test]
  python -m xraylab.combine method=vote  runs=[a.csv,b.csv,c.csv] columns.id=path 'columns.p="predicted_{label}"' …

Members are joined by id, and must have the same studies, labels, patients and splits. A stack is a logistic regression a
label on the members' logits. It is fitted on valid, never on studies that the members were trained on: valid is judged
out of fold, test by coefficients of all of valid. fit_on=train does what should not be done, and says so.
"""


def job(cfg: DictConfig) -> None:
    """Combine, and report."""

    from xraylab.config.settings import rules_of, scoring_of, several
    from xraylab.evaluation.ensembles.combine import CombineOptions, combine
    from xraylab.evaluation.ensembles.members import METHODS, operating_rules, read_members
    from xraylab.evaluation.evaluate_tables import write_records
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
    if Run(directory).config_file.exists():
        raise UserError(f"{directory} holds a run already. Name another hydra.run.dir.")
    asked = {k: cfg[k] for k in ("method", "own", "fit_on", "folds", "bootstrap", "seed", "blank", "uncertain")}
    options = CombineOptions(**asked, splits=splits)
    members = read_members(paths, dict(cfg.columns), options.needed)
    rules = operating_rules(members, given)
    evaluation = combine(members, replace(options, rules=rules), directory)
    seed = next(iter(evaluation["splits"].values()))["bootstrap"]["seed"]
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    kept = {str(k): v for k, v in config.items() if k not in ("sensitivity", "specificity")} | {"operating": rules.model_dump()}
    write_records(directory, evaluation, kept, "combine", list(hydra.overrides.task), seed)
    write_report(directory)
    record_made(directory, evaluation, config, [m.path for m in members], "combine")  # type: ignore[arg-type]
    log.info("%s", closing_table(evaluation, directory, f"{time.monotonic() - started:.0f} s"))


def main() -> None:
    """The entry point."""
    launch("combine", job, USAGE)


if __name__ == "__main__":
    main()
