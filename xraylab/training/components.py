"""The parts of a run that its configuration alone makes; they are checked before any data is read."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.utilities.model_helpers import is_overridden

from xraylab.config.instantiate import build, plain
from xraylab.config.settings import Settings, mode_of
from xraylab.data.augmentation import Augmentation
from xraylab.errors import UserError, did_you_mean, listed, refusing
from xraylab.evaluation.metrics import METRICS
from xraylab.models import Backbone, Pool
from xraylab.models.losses.base import Loss
from xraylab.models.study_net import per_channel
from xraylab.models.trial import require_features
from xraylab.system.command_line import as_typed
from xraylab.training.callbacks.stopping import early_stopping
from xraylab.training.callbacks.unfreeze import Unfreeze
from xraylab.training.callbacks.user_callbacks import check_callbacks
from xraylab.training.callbacks.weight_averaging import StochasticWeightAveraging
from xraylab.training.xla import on_tpu


@dataclass
class Components:
    """The parts of a run that need no data.

    Attributes:
        optimizer: parameters to optimizer.
        schedule: the scheduler's node, ``auto`` standing for the steps of the whole run; empty: none.
        interval, monitor: when the scheduler steps, ``epoch`` or ``step``, and the metric that a plateau looks at.
        monitors: every monitored metric, by the key that names it.
    """

    backbone: Backbone
    pool: Pool
    loss: Loss
    augmentation: Augmentation
    optimizer: Any
    schedule: dict[str, Any]
    interval: str
    monitor: str
    callbacks: list[pl.Callback]
    monitors: dict[str, str]

    @classmethod
    def of(
        cls, cfg: DictConfig, settings: Settings, fresh: bool, accelerator: dict[str, Any], options: Mapping[str, Any]
    ) -> Components:
        """Build the components, and try those whose mistakes show only when they are used.

        Args:
            fresh: a new run; else the checkpoint brings the weights.
            accelerator: arguments of the Trainer.
            options: all that the Trainer gets of the machine.

        Raises:
            UserError: something in the configuration is wrong.
        """
        torch.manual_seed(settings.seed)
        pool, loss, augmentation = (build(cfg[g], g) for g in ("pool", "loss", "augmentation"))
        optimizer = build(cfg.optimizer, "optimizer")
        schedule, interval, monitor = _schedule(cfg)
        _try(optimizer, scheduler_of(schedule, steps=1000))
        if loss.lr is not None and str(schedule.get("_target_")).endswith("OneCycleLR"):
            raise UserError("loss.u=learned has a learning rate of its own, loss.u_lr, which scheduler=onecycle would overwrite.")
        callbacks, watched = _callbacks(cfg, accelerator)
        monitors = {**_monitors(settings, monitor if schedule else None), **watched}
        _check_metrics(monitors)
        _try_trainer(cfg, dict(options), callbacks, settings)
        backbone = build(cfg.backbone if fresh else {**cfg.backbone, "pretrained": False}, "backbone")
        if fresh and settings.image.size is not None:
            require_features(backbone, settings.image.size, settings.image.size)
        for callback in callbacks:
            if isinstance(callback, Unfreeze):
                callback.check(backbone, settings.max_epochs)
            elif isinstance(callback, StochasticWeightAveraging):
                callback.check(settings.max_epochs)
        for name in ("mean", "std"):
            per_channel(getattr(settings.image, name), getattr(backbone, name), name)
        return cls(backbone, pool, loss, augmentation, optimizer, schedule, interval, monitor, callbacks, monitors)


def _schedule(cfg: DictConfig) -> tuple[dict[str, Any], str, str]:
    schedule = plain(cfg.scheduler)
    interval, monitor = schedule.pop("interval", "epoch"), schedule.pop("monitor", "valid/loss")
    if interval not in ("epoch", "step"):
        raise UserError(f"scheduler.interval={as_typed(interval)}: it is epoch or step.")
    if not isinstance(monitor, str):
        raise UserError(f"scheduler.monitor={as_typed(monitor)}: it is the name of a metric, as valid/loss.")
    if str(schedule.get("_target_")).endswith("ReduceLROnPlateau"):
        if interval == "step":
            raise UserError("scheduler.interval=step: a plateau is seen once an epoch, when there is a metric.")
        schedule.setdefault("mode", mode_of(monitor))
    return schedule, interval, monitor


def _callbacks(cfg: DictConfig, accelerator: dict[str, Any]) -> tuple[list[pl.Callback], dict[str, str]]:
    """The callbacks of the configuration, and the metrics that they watch, by key."""
    callbacks = {str(name): build(node, f"callbacks.{name}") for name, node in cfg.callbacks.items()}
    watched = check_callbacks(callbacks, bool(cfg.logger))
    averaging = [name for name, callback in callbacks.items() if isinstance(callback, WeightAveraging)]
    if len(averaging) > 1:
        raise UserError(f"callbacks: {listed(averaging)} each average the weights; a run has one average. Leave the others out.")
    if on_tpu(accelerator) and averaging:
        raise UserError(
            "callbacks: averaged weights do not work on a TPU (torch_xla loses them). Leave them out: callbacks=none."
        )
    return list(callbacks.values()), watched


def _check_metrics(monitors: Mapping[str, str]) -> None:
    for key, metric in monitors.items():
        if metric != "valid/loss" and not re.fullmatch(rf"valid/[^/]+/({'|'.join(METRICS)})", metric):
            known = [f"valid/macro/{m}" for m in METRICS]
            raise UserError(
                f"{key}={metric}: there is no such metric.{did_you_mean(metric, ['valid/loss', *known])} "
                f"There are: valid/loss, {', '.join(known)}, and for a label valid/<label>/..."
            )


def _monitors(settings: Settings, scheduler: str | None) -> dict[str, str]:
    """Every monitored metric, by the key that names it."""
    early = settings.early_stopping.monitor if settings.early_stopping else None
    keys = {"monitor": settings.monitor, "scheduler.monitor": scheduler, "early_stopping.monitor": early}
    return {key: metric for key, metric in keys.items() if metric is not None}


def scheduler_of(schedule: dict[str, Any], steps: int) -> Any:
    """Optimizer to scheduler, ``auto`` standing for the steps of the whole run; None for none."""
    return build({k: (steps if v == "auto" else v) for k, v in schedule.items()}, "scheduler") if schedule else None


def _try(optimizer: Any, scheduler: Any) -> None:
    """Make optimizer and scheduler for one parameter, so that a wrong value is refused before data is read."""
    made: Any = [torch.nn.Parameter(torch.zeros(1))]
    for where, make in (("optimizer", optimizer), ("scheduler", scheduler)):
        try:
            made = made if make is None else make(made)
        except Exception as error:  # torch looks into what it is given, and meets whatever is there
            given = getattr(make, "keywords", {})
            words = [f"{where}.{k}={v}" for k, v in given.items() if isinstance(v, str) and k != "mode"]
            if words and isinstance(error, TypeError):
                raise UserError(f"{', '.join(words)}: it should be a number.") from None
            values = ", ".join(f"{k}={as_typed(v)}" for k, v in given.items())
            line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            if not isinstance(error, ValueError):
                line = f"a value is of the wrong kind or length: {line}"
            raise UserError(f"{where}: {line} (in {values})") from None


def _try_trainer(cfg: DictConfig, options: dict[str, Any], callbacks: Sequence[pl.Callback], settings: Settings) -> None:
    """Make the Trainer and the loggers once, so that their mistakes are refused before data is read."""
    kept = [*callbacks, *([early_stopping(settings.early_stopping)] if settings.early_stopping else [])]
    names = [*(f"callbacks.{name}" for name in cfg.callbacks), "early_stopping"]
    by_state: dict[str, str] = {}  # Lightning keeps the state of each in checkpoints, by such a text
    for name, callback in zip(names, kept, strict=False):
        if (state := callback.state_key) in by_state and is_overridden("state_dict", callback, pl.Callback):
            raise UserError(f"{name}: {by_state[state]} is the same already. Leave one of them out.")
        by_state[state] = name
    with refusing("accelerator", Exception, end=""):  # Lightning raises several kinds
        pl.Trainer(**options, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for name, node in cfg.logger.items():
        with tempfile.TemporaryDirectory() as folder:
            build({**node, "save_dir": folder}, f"logger.{name}")
