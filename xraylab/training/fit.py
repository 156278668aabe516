"""An experiment trained: its callbacks, its Trainer, its fit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.loggers import Logger

from xraylab.config.settings import mode_of, parse_interval
from xraylab.run import Run
from xraylab.system.remote import RunUpload
from xraylab.system.signals import keep_from
from xraylab.training.callbacks.checkpointing import Best, Last, Top, Upload
from xraylab.training.callbacks.finite_loss import FiniteLoss
from xraylab.training.callbacks.history import History
from xraylab.training.callbacks.interrupt import Interrupted, StopOnInterrupt
from xraylab.training.callbacks.progress_bar import RunningLoss, StudyProgress
from xraylab.training.callbacks.stopping import early_stopping
from xraylab.training.checkpoints import CheckpointFiles
from xraylab.training.distributed.strategy import trainer_options
from xraylab.training.experiment import Experiment
from xraylab.training.profilers import make_profiler
from xraylab.training.xla import XLACheckpointFiles, device_options, on_tpu

log = logging.getLogger(__name__)


def fit(
    experiment: Experiment, directory: Path, loggers: Sequence[Logger] = (), checkpoint: Path | None = None,
    upload: RunUpload | None = None, more: Sequence[pl.Callback] = (),
) -> int:  # fmt: skip
    """Train until done, stopped early or interrupted; the signal that interrupted it, or 0.

    Leaves ``history.csv`` and ``checkpoints/{best,last}.ckpt``.

    Args:
        checkpoint: to go on from.
    """
    s = experiment.settings
    folder = directory / "checkpoints"
    running = RunningLoss(s.log_every)
    stop = StopOnInterrupt(folder / "last.ckpt", *parse_interval(s.checkpoint_every))
    profiler = make_profiler(s.profiler, directory)
    each: dict[str, Any] = {"save_on_train_epoch_end": True, "auto_insert_metric_name": False, "enable_version_counter": False}
    best = {**each, "monitor": s.monitor, "mode": mode_of(s.monitor)}
    callbacks: list[pl.Callback] = [
        # the first, for others write checkpoints
        FiniteLoss(1 if experiment.accelerator["accelerator"] == "cpu" else s.log_every),  # a CPU has not to be waited for
        History(Run(directory).history_file, s.monitor),
        running,
        StudyProgress(running, s.unit),
        *experiment.callbacks,
        *more,
        stop,  # after those, for the checkpoint that it writes holds what they did in this step
        Best(folder, "best", **best),
        *([Top(folder, "epoch{epoch:03d}", save_top_k=s.save_top_k, **best)] if s.save_top_k > 1 else []),
        Last(folder, "last", **each),
        *([Upload(upload)] if upload else []),
    ]
    if s.early_stopping:
        callbacks.append(early_stopping(s.early_stopping))
    for logger in loggers:
        settings: dict[str, Any] = OmegaConf.to_container(experiment.config)  # type: ignore[assignment]
        logger.log_hyperparams({"data": experiment.table.data, "measured": experiment.measured, **settings})
    files = XLACheckpointFiles() if on_tpu(experiment.accelerator) else CheckpointFiles()
    options = {"logger": list(loggers) or False, "max_epochs": s.max_epochs, "profiler": profiler}
    trainer = make_trainer(experiment, [files], callbacks=callbacks, **options)
    try:
        trainer.fit(experiment.module, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True)
    except Interrupted:
        if profiler is not None:
            profiler.describe()  # which Lightning does at a good end only
    finally:
        stop.restore()
    files.wait()
    if profiler is not None:
        log.info("where the time went: %s", directory / "profile")
    if not stop.stopped:
        if not stop.trained:
            log.info("nothing is left to train after epoch %d: the run is evaluated again", trainer.current_epoch)
        _log_early_stop(trainer)
    return stop.stopped


def _log_early_stop(trainer: pl.Trainer) -> None:
    """Log why training ended before its last epoch, if it did."""
    for early in trainer.early_stopping_callbacks:
        if early.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC:
            log.warning("stopped early: %s is not a finite number in epoch %d", early.monitor, trainer.current_epoch)
        elif early.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            log.info("stopped early: no better %s for %d epochs", early.monitor, early.patience)


def make_trainer(experiment: Experiment, plugins: Sequence[Any] = (), **options: Any) -> pl.Trainer:
    """A Trainer for the job's device and precision."""
    trainer = pl.Trainer(
        **device_options(experiment.accelerator, experiment.precision, *plugins),
        **trainer_options(experiment.processes),
        accumulate_grad_batches=experiment.settings.accumulate,
        gradient_clip_val=experiment.settings.gradient_clip,
        num_sanity_val_steps=0,
        **options,
    )
    return keep_from(trainer)


def silence_lightning() -> None:
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
