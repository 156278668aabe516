"""Prediction tables written into a run directory and evaluated; and the records of one without a model of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xraylab.data.study_table import SYNTHETIC
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.operating_points import CHOSEN, Rules, judge
from xraylab.evaluation.predictions import COLUMNS, PREFIXES, PredictionTable, Scoring
from xraylab.evaluation.reader_study import judge_readers
from xraylab.evaluation.result import Evaluation, SplitResult
from xraylab.run import Run
from xraylab.system.environment import environment
from xraylab.system.files import write_json, write_text


@dataclass(frozen=True)
class EvaluateOptions:
    """How a split is evaluated, see :func:`xraylab.evaluation.evaluator.evaluate_split`."""

    selected_on: bool | None
    resamples: int
    seed: int = 0
    exclusive: bool = False


@dataclass(frozen=True)
class TableOptions:
    """How the prediction tables of several splits are evaluated.

    Attributes:
        splits: what each split is evaluated by.
        scoring: what blank and uncertain labels count as.
        rules: of the operating points.
        readers: people's readings, see :func:`xraylab.evaluation.reader_study.read_readings`.
    """

    splits: Mapping[str, EvaluateOptions]
    scoring: Scoring
    rules: Rules
    readers: Path | None = None


def evaluate_tables(
    tables: Mapping[str, PredictionTable], directory: Path, options: TableOptions, synthetic: bool,
    about: Mapping[str, Any] | None = None,
) -> dict[str, SplitResult]:  # fmt: skip
    """Write prediction tables into a directory and evaluate them, with operating points chosen on valid.

    Args:
        tables: by file name, ``<split>.csv`` by study and ``<split>_images.csv`` by image.
            Those of a split without options are only written.
        synthetic: they are of the synthetic sample.
        about: the data and the checkpoint, for ``operating_points.json``.

    Returns:
        ``splits`` of an ``evaluation.json``.

    Raises:
        UserError: the readings are not of these studies.
    """
    splits: dict[str, SplitResult] = {}
    scoring = options.scoring
    for file, table in sorted(tables.items(), key=lambda item: item[0].endswith("_images.csv")):
        split = file.removesuffix(".csv").removesuffix("_images")
        kept = [c for c in table.frame.columns if c in COLUMNS or c.startswith(PREFIXES)]
        PredictionTable(table.frame[kept]).write(directory / "predictions" / file, synthetic)
        if split not in options.splits:
            continue
        result = evaluate_split(table, **vars(options.splits[split]), scoring=scoring)
        if split in splits:
            splits[split]["images"] = result
        else:
            splits[split] = result
    by_study = {file.removesuffix(".csv"): table for file, table in tables.items() if file.removesuffix(".csv") in splits}
    if by_study:
        judged = {split: splits[split] for split in by_study}
        chosen = judge(judged, by_study, options.rules, scoring)
        if options.readers is not None:
            judge_readers(judged, by_study, options.readers, scoring)
        data = {"data": SYNTHETIC if synthetic else None}
        write_json(directory / CHOSEN, {**data, **(about or {}), "scored": asdict(scoring), **chosen})
    return splits


def write_records(
    directory: Path, evaluation: Evaluation, config: Mapping[str, Any], command: str, words: list[str], seed: int
) -> None:  # fmt: skip
    """Write ``evaluation.json``, ``config.yaml`` and ``environment.json``.

    Args:
        config: what was asked for.
        command, words: of the command line, ``python -m xraylab.<command> <words>``.
    """
    data = evaluation["data"]
    write_json(Run(directory).evaluation_file, evaluation)
    write_text(Run(directory).config_file, f"# data: {data}\n{OmegaConf.to_yaml(OmegaConf.create(dict(config)))}")
    write_json(Run(directory).environment_file, {**environment(seed, words, command), "data": data, "finished": True})
