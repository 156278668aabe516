"""An experiment: everything that a run is made of, from its configuration. Nothing behind it sees the configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from xraylab.config.dataset import ResolvedConfig, read
from xraylab.config.instantiate import build, plain
from xraylab.config.settings import Settings, check_config, sweep_of
from xraylab.data.augmentation import Augmentation
from xraylab.data.cache.build import with_cache
from xraylab.data.cache.shard import volumes_of
from xraylab.data.datamodule import ADAPT, StudyDataModule, worker_count
from xraylab.data.datasets.base import DatasetReader
from xraylab.data.images.volumes import VolumeRule
from xraylab.data.pseudonyms import pseudonymised
from xraylab.data.splits import assign_splits, hold_back
from xraylab.data.study_table import HELD_BACK, StudyTable
from xraylab.errors import UserError, listed
from xraylab.evaluation.objective import objectives_of
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.models import StudyNet
from xraylab.models.losses.base import Loss
from xraylab.models.losses.self_trained import SelfTrained
from xraylab.models.trial import require_features
from xraylab.system.processes import SINGLE_PROCESS, Processes
from xraylab.system.remote import is_url
from xraylab.training.checkpoints import checkpoint_of, require_splits
from xraylab.training.components import Components, scheduler_of
from xraylab.training.data_checks import announce_batch_norm, require_fit, stored_size
from xraylab.training.devices import hardware
from xraylab.training.distributed.strategy import trainer_options
from xraylab.training.measured import measured
from xraylab.training.study_module import StudyModule
from xraylab.training.xla import device_options

log = logging.getLogger(__name__)


@dataclass
class Experiment:
    """Everything that a run is made of."""

    config: DictConfig  # as it is in force, resolved, for config.yaml
    settings: Settings
    table: StudyTable
    digest: str  # of the studies and their splits
    data: StudyDataModule
    module: StudyModule
    callbacks: list[pl.Callback]  # beside the trainer's own
    accelerator: dict[str, Any]  # arguments of the Trainer
    precision: str  # of the Trainer
    processes: Processes = SINGLE_PROCESS

    @property
    def measured(self) -> dict[str, Any]:
        """What it is judged on, see :mod:`xraylab.evaluation.objective`."""
        return measured(self.table, self.module.loss, Scoring(**self.settings.evaluate.model_dump()), self.settings.unit)

    @classmethod
    def from_config(cls, resolved: ResolvedConfig, fresh: bool = True, processes: Processes = SINGLE_PROCESS) -> Experiment:
        """Check the whole configuration, then build the model, then read the data.

        Args:
            resolved: the configuration with what its data brings, see :func:`xraylab.config.dataset.resolved`.
            fresh: a new run; else the configuration is that of an earlier one, whose checkpoint brings the weights.
            processes: among which training is shared out.

        Raises:
            UserError: something in the configuration or the data is wrong.
        """
        cfg = resolved.config
        settings = check_config(cfg)
        accelerator, precision = hardware(plain(cfg.accelerator), settings.precision, processes)
        static_shapes = bool(accelerator.pop("static_shapes", False))
        if settings.batch_size < processes.world:
            raise UserError(
                f"batch_size={settings.batch_size} is over all {processes.world} processes: give at least {processes.world}, "
                "and less accumulate for the same step; or fewer accelerator.devices."
            )
        options = {**device_options(accelerator, precision), **trainer_options(processes)}
        parts = Components.of(cfg, settings, fresh, accelerator, options)
        objectives = objectives_of(sweep_of(plain(cfg.sweep)), settings.monitor) if cfg.get("sweep") else []
        table, digest, packed = _data(resolved, settings, parts, fresh)
        require_fit(table, parts, settings, processes.world, objectives)
        _fit_loss_to(parts.loss, table, settings, digest)
        size, rescale = (None, False) if packed else (settings.image.size, settings.image.rescale)
        data = StudyDataModule(
            table, settings.batch_size, settings.accumulate, size, rescale, parts.augmentation,
            worker_count(settings.num_workers, processes.local_world), settings.seed,
            parts.loss.scored(torch.from_numpy(table.label_values())).numpy(), settings.unit, processes.rank, processes.world,
            static_shapes, settings.image.resize,
        )  # fmt: skip
        module = _module(table, parts, settings, data, digest, resolved.reader)
        if processes.world > 1:
            announce_batch_norm(module.net, settings.batch_size, processes.world)
        config = OmegaConf.create(plain(cfg))
        return cls(config, settings, table, digest, data, module, parts.callbacks, accelerator, precision, processes)


def _data(resolved: ResolvedConfig, settings: Settings, parts: Components, fresh: bool) -> tuple[StudyTable, str, bool]:
    """The study table with its splits, their digest, and whether its images are packed; what is read first is checked first."""
    reader, loss = resolved.reader, parts.loss
    path = resolved.data()
    log.info("reading %s", path)
    resolved.config.dataset.root = reader.root if is_url(reader.root) else str(path.absolute())
    table = split_table(reader, path, settings, loss.held_back)
    if loss.held_back:
        held = table.label_values(table.part(HELD_BACK).index)
        short = [n for n, column in zip(table.labels, held.T, strict=True) if not {0.0, 1.0} <= set(column.tolist())]
        if short:
            log.warning("loss.w=adapted: no certain label of both classes is held back for %s: w stays.", listed(short, 20))
    if fresh and settings.image.size is None:
        require_features(parts.backbone, *stored_size(table))
    if fresh and isinstance(parts.augmentation, Augmentation):
        sides = (settings.image.size,) * 2 if settings.image.size is not None else stored_size(table)
        parts.augmentation.require_fit(*sides, table.channels)
    digest = table.split_digest()
    table, packed = with_cache(table, settings, reader.on_error)
    return table, digest, packed


def _fit_loss_to(loss: Loss, table: StudyTable, settings: Settings, digest: str) -> None:
    groups = table.train_groups
    units, rows, counted = fit_loss(loss, table, settings)
    loss.attach(units, None if (predictions := loss.predictions()) is None else PredictionTable.read(predictions).frame)
    if isinstance(loss, SelfTrained) and loss.first is not None:
        require_splits(digest, checkpoint_of(loss.first), f"loss.first={loss.first}")
    if loss.balance == "group" and (strange := sorted(set(table.part("valid")["group"]) - set(groups))):
        log.warning("loss.balance=group: valid has groups that train has not, whose studies weigh 1: %s.", listed(strange))
    log.info("loss: %s, counted on %d %s of train", loss.describe(table.labels, groups), len(rows), counted)


def _module(
    table: StudyTable, parts: Components, settings: Settings, data: StudyDataModule, digest: str, reader: DatasetReader
) -> StudyModule:
    rule: VolumeRule | None = getattr(reader, "rule", None)
    plain_views = rule is None or (table.views and rule == VolumeRule())
    notes = {**volumes_of(table), **({} if rule is None or plain_views else {"rule": rule.saved()})}
    loss, labels = parts.loss, len(table.labels)
    net = StudyNet(
        parts.backbone, parts.pool, loss.outputs(labels), settings.head.hidden, settings.head.dropout,
        settings.image.mean, settings.image.std, loss.softmax(labels), table.parts,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    steps = -(-data.train_units // (settings.batch_size * settings.accumulate)) * settings.max_epochs
    return StudyModule(
        net, loss, table.labels, settings.image.model_dump(include={"size", "rescale", "resize"}), parts.optimizer,
        scheduler_of(parts.schedule, steps), parts.interval, parts.monitor, settings.seed, table.data, table.train_groups,
        settings.unit, digest, settings.evaluate.blank, settings.evaluate.uncertain,
        {"channels": table.channels, "bits": getattr(reader, "bits", None), "views": table.views, **notes},
    )  # fmt: skip


def fit_loss(loss: Loss, table: StudyTable, settings: Settings) -> tuple[StudyTable, pd.Index, str]:
    """Count a loss's balance on train; returns the table of what is trained on, the rows that were counted, and what they are.

    Raises:
        UserError: see :meth:`xraylab.models.losses.base.Loss.fit`.
    """
    groups = table.train_groups
    units = table.by_image() if settings.unit == "image" else table
    rows = units.part("train").index
    counted = "images" if settings.unit == "image" else "studies"
    loss.build(len(table.labels), len(groups))
    loss.fit(units.label_values(rows), table.labels, units.group_numbers()[rows], counted, groups)
    return units, rows, counted


def to_be_measured(resolved: ResolvedConfig) -> dict[str, Any]:
    """What the run of a configuration would be judged on, see :mod:`xraylab.evaluation.objective`; nothing but its table is read.

    Raises:
        UserError: something in the configuration or the data is wrong.
    """
    settings, loss = check_config(resolved.config), build(resolved.config.loss, "loss")
    table = split_table(resolved.reader, resolved.data(), settings, loss.held_back)
    fit_loss(loss, table, settings)
    return measured(table, loss, Scoring(**settings.evaluate.model_dump()), settings.unit)


def split_table(reader: DatasetReader, path: Path, settings: Settings, held_back: float | None) -> StudyTable:
    """A reader's table with its splits.

    Args:
        held_back: the part of train that the loss holds back, if it does.

    Raises:
        UserError: files or rows are wrong, or the splits cannot be made.
    """
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    how = (settings.selection, settings.fold, settings.valid_fraction, seed, settings.split_version)
    table = assign_splits(read(reader, path), *how)
    table = hold_back(table, held_back, ADAPT, seed, settings.split_version) if held_back else table
    return pseudonymised(table, settings.hash_ids) if settings.hash_ids else table  # after the split, which stays what it is
