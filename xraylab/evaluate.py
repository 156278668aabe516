"""``python -m xraylab.evaluate``: repeat a run's evaluation from its checkpoint, or evaluate a table of predictions."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from xraylab.config.dataset import resolved_again
from xraylab.config.launch import importing, launch
from xraylab.errors import UserError, did_you_mean, listed
from xraylab.run import Run, new_run_dir, read_config, run_of
from xraylab.system.command_line import command_line, flags, shown
from xraylab.system.files import new_folder, write_json

if TYPE_CHECKING:
    from xraylab.evaluation.result import Evaluation

log = logging.getLogger(__name__)

USAGE = """
xraylab.evaluate: predict again with a run's checkpoint, and write its tables, evaluation.json and report.html anew.

  python -m xraylab.evaluate run=outputs/mrnet/<date_time>
  python -m xraylab.evaluate run=outputs/mrnet/<date_time> checkpoint=last
  python -m xraylab.evaluate run=outputs/mrnet/<date_time> root=/new/place/MRNet-v1.0
  python -m xraylab.evaluate run=outputs/chexpert/<date_time> blank=negative
  python -m xraylab.evaluate run=outputs/mrnet/<date_time> sensitivity=0.95

or evaluate a table of predictions on its own, of any tool: a CSV with an id, and a probability and a label for every finding.

  python -m xraylab.evaluate table=outputs/mrnet/<date_time>/predictions/test.csv output=<new folder>
  python -m xraylab.evaluate table=theirs.csv columns.id=path 'columns.p="predicted_{label}"' 'columns.y="true_{label}"'
"""

OF_RUNS = {"checkpoint": "best", "root": None, "precision": None, "cache": None, "num_workers": "auto"}
PLACES = {  # in a run's configuration, of what is asked for
    "root": "dataset.root", "precision": "precision", "cache": "cache", "bootstrap": "bootstrap", "readers": "readers",
    "blank": "evaluate.blank", "uncertain": "evaluate.uncertain", "sensitivity": "operating.sensitivity",
    "specificity": "operating.specificity",
}  # fmt: skip
OF_BOTH = ("bootstrap", "blank", "uncertain", "sensitivity", "specificity", "readers")


def job(cfg: DictConfig) -> None:
    """Evaluate one run, and say whether the numbers are those of the last evaluation; or a table."""
    if cfg.table is not None:
        if not OmegaConf.is_missing(cfg, "run"):
            raise UserError("run and table: give one, to evaluate a run anew, or a table on its own.")
        evaluate_table(cfg)
        return
    _refuse_keys_of_tables(cfg)

    started = time.monotonic()
    run = run_of(cfg.run)
    if not (run / "checkpoints").is_dir() and (run / "predictions").is_dir():
        table = next(iter(sorted((run / "predictions").glob("*.csv"))), run / "predictions")
        raise UserError(
            f"run={run}: made of tables, it has no model of its own. Combine anew, or evaluate its {shown('table', table)}."
        )
    with importing():
        from xraylab.config.instantiate import plain
        from xraylab.inference.evaluate import evaluate_run
        from xraylab.reporting.log_results import record_evaluation
        from xraylab.reporting.run_report import write_report
        from xraylab.reporting.summary import closing_table
        from xraylab.training.checkpoints import checkpoint_named
        from xraylab.training.experiment import Experiment
        from xraylab.training.fit import silence_lightning

    silence_lightning()
    checkpoint = checkpoint_named(run, cfg.checkpoint)
    config = read_config(run)
    _set_asked(config, cfg)
    experiment = Experiment.from_config(resolved_again(config), fresh=False)
    before = _read(Run(run).evaluation_file)
    options = {k: cfg[k] for k in ("checkpoint", "root", "precision", *OF_BOTH) if cfg[k] != OF_RUNS.get(k)}
    evaluation = evaluate_run(experiment, run, checkpoint)
    assert evaluation is not None  # this is one process
    evaluation["evaluated"] = {"command": command_line("evaluate", [*flags(), *_words()]), "options": options}
    write_json(Run(run).evaluation_file, evaluation)
    write_report(run)
    record_evaluation(run, evaluation, {"evaluate": plain(cfg)}, checkpoint)
    log.info("%s", closing_table(evaluation, run, f"{time.monotonic() - started:.0f} s"))
    if before is not None:
        changed = sorted(_differences(before, evaluation))
        log.info("the same numbers as before" if not changed else "changed since the last evaluation: " + ", ".join(changed[:8]))


def evaluate_table(cfg: DictConfig) -> None:
    """Evaluate a prediction table, and leave a run directory without a model."""
    from xraylab.config.settings import rules_of, scoring_of, several
    from xraylab.data.splits import require_apart
    from xraylab.data.study_table import SYNTHETIC
    from xraylab.evaluation.evaluate_tables import EvaluateOptions, TableOptions, evaluate_tables, write_records
    from xraylab.evaluation.operating_points import Rules
    from xraylab.evaluation.predictions import SELECTED_ON, PredictionTable, Scoring
    from xraylab.evaluation.reader_study import read_readings
    from xraylab.reporting.run_report import write_report
    from xraylab.reporting.summary import closing_table

    started = time.monotonic()
    given = Path(cfg.table)
    if given.is_dir():
        raise UserError(f"table={given}: a folder. To evaluate a run anew, give {shown('run', given)}; else the CSV in it.")
    for key, default in OF_RUNS.items():
        if cfg[key] != default:
            raise UserError(f"{key}={cfg[key]}: it is for run=…; a table is evaluated as it is.")
    if OmegaConf.select(cfg, "accelerator.accelerator") != "auto":
        raise UserError("accelerator: it is for run=…; a table is evaluated as it is.")
    scoring = Scoring(**scoring_of(cfg.blank, cfg.uncertain))
    rules = rules_of({k: cfg[k] for k in ("sensitivity", "specificity") if cfg[k] is not None})
    selected_on = [] if cfg.selected_on is None else several("selected_on", cfg.selected_on)
    resamples = 1000 if cfg.bootstrap is None else cfg.bootstrap
    if not isinstance(resamples, int) or resamples < 0:
        raise UserError(f"bootstrap={resamples}: it is a whole number from 0 on.")
    predictions = PredictionTable.read(given, dict(cfg.columns))
    table = predictions.frame
    require_apart(table, f"{given}: ")
    synthetic = "data" in table
    end = "_images.csv" if "image" in table else ".csv"
    tables = {f"{split}{end}": PredictionTable(part.reset_index(drop=True)) for split, part in table.groupby("split", sort=False)}
    splits = table["split"].unique().tolist()
    if unknown := [split for split in selected_on if split not in (*splits, *SELECTED_ON)]:
        hint = did_you_mean(unknown[0], splits)
        raise UserError(f"selected_on: {given} has no split {listed(unknown)}.{hint} There are: {listed(splits)}.")
    if "image" in table and (asked := [k for k in ("sensitivity", "specificity", "readers") if cfg[k] is not None]):
        raise UserError(f"{asked[0]}={cfg[asked[0]]}: it is for tables by study, and {given} is by image.")
    readers = None if cfg.readers is None else Path(cfg.readers).absolute()
    if readers is not None:
        read_readings(readers, predictions.labels, dict(zip(table["id"], table["split"], strict=True)))
    # what the user did not say of a table, nobody knows
    said = selected_on != list(SELECTED_ON) or any(word.startswith("selected_on=") for word in _words())
    how = {s: EvaluateOptions(s in selected_on or (False if said else None), resamples) for s in splits}
    directory = Path(new_run_dir("table")) if cfg.output is None else new_folder(cfg.output)
    evaluation: Evaluation = {
        "data": SYNTHETIC if synthetic else given.name,
        "selection": "not known",
        "table": given.name,
        "scored": asdict(scoring),
        "splits": evaluate_tables(tables, directory, TableOptions(how, scoring, Rules(**rules), readers), synthetic),
    }
    keys = ("table", "columns", "selected_on", "bootstrap", "blank", "uncertain", "readers")
    config = {k: OmegaConf.to_container(cfg[k]) if OmegaConf.is_config(cfg[k]) else cfg[k] for k in keys}
    write_records(directory, evaluation, {**config, "operating": rules}, "evaluate", _words(), 0)
    write_report(directory)
    log.info("%s", closing_table(evaluation, directory, f"{time.monotonic() - started:.0f} s"))


def _set_asked(config: DictConfig, cfg: DictConfig) -> None:
    """Set in a run's configuration what this command asks for.

    Raises:
        UserError: a value that it cannot have, by the name of the key here.
    """
    from xraylab.config.settings import rules_of, scoring_of

    scoring_of(cfg.blank, cfg.uncertain)
    rules_of({key: cfg[key] for key in ("sensitivity", "specificity") if cfg[key] is not None})
    with open_dict(config):
        config.num_workers = cfg.num_workers
        for key, place in PLACES.items():
            if cfg[key] is not None:
                OmegaConf.update(config, place, cfg[key], force_add=True)
        if "first" in config.loss:
            config.loss.first = None  # for training only
        if OmegaConf.select(cfg, "accelerator.accelerator") != "auto":
            config.accelerator = cfg.accelerator


def _refuse_keys_of_tables(cfg: DictConfig) -> None:
    from xraylab.evaluation.predictions import COLUMNS, SELECTED_ON

    if cfg.output is not None:
        raise UserError(f"output={cfg.output}: it is for table=…; a run's evaluation is written into the run.")
    if cfg.selected_on != list(SELECTED_ON):
        raise UserError(f"selected_on={cfg.selected_on}: it is for table=…; a run knows what was chosen on.")
    for key, name in cfg.columns.items():
        if name != COLUMNS[key]:
            raise UserError(f"columns.{key}={name}: it is for table=….")


def _words() -> list[str]:
    """The words of the command line."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}. Delete it to evaluate anew.") from error


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b} - {"evaluated"})  # how it was asked for is no result
        return [d for k in keys for d in _differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    return [] if a == b else [path]


def main() -> None:
    """The entry point."""
    launch("evaluate", job, USAGE)


if __name__ == "__main__":
    main()
