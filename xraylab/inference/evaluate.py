"""A finished run predicted on its own splits, and evaluated."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xraylab.data.study_table import StudyTable
from xraylab.errors import UserError
from xraylab.evaluation.evaluate_tables import EvaluateOptions, TableOptions, evaluate_tables
from xraylab.evaluation.evaluator import raw_counts
from xraylab.evaluation.operating_points import Rules
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.probabilities import require_finite, sigmoid
from xraylab.evaluation.result import Checkpoint, Evaluation, TrainedOn
from xraylab.inference.cases import write_cases
from xraylab.training.callbacks.progress_bar import RunningLoss, StudyProgress
from xraylab.training.callbacks.weight_averaging import weights_in_words
from xraylab.training.checkpoints import checkpoint_of, read_checkpoint, require_splits
from xraylab.training.distributed.collectives import gather, rank
from xraylab.training.experiment import Experiment
from xraylab.training.fit import make_trainer


def predict_split(experiment: Experiment, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the table (N,), logits (N,L), and those of single images (I,L), of a split in table order."""
    trainer = make_trainer(experiment, logger=False, callbacks=[StudyProgress(RunningLoss(1))], enable_checkpointing=False)
    outputs = trainer.predict(experiment.module, experiment.data.loader(split, plain=True)) or []
    kept = [(rows, by_study, by_image[:real]) for rows, _, _, real, by_study, by_image in outputs]
    parts = gather([torch.cat([o[i] for o in kept]).cpu() for i in range(3)])  # in the order of processes, as the table is
    rows, by_study, by_image = (torch.cat(of) for of in zip(*parts, strict=True))
    logits = experiment.module.log_odds(by_study)
    require_finite(logits, split)
    return rows.numpy(), logits, experiment.module.log_odds(by_image)


def _trained_on(table: StudyTable) -> TrainedOn:
    """Counts of train: studies, patients, raw labels."""
    train = table.part("train")
    return {
        "n": len(train),
        "patients": int(train["patient"].nunique()) if table.patients_known else None,
        "labels": {label: raw_counts(train[label].to_numpy(float)) for label in table.labels},
    }


def _load(experiment: Experiment, checkpoint: Path, directory: Path) -> dict[str, Any]:
    """Give the experiment's network the weights of a checkpoint; returns its content."""
    saved = read_checkpoint(checkpoint)
    require_splits(experiment.digest, checkpoint)
    try:
        experiment.module.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint}: of another model than {directory / 'config.yaml'}: {str(error).splitlines()[0]}"
        ) from error
    return saved


def evaluate_run(experiment: Experiment, directory: Path, checkpoint: Path) -> Evaluation | None:
    """Predict with a checkpoint, write the prediction tables, evaluate them, and write what was chosen on validation.

    Args:
        checkpoint: a file, or the run, whose best it is.

    Returns:
        The content of ``evaluation.json``; None in a process that is not the first.
    """
    if rank() == 0:  # the others get its weights
        checkpoint = checkpoint_of(checkpoint)
        saved = _load(experiment, checkpoint, directory)
    table, s = experiment.table, experiment.settings
    scoring = Scoring(**s.evaluate.model_dump())
    wanted = [split for split in ["valid", "test"] + ["train"] * s.save_train_predictions if len(table.part(split))]
    predicted = {split: predict_split(experiment, split) for split in wanted}
    if rank() != 0:
        return None
    tables: dict[str, PredictionTable] = {}
    images = table.by_image() if table.many_views else None
    for split, (rows, logits, by_image) in predicted.items():
        tables[f"{split}.csv"] = PredictionTable.of_studies(table.frame, table.labels, split, rows, sigmoid(logits), logits)
        if images is not None:
            of_image = (images.part(split).index.to_numpy(), sigmoid(by_image), by_image)
            tables[f"{split}_images.csv"] = PredictionTable.of_studies(images.frame, table.labels, split, *of_image)
    of: Checkpoint = {
        "file": checkpoint.name, "epoch": saved["epoch"], "step": saved["global_step"], "monitor": s.monitor,
        "weights": weights_in_words(saved, dict(zip(experiment.config.callbacks, experiment.callbacks, strict=True))),
    }  # fmt: skip
    scored = [split for split in predicted if split != "train"]
    how = {split: EvaluateOptions(split == "valid", s.bootstrap, s.seed, table.exclusive) for split in scored}
    options = TableOptions(how, scoring, Rules(**s.operating.model_dump()), None if s.readers is None else Path(s.readers))
    splits = evaluate_tables(tables, directory, options, table.synthetic, {"data": table.data, "checkpoint": of})
    last = scored[-1]  # test, or valid where there is no test
    write_cases(directory, table, tables[f"{last}.csv"], predicted[last][0], s.cases, scoring)
    return {
        "data": table.data,
        "selection": s.selection if s.fold is None else f"fold {s.fold}",
        "checkpoint": of,
        "loss": {
            "policy": experiment.module.loss.describe(table.labels, experiment.module.groups),
            **experiment.module.loss.state(table.labels),
        },
        "skipped": table.problems,
        "trained_on": _trained_on(table),
        "scored": asdict(scoring),
        "splits": splits,
    }
