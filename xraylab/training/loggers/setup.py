"""Loggers made from a configuration, and told which run they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from xraylab.config.instantiate import build
from xraylab.training.checkpoints import read_checkpoint
from xraylab.training.loggers.record import group_of, tags_of
from xraylab.training.loggers.tensorboard import TensorBoard
from xraylab.training.loggers.wandb import Wandb

if TYPE_CHECKING:
    from xraylab.training.experiment import Experiment


def make_loggers(cfg: DictConfig, directory: Path) -> list[Logger]:
    """The loggers of a configuration, which write into the run's directory unless told otherwise.

    Raises:
        UserError: a wrong argument or value.
    """
    nodes = cfg.logger.items()
    return [build({**node, "save_dir": node.get("save_dir") or str(directory)}, f"logger.{name}") for name, node in nodes]


def introduce(loggers: Sequence[Logger], experiment: Experiment, directory: Path, checkpoint: Path | None = None) -> None:
    """Tell loggers which run they are of, and where it goes on, before anything is logged.

    Args:
        checkpoint: to go on from.
    """
    backbone = experiment.module.net.backbone.hparams.get("name", type(experiment.module.net.backbone).__name__)
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.of_run(
                directory, "train", group_of(directory), tags_of(experiment.table.data, experiment.table.name, backbone)
            )
        elif isinstance(logger, TensorBoard):  # a run killed before its first checkpoint begins again in place
            logger.resume_after(int(read_checkpoint(checkpoint)["global_step"]) if checkpoint else 0)
