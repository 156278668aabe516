"""Median pruning: a job of a sweep is given up that is worse than the median of those that finished."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback

from xraylab.config.settings import mode_of, sweep_of
from xraylab.errors import Pruned
from xraylab.evaluation.objective import objectives_of, of_run
from xraylab.run import Run
from xraylab.sweeps.record import history_of


def worse_than_median(own: Sequence[float], others: Sequence[float], mode: str) -> bool:
    """Whether the best of a job's values so far is worse than the median of other jobs' values at this epoch.

    Optuna's ``MedianPruner``: a job without any number is worse, and without others nothing is.
    """
    known = [v for v in own if not math.isnan(v)]
    if not known:
        return True
    others = [v for v in others if not math.isnan(v)]
    if not others:
        return False
    median = float(np.median(others))
    return max(known) < median if mode == "max" else min(known) > median


class MedianPruning(Callback):
    """Callback that gives a job up which is worse, after an epoch but the last, than the median of the finished jobs beside it.

    It reads their ``history.csv``, which serves every launcher: jobs in other processes, or on other machines with a shared
    disk, need no server.

    Args:
        directory: of this job's run, beside those of the others.
        objective: a column of history.csv.
        jobs: so many must have finished whose objective is measured on the same, see :mod:`xraylab.evaluation.objective`.
        epochs: none is given up within so many first epochs.
    """

    def __init__(self, directory: Path, objective: str, jobs: int, epochs: int) -> None:
        self.directory, self.objective, self.jobs, self.epochs = directory, objective, jobs, epochs

    @classmethod
    def of(cls, sweep: Any, monitor: str, directory: Path) -> MedianPruning:
        """The callback that the configuration of a sweep asks for."""
        rules = sweep_of(OmegaConf.to_container(sweep, resolve=True))  # type: ignore[arg-type]
        return cls(directory, objectives_of(rules, monitor)[0], rules.prune_jobs, rules.prune_epochs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        own = history_of(Run(self.directory).history_file, self.objective)
        epoch = str(trainer.current_epoch)
        at_its_end = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if epoch not in own or trainer.current_epoch < self.epochs or at_its_end or not trainer.is_global_zero:
            return
        mine = of_run(self.directory, self.objective)
        beside = [Run(p.parent) for p in self.directory.parent.glob("[0-9]*/environment.json")]
        done = [run for run in beside if run.finished and of_run(run.directory, self.objective) == mine]
        if len(done) < self.jobs:
            return
        others = [history_of(run.history_file, self.objective).get(epoch, math.nan) for run in done]
        if worse_than_median(list(own.values()), others, mode_of(self.objective)):
            raise Pruned(
                f"given up after epoch {trainer.current_epoch + 1}: {self.objective} {own[epoch]:.4f}, and the median of "
                f"{len(done)} finished jobs is {np.nanmedian(others):.4f}"
            )
