"""A job trained and judged: its callbacks, its Trainer, its predictions, its evaluation."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.loggers import Logger

from xraylab.assemble import Job
from xraylab.averaging import weights_in_words
from xraylab.callbacks import History, Interrupted, RunningLoss, StopOnInterrupt, StudyProgress, early_stopping
from xraylab.cases import write_cases
from xraylab.checkpoint_files import CheckpointFiles
from xraylab.config.instantiate import build
from xraylab.config.settings import mode_of, parse_interval
from xraylab.dashboards import group_of, tags_of
from xraylab.errors import UserError
from xraylab.evaluation.evaluator import evaluate_split, raw_counts
from xraylab.evaluation.operating_points import CHOSEN, Rules, judge
from xraylab.evaluation.predictions import prediction_table, write_table
from xraylab.evaluation.probabilities import sigmoid
from xraylab.evaluation.reader_study import judge_readers
from xraylab.exchange import gather, rank, trainer_options
from xraylab.guards import FiniteLoss, make_profiler
from xraylab.loggers import TensorBoard, Wandb
from xraylab.module import checkpoint_of, read_checkpoint, require_finite, require_splits
from xraylab.system.files import write_json
from xraylab.system.remote import RunUpload
from xraylab.system.signals import keep_from
from xraylab.xla import XLACheckpointFiles, device_options, on_tpu

log = logging.getLogger(__name__)


class Best(ModelCheckpoint):
    """``best.ckpt``. A class each, for Lightning tells the states of two ModelCheckpoints apart by class."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score back, also where the run's directory was moved, which Lightning takes for another run."""
        here = Path(str(self.dirpath))
        paths = {k: str(here / Path(v).name) for k, v in state_dict.items() if k.endswith("_path") and v}
        best = {str(here / Path(k).name): v for k, v in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class Top(Best):
    """The checkpoints of ``save_top_k``."""


class Last(Best):
    """``last.ckpt``, not by ``save_last``: that leaves an old one after an epoch that is no best (pytorch-lightning 2.6)."""


class Upload(Checkpoint):
    """Copies the run elsewhere after every epoch. A Checkpoint, for Lightning calls those last, in their order."""

    def __init__(self, upload: RunUpload) -> None:
        self.upload = upload

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.upload.sync()


def make_loggers(cfg: DictConfig, directory: Path) -> list[Logger]:
    """The loggers of a configuration, which write into the run's directory unless told otherwise.

    Raises:
        UserError: a wrong argument or value.
    """
    nodes = cfg.logger.items()
    return [build({**node, "save_dir": node.get("save_dir") or str(directory)}, f"logger.{name}") for name, node in nodes]


def introduce(loggers: Sequence[Logger], job: Job, directory: Path, checkpoint: Path | None = None) -> None:
    """Tell loggers which run they are of, and where it goes on, before anything is logged.

    Args:
        checkpoint: to go on from.
    """
    backbone = job.module.net.backbone.hparams.get("name", type(job.module.net.backbone).__name__)
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.of_run(directory, "train", group_of(directory), tags_of(job.table.data, job.table.name, backbone))
        elif isinstance(logger, TensorBoard):  # a run killed before its first checkpoint begins again in place
            logger.go_on_from(int(read_checkpoint(checkpoint)["global_step"]) if checkpoint else 0)


def fit(
    job: Job, directory: Path, loggers: Sequence[Logger] = (), checkpoint: Path | None = None, upload: RunUpload | None = None,
    more: Sequence[pl.Callback] = (),
) -> int:  # fmt: skip
    """Train until done, stopped early or interrupted; the signal that interrupted it, or 0.

    Leaves ``history.csv`` and ``checkpoints/{best,last}.ckpt``.

    Args:
        checkpoint: to go on from.
    """
    s = job.settings
    folder = directory / "checkpoints"
    running = RunningLoss(s.log_every)
    stop = StopOnInterrupt(folder / "last.ckpt", *parse_interval(s.checkpoint_every))
    profiler = make_profiler(s.profiler, directory)

    def keep(kind: type[ModelCheckpoint], name: str, **options: Any) -> ModelCheckpoint:
        return kind(
            folder, name, save_on_train_epoch_end=True, auto_insert_metric_name=False, enable_version_counter=False, **options
        )  # fmt: skip

    chosen: dict[str, Any] = {"monitor": s.monitor, "mode": mode_of(s.monitor)}
    callbacks: list[pl.Callback] = [
        # the first, for others write checkpoints
        FiniteLoss(1 if job.accelerator["accelerator"] == "cpu" else s.log_every),  # a CPU has not to be waited for
        History(directory / "history.csv", job.module.labels, s.monitor, job.table.synthetic, s.unit),
        running,
        StudyProgress(running, s.unit),
        *job.callbacks,
        *more,
        stop,  # after those, for the checkpoint that it writes holds what they did in this step
        keep(Best, "best", **chosen),
        *([keep(Top, "epoch{epoch:03d}", save_top_k=s.save_top_k, **chosen)] if s.save_top_k > 1 else []),
        keep(Last, "last"),
        *([Upload(upload)] if upload else []),
    ]
    if s.early_stopping:
        callbacks.append(early_stopping(s.early_stopping))
    for logger in loggers:
        logger.log_hyperparams({"data": job.table.data, "measured": job.measured, **OmegaConf.to_container(job.config)})  # type: ignore[dict-item]
    files = XLACheckpointFiles() if on_tpu(job.accelerator) else CheckpointFiles()
    options = {"logger": list(loggers) or False, "max_epochs": s.max_epochs, "profiler": profiler}
    trainer = make_trainer(job, [files], callbacks=callbacks, **options)
    try:
        trainer.fit(job.module, datamodule=job.data, ckpt_path=checkpoint, weights_only=True)
    except Interrupted:
        if profiler is not None:
            profiler.describe()  # which Lightning does at a good end only
    finally:
        stop.restore()
    files.wait()
    if profiler is not None:
        log.info("where the time went: %s", directory / "profile")
    for early in trainer.early_stopping_callbacks if not stop.stopped else []:
        if early.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC:
            log.warning("stopped early: %s is not a finite number in epoch %d", early.monitor, trainer.current_epoch)
        elif early.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            log.info("stopped early: no better %s for %d epochs", early.monitor, early.patience)
    return stop.stopped


def make_trainer(job: Job, plugins: Sequence[Any] = (), **options: Any) -> pl.Trainer:
    """A Trainer for the job's device and precision."""
    trainer = pl.Trainer(
        **device_options(job.accelerator, job.precision, *plugins),
        **trainer_options(job.processes),
        accumulate_grad_batches=job.settings.accumulate,
        gradient_clip_val=job.settings.gradient_clip,
        num_sanity_val_steps=0,
        **options,
    )
    return keep_from(trainer)


def predict_split(job: Job, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the table (N,), logits (N,L), and those of single images (I,L), of a split in table order."""
    trainer = make_trainer(job, logger=False, callbacks=[StudyProgress(RunningLoss(1))], enable_checkpointing=False)
    outputs = trainer.predict(job.module, job.data.loader(split, plain=True)) or []
    kept = [(rows, by_study, by_image[:real]) for rows, _, _, real, by_study, by_image in outputs]
    parts = gather([torch.cat([o[i] for o in kept]).cpu() for i in range(3)])  # in the order of processes, as the table is
    rows, by_study, by_image = (torch.cat(of) for of in zip(*parts, strict=True))
    logits = job.module.log_odds(by_study)
    require_finite(logits, split)
    return rows.numpy(), logits, job.module.log_odds(by_image)


def evaluate_run(job: Job, directory: Path, checkpoint: Path) -> dict[str, Any]:
    """Predict with a checkpoint, write the prediction tables, evaluate them, and write what was chosen on validation.

    Args:
        checkpoint: a file, or the run, whose best it is.

    Returns:
        The content of ``evaluation.json``; empty in a process that is not the first.
    """
    if rank() == 0:  # the others get its weights
        checkpoint = checkpoint_of(checkpoint)
        saved = read_checkpoint(checkpoint)
        require_splits(job.digest, checkpoint)
        try:
            job.module.load_state_dict(saved["state_dict"])
        except RuntimeError as error:
            raise UserError(
                f"{checkpoint}: of another model than {directory / 'config.yaml'}: {str(error).splitlines()[0]}"
            ) from error
    table, s = job.table, job.settings
    splits: dict[str, Any] = {}
    tables: dict[str, pd.DataFrame] = {}
    wanted = [split for split in ["valid", "test"] + ["train"] * s.save_train_predictions if len(table.part(split))]
    predicted = {split: predict_split(job, split) for split in wanted}
    if rank() != 0:
        return {}
    for split, (rows, logits, by_image) in predicted.items():
        predictions = prediction_table(table.frame, table.labels, split, rows, sigmoid(logits), logits)
        write_table(predictions, directory / "predictions" / f"{split}.csv", table.synthetic)
        options = (split == "valid", s.bootstrap, s.seed, table.exclusive, s.evaluate.blank, s.evaluate.uncertain)
        if split != "train":
            splits[split], tables[split] = evaluate_split(predictions, *options), predictions
            shown = (predictions, rows)
        if table.many_views:
            images = table.by_image()
            rows = images.part(split).index.to_numpy()
            predictions = prediction_table(images.frame, table.labels, split, rows, sigmoid(by_image), by_image)
            write_table(predictions, directory / "predictions" / f"{split}_images.csv", table.synthetic)
            if split != "train":
                splits[split]["images"] = evaluate_split(predictions, *options)
    counts_as = s.evaluate.model_dump()
    write_cases(directory, table, *shown, s.cases, **counts_as)  # of test, or of valid where there is no test
    train = table.part("train")
    of = {
        "file": checkpoint.name, "epoch": saved["epoch"], "step": saved["global_step"], "monitor": s.monitor,
        "weights": weights_in_words(saved, dict(zip(job.config.callbacks, job.callbacks, strict=True))),
    }  # fmt: skip
    chosen = judge(splits, tables, Rules(**s.operating.model_dump()), **counts_as)
    if s.readers is not None:
        judge_readers(splits, tables, Path(s.readers), **counts_as)
    write_json(directory / CHOSEN, {"data": table.data, "checkpoint": of, "scored": counts_as, **chosen})
    return {
        "data": table.data,
        "selection": s.selection if s.fold is None else f"fold {s.fold}",
        "checkpoint": of,
        "loss": {"policy": job.module.loss.describe(table.labels, job.module.groups), **job.module.loss.state(table.labels)},
        "skipped": table.problems,
        "trained_on": {
            "n": len(train),
            "patients": int(train["patient"].nunique()) if table.patients_known else None,
            "labels": {label: raw_counts(train[label].to_numpy(float)) for label in table.labels},
        },
        "scored": counts_as,
        "splits": splits,
    }


def quiet() -> None:
    """Keep Lightning's remarks that do not concern the user out of the output."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for reason in (
        ".*does not have many workers.*",  # on few cores none is best
        ".*number of training batches.*smaller than the logging interval.*",  # running loss has its own interval
        ".*dataloader is not resumable.*",  # the data module resumes it
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
        ".*module.s. in eval mode at the start of training.*",  # frozen batch statistics
        ".*You are using a CUDA device.*Tensor Cores.*",
        ".*isinstance.treespec, LeafSpec.*",  # inside Lightning, about torch
        ".*LeafSpec.*deprecated.*",
        ".*sync_dist=True.*",  # what is logged is of all processes already
    ):
        warnings.filterwarnings("ignore", reason)
