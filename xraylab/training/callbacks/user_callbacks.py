"""Callbacks of Lightning beside the trainer's own: which of them work here, and what to set in place of those that do not."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning import callbacks as of_lightning

from xraylab.config.settings import mode_of
from xraylab.errors import UserError

ELSEWHERE: Mapping[type[pl.Callback], str] = {
    of_lightning.GradientAccumulationScheduler: "the loss is scaled by the batches in a step, which it changes unseen. Set "
    "accumulate=<number>",
    of_lightning.BatchSizeFinder: "the batch size is part of what a run is. Set batch_size=<number>",
    of_lightning.LearningRateFinder: "a rate that is found unseen is in no record. Set optimizer.lr=<number>, or try several: "
    "-m optimizer.lr=1e-5,1e-4",
    of_lightning.ModelPruning: "checkpoints hold weights without masks. Take a smaller network (backbone=…)",
    of_lightning.StochasticWeightAveraging: "its averages are neither evaluated nor chosen by. Set callbacks=swa "
    "callbacks.swa.start=<epoch>",
    of_lightning.WeightAveraging: "which weights are chosen, kept and evaluated is known of callbacks=ema and callbacks=swa",
    of_lightning.BaseFinetuning: "what is trained when is part of what a run is. Set callbacks=unfreeze "
    "'callbacks.unfreeze.at={4: null}'",
    of_lightning.BasePredictionWriter: "it would never be called: predictions/ has the tables",
    of_lightning.ProgressBar: "there is a progress bar already",
}
LOGGING = (of_lightning.LearningRateMonitor, of_lightning.DeviceStatsMonitor, of_lightning.ThroughputMonitor)
MONITORING = (of_lightning.EarlyStopping, of_lightning.ModelCheckpoint)


def check_callbacks(callbacks: Mapping[str, pl.Callback], dashboards: bool) -> dict[str, str]:
    """Refuse, before data is read, what would end or silently change a run.

    Args:
        callbacks: by the name in the configuration.
        dashboards: whether any logger is configured.

    Returns:
        The metrics that they monitor, by the key that names each.

    Raises:
        UserError: one does not work here, or not as it is set.
    """
    monitors = {}
    for name, callback in callbacks.items():
        key, kind = f"callbacks.{name}", type(callback)
        if not isinstance(callback, pl.Callback):
            raise UserError(f"{key}: {callback!r} is not a callback of pytorch_lightning.")
        if kind.__module__.startswith("xraylab."):
            continue
        for refused, why in ELSEWHERE.items():
            if isinstance(callback, refused):
                raise UserError(f"{key}: {kind.__name__} does not work here: {why}; and leave it out.")
        if isinstance(callback, LOGGING) and not dashboards:
            raise UserError(
                f"{key}: {kind.__name__} writes to a dashboard, and there is none: add logger=tensorboard or logger=wandb, or "
                "leave it out; history.csv has rates and throughput."
            )
        if isinstance(callback, of_lightning.DeviceStatsMonitor) and importlib.util.find_spec("psutil") is None:
            raise UserError(f"{key}: it needs psutil: pip install psutil")
        if isinstance(callback, of_lightning.ModelCheckpoint) and callback.dirpath is None:
            raise UserError(
                f"{key}: without dirpath it would write where the command was given. Name a folder ({key}.dirpath=<folder>), or "
                "set save_top_k=<number> or checkpoint_every='500 steps' in its place."
            )
        if isinstance(callback, of_lightning.Timer) and callback._interval != "epoch":
            raise UserError(f"{key}.interval: an epoch that ends half-way is not validated. Set +{key}.interval=epoch.")
        if isinstance(callback, MONITORING) and callback.monitor is not None:
            monitors[f"{key}.monitor"] = callback.monitor
            if callback.mode != (better := mode_of(callback.monitor)):
                raise UserError(
                    f"{key}.mode={callback.mode}: the best {callback.monitor} is the {better}. Set {key}.mode={better}."
                )
    return monitors
