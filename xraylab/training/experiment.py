"""The door: from a composed configuration to typed objects. Nothing behind it sees the configuration."""

from __future__ import annotations

import copy
import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.utilities.model_helpers import is_overridden

from xraylab.config.dataset import find_data, read
from xraylab.config.instantiate import build, plain
from xraylab.config.settings import Evaluate, Settings, check_config, mode_of, sweep_of
from xraylab.data.augmentation import Augmentation
from xraylab.data.cache.build import _slices, with_cache
from xraylab.data.datamodule import ADAPT, StudyDataModule, worker_count
from xraylab.data.datasets.base import Reader
from xraylab.data.splits import assign_splits, hold_back
from xraylab.data.study_table import HELD_BACK, StudyTable
from xraylab.errors import UserError, did_you_mean, listed
from xraylab.evaluation.metrics import METRICS
from xraylab.evaluation.objective import objectives_of
from xraylab.evaluation.predictions import Scoring, read_table, scored_labels
from xraylab.models import MaxProbability, StudyNet
from xraylab.models.losses.base import Loss
from xraylab.models.losses.self_trained import SelfTrained
from xraylab.models.study_net import per_channel
from xraylab.models.trial import lone_norms, require_features
from xraylab.system.command_line import said
from xraylab.system.processes import ALONE, Processes
from xraylab.system.remote import is_url
from xraylab.training.callbacks.stopping import early_stopping
from xraylab.training.callbacks.unfreeze import Unfreeze
from xraylab.training.callbacks.user_callbacks import check_callbacks
from xraylab.training.callbacks.weight_averaging import StochasticWeightAveraging
from xraylab.training.checkpoints import checkpoint_of, require_splits
from xraylab.training.devices import hardware
from xraylab.training.distributed.strategy import trainer_options
from xraylab.training.measured import measured
from xraylab.training.study_module import StudyModule
from xraylab.training.xla import device_options, on_tpu

log = logging.getLogger(__name__)


@dataclass
class Job:
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
    processes: Processes = ALONE

    @property
    def measured(self) -> dict[str, Any]:
        """What it is judged on, see :mod:`xraylab.evaluation.objective`."""
        counts_as = self.settings.evaluate
        return measured(self.table, self.module.loss, Scoring(**counts_as.model_dump()), self.settings.unit)


def assemble(cfg: DictConfig, typed: Sequence[str], fresh: bool = True, processes: Processes = ALONE) -> Job:
    """Check the whole configuration, then build the model, then read the data.

    Args:
        cfg: composed.
        typed: the overrides as typed; what the data or the embedded sample brings does not replace these.
        fresh: a new run; else ``cfg`` is that of an earlier one, whose checkpoint brings the weights.
        processes: among which training is shared out.

    Raises:
        UserError: something in the configuration or the data is wrong.
    """
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    reader, path, embedded = find_data(cfg, typed, fresh)
    settings = check_config(cfg)
    accelerator, precision = hardware(plain(cfg.accelerator), settings.precision, processes)
    static_shapes = bool(accelerator.pop("static_shapes", False))
    if settings.batch_size < processes.world:
        raise UserError(
            f"batch_size={settings.batch_size} is over all {processes.world} processes: give at least {processes.world}, "
            "and less accumulate for the same step; or fewer accelerator.devices."
        )

    torch.manual_seed(settings.seed)
    pool, loss, augmentation = (build(cfg[g], g) for g in ("pool", "loss", "augmentation"))
    optimizer = build(cfg.optimizer, "optimizer")
    schedule = plain(cfg.scheduler)
    interval, monitor = schedule.pop("interval", "epoch"), schedule.pop("monitor", "valid/loss")
    if interval not in ("epoch", "step"):
        raise UserError(f"scheduler.interval={said(interval)}: it is epoch or step.")
    if not isinstance(monitor, str):
        raise UserError(f"scheduler.monitor={said(monitor)}: it is the name of a metric, as valid/loss.")
    if str(schedule.get("_target_")).endswith("ReduceLROnPlateau"):
        if interval == "step":
            raise UserError("scheduler.interval=step: a plateau is seen once an epoch, when there is a metric.")
        schedule.setdefault("mode", mode_of(monitor))
    _try(optimizer, _scheduler(schedule, steps=1000))
    if loss.lr is not None and str(schedule.get("_target_")).endswith("OneCycleLR"):
        raise UserError("loss.u=learned has a learning rate of its own, loss.u_lr, which scheduler=onecycle would overwrite.")
    callbacks = [build(node, f"callbacks.{name}") for name, node in cfg.callbacks.items()]
    watched = check_callbacks(dict(zip(map(str, cfg.callbacks), callbacks, strict=True)), bool(cfg.logger))
    averaging = [name for name, c in zip(cfg.callbacks, callbacks, strict=True) if isinstance(c, WeightAveraging)]
    if len(averaging) > 1:
        raise UserError(f"callbacks: {listed(averaging)} each average the weights; a run has one average. Leave the others out.")
    if on_tpu(accelerator) and averaging:
        raise UserError(
            "callbacks: averaged weights do not work on a TPU (torch_xla loses them). Leave them out: callbacks=none."
        )
    monitors = {**_monitors(settings, monitor if schedule else None), **watched}
    for key, metric in monitors.items():
        if metric != "valid/loss" and not re.fullmatch(rf"valid/[^/]+/({'|'.join(METRICS)})", metric):
            known = [f"valid/macro/{m}" for m in METRICS]
            raise UserError(
                f"{key}={metric}: there is no such metric.{did_you_mean(metric, ['valid/loss', *known])} "
                f"There are: valid/loss, {', '.join(known)}, and for a label valid/<label>/..."
            )
    _try_trainer(cfg, {**device_options(accelerator, precision), **trainer_options(processes)}, callbacks, settings)
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

    if path is None:
        path = reader.embedded(embedded)
    log.info("reading %s", path)
    cfg.dataset.root = reader.root if is_url(reader.root) else str(path.absolute())
    table = split_table(reader, path, settings, loss.held_back)
    if loss.held_back:
        held = table.label_values(table.part(HELD_BACK).index)
        short = [n for n, column in zip(table.labels, held.T, strict=True) if not {0.0, 1.0} <= set(column.tolist())]
        if short:
            log.warning("loss.w=adapted: no certain label of both classes is held back for %s: w stays.", listed(short, 20))
    if fresh and settings.image.size is None:
        require_features(backbone, *_stored_size(table))
    if fresh and isinstance(augmentation, Augmentation):
        sides = (settings.image.size,) * 2 if settings.image.size is not None else _stored_size(table)
        augmentation.require_fit(*sides, table.channels)
    digest = table.split_digest()
    table, packed = with_cache(table, settings, reader.on_error)
    if settings.unit == "image" and not table.views:
        raise UserError(f"unit=image: the images of {table.name} are slices, whose labels are their volume's. Leave unit=study.")
    for split in ("valid", "test"):
        if 0 < len(table.part(split)) < processes.world:
            raise UserError(
                f"{split} has {len(table.part(split))} studies, fewer than the {processes.world} processes: start less."
            )
    _announce(table, settings)
    objectives = objectives_of(sweep_of(plain(cfg.sweep)), settings.monitor) if cfg.get("sweep") else []
    named = [*monitors.items(), *(("sweep.objective", metric) for metric in objectives)]
    _check_labels(table, named, settings.evaluate, settings.selection)
    if table.channels not in (1, backbone.in_chans):
        raise UserError(f"{table.name} has colour images: backbone.in_chans={backbone.in_chans} must be {table.channels}.")
    if loss.exclusive and not table.exclusive:
        raise UserError(f"loss=cross_entropy is for exclusive labels; those of {table.name} are not. Use loss=weighted_bce.")
    if loss.exclusive and isinstance(pool, MaxProbability):
        raise UserError("pool=max_probability: largest probabilities of exclusive classes do not sum to 1. Use mean_probability.")
    if table.exclusive and not loss.exclusive:
        log.warning(
            "%s has %d exclusive classes: trained as labels on their own; loss=cross_entropy treats them as exclusive.",
            table.name, len(table.labels),
        )  # fmt: skip

    groups = table.train_groups
    units, rows, counted = fit_loss(loss, table, settings)
    loss.attach(units, None if (predictions := loss.predictions()) is None else read_table(predictions))
    if isinstance(loss, SelfTrained) and loss.first is not None:
        require_splits(digest, checkpoint_of(loss.first), f"loss.first={loss.first}")
    if loss.balance == "group" and (strange := sorted(set(table.part("valid")["group"]) - set(groups))):
        log.warning("loss.balance=group: valid has groups that train has not, whose studies weigh 1: %s.", listed(strange))
    log.info("loss: %s, counted on %d %s of train", loss.describe(table.labels, groups), len(rows), counted)
    net = StudyNet(
        backbone, pool, loss.outputs(len(table.labels)), settings.head.hidden, settings.head.dropout,
        settings.image.mean, settings.image.std, loss.softmax(len(table.labels)), table.parts,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    if processes.world > 1:
        _announce_batch_norm(net, settings.batch_size, processes.world)
    size, rescale = (None, False) if packed else (settings.image.size, settings.image.rescale)
    data = StudyDataModule(
        table, settings.batch_size, settings.accumulate, size, rescale, augmentation,
        worker_count(settings.num_workers, processes.local_world), settings.seed,
        loss.scored(torch.from_numpy(table.label_values())).numpy(), settings.unit, processes.rank, processes.world,
        static_shapes, settings.image.resize,
    )  # fmt: skip
    steps = -(-data.train_units // (settings.batch_size * settings.accumulate)) * settings.max_epochs
    module = StudyModule(
        net, loss, table.labels, settings.image.model_dump(include={"size", "rescale", "resize"}), optimizer,
        _scheduler(schedule, steps), interval, monitor, settings.seed, table.data, groups, settings.unit, digest,
        settings.evaluate.blank, settings.evaluate.uncertain,
        {"channels": table.channels, "bits": getattr(reader, "bits", None), "views": table.views, **_slices(table)},
    )  # fmt: skip
    return Job(OmegaConf.create(plain(cfg)), settings, table, digest, data, module, callbacks, accelerator, precision, processes)


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


def to_be_measured(cfg: DictConfig, typed: Sequence[str]) -> dict[str, Any]:
    """What the run of a configuration would be judged on, see :mod:`xraylab.evaluation.objective`; nothing but its table is read.

    Raises:
        UserError: something in the configuration or the data is wrong.
    """
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    reader, path, embedded = find_data(cfg, typed, True)
    settings, loss = check_config(cfg), build(cfg.loss, "loss")
    table = split_table(reader, reader.embedded(embedded) if path is None else path, settings, loss.held_back)
    fit_loss(loss, table, settings)
    return measured(table, loss, Scoring(**settings.evaluate.model_dump()), settings.unit)


def split_table(reader: Reader, path: Path, settings: Settings, held_back: float | None) -> StudyTable:
    """A reader's table with its splits.

    Args:
        held_back: the part of train that the loss holds back, if it does.

    Raises:
        UserError: files or rows are wrong, or the splits cannot be made.
    """
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    how = (settings.selection, settings.fold, settings.valid_fraction, seed, settings.split_version)
    table = assign_splits(read(reader, path), *how)
    return hold_back(table, held_back, ADAPT, seed, settings.split_version) if held_back else table


def check_batches(job: Job, fresh: bool) -> None:
    """Refuse batches that batch norm would stop at, in some epoch: one image, of whose channels a layer sees one value.

    Args:
        fresh: a new run; else one that goes on, whose batches are what they are.

    Raises:
        UserError: there are such batches.
    """
    s, backbone = job.settings, job.module.net.backbone
    if not job.data.lone_image(s.max_epochs):
        return
    norms = dict(backbone.named_modules())
    unfreezing = [c for c in job.callbacks if isinstance(c, Unfreeze)]
    frozen = [backbone.before(place) if c.freeze_batch_stats else set() for c in unfreezing for place in c.at.values()]

    def moving(name: str) -> bool:
        return norms[name].training or any(f"{name}.weight" not in names for names in frozen)

    def stops(height: int, width: int) -> list[str]:
        return [name for name in lone_norms(backbone, height, width) if moving(name)]

    height, width = _stored_size(job.table) if s.image.size is None else (s.image.size, s.image.size)
    if not (stopped := stops(height, width)):
        return
    near = sorted(range(1, 2 * s.batch_size + 2), key=lambda size: (abs(size - s.batch_size), size))
    ways = [f"batch_size={b}" for b in near if b >= job.processes.world and not job.data.lone_image(s.max_epochs, b)][:1]
    ways += [f"image.size={size}" for size in (2 * max(height, width),) if not stops(size, size)]
    share = f" over {job.processes.world} processes" if job.processes.world > 1 else ""
    raise UserError(
        f"batch_size={s.batch_size}{share}: with {job.data.train_units} {'images' if s.unit == 'image' else 'studies'} of train "
        f"some batch is one image, which cannot be batch-normalised: of {height}x{width} pixels {stopped[-1]} sees one value a "
        f"channel. {'' if fresh else 'What a run that goes on has in its batches cannot change: begin anew. '}"
        f"Set {' or '.join(ways) or 'a larger batch_size'}."
    )


def _stored_size(table: StudyTable) -> tuple[int, int]:
    """Height and width of the first image that can be looked at, as it is stored.

    Raises:
        UserError: none can.
    """
    failure = UserError(f"{table.name}: not one image can be read. python -m xraylab.check tells more.")
    for images in table.frame["images"]:
        try:
            return table.source.shape(images[0])[1:]
        except UserError as error:
            failure = error
    raise failure


def _announce(table: StudyTable, settings: Settings) -> None:
    lines = [f"data: {table.data}, {len(table.frame)} studies"]
    if table.synthetic:
        lines[0] += " (drawings; results mean nothing for patients)"
    if not table.patients_known:
        lines[0] += "; patients are not known, so splits are disjoint by study and a patient may be in two of them"
    for kind, names in table.problems.items():
        lines.append(f"  skipped: {len(names)} {kind}: {listed(names)}")
    log.info("%s\n%s", "\n".join(lines), table.summary())
    if settings.fold:
        log.info("fold %s: valid is that part of everything but test", settings.fold)


def _monitors(settings: Settings, scheduler: str | None) -> dict[str, str]:
    """Every monitored metric, by the key that names it."""
    early = settings.early_stopping.monitor if settings.early_stopping else None
    keys = {"monitor": settings.monitor, "scheduler.monitor": scheduler, "early_stopping.monitor": early}
    return {key: metric for key, metric in keys.items() if metric is not None}


def _check_labels(table: StudyTable, monitors: Sequence[tuple[str, str]], counts_as: Evaluate, selection: str) -> None:
    """Say where metrics will be undefined; refuse to monitor one that will be, or that does not exist."""
    single = []
    for split in ("valid", "test"):
        values = scored_labels(table.label_values(table.part(split).index), Scoring(**counts_as.model_dump()))
        for i, label in enumerate(table.labels):
            positives, negatives = int((values[:, i] == 1).sum()), int((values[:, i] == 0).sum())
            if len(values) and not (positives and negatives):
                single.append((split, label))
                log.warning(
                    "%s: label %s has %d positive and %d negative studies: its AUROC is undefined.",
                    split,
                    label,
                    positives,
                    negatives,
                )
    for key, metric in monitors:
        split = metric.split("/")[0]
        there = table.part(split)
        if not len(there):
            raise UserError(f"{key}={metric}: there is no {split} (selection={selection}). Choose by valid.")
        known = {"valid/loss"} | {f"{split}/{name}/{m}" for name in (*table.labels, "macro") for m in METRICS}
        scored = ~np.isnan(scored_labels(table.label_values(there.index), Scoring(**counts_as.model_dump())))
        if metric not in known:
            raise UserError(
                f"{key}={metric}: there is no such metric.{did_you_mean(metric, known)} There are: {listed(sorted(known), 30)}."
            )
        if not scored.any():
            raise UserError(
                f"{key}={metric}: undefined in {split}, where no label is scored: all are uncertain or not mentioned. "
                "Say what they count as (evaluate.blank=negative, evaluate.uncertain), or choose another split (seed, fold)."
            )
        labels = [metric.split("/")[1]] if metric.count("/") == 2 else []
        labels = list(table.labels) if labels == ["macro"] else labels
        if labels and all((split, label) in single for label in labels):
            raise UserError(
                f"{key}={metric}: undefined in {split}, where {listed(labels)} has not both classes. "
                "Monitor valid/loss, or choose another split (seed, fold, valid_fraction)."
            )


def _announce_batch_norm(net: StudyNet, batch_size: int, world: int) -> None:
    """Say that statistics are not those of one process, where they are not."""
    if count := sum(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training for m in net.modules()):
        log.warning(
            "batch norm: %d layers take the statistics of each process's part of a batch, %d of %d at most, so the run is not "
            "the one that a single process would be. One process would be; or frozen ones (backbone.trainable_from=<stage>), "
            "or none (of backbone=cnn: backbone.batch_norm=false).",
            count, -(-batch_size // world), batch_size,
        )  # fmt: skip


def _scheduler(schedule: dict[str, Any], steps: int) -> Any:
    """Optimizer to scheduler, ``auto`` standing for the steps of the whole run; None for none."""
    return build({k: (steps if v == "auto" else v) for k, v in schedule.items()}, "scheduler") if schedule else None


def _try(optimizer: Any, scheduler: Any) -> None:
    """Make both for one parameter, so that a wrong value is refused before data is read."""
    made, where = None, "optimizer"
    try:
        made = optimizer([torch.nn.Parameter(torch.zeros(1))])
        where = "scheduler"
        if scheduler is not None:
            scheduler(made)
    except Exception as error:  # torch looks into what it is given, and meets whatever is there
        wrong = {"optimizer": optimizer, "scheduler": scheduler}[where]
        words = [f"{where}.{k}={v}" for k, v in getattr(wrong, "keywords", {}).items() if isinstance(v, str) and k != "mode"]
        if words and isinstance(error, TypeError):
            raise UserError(f"{', '.join(words)}: it should be a number.") from None
        values = ", ".join(f"{k}={said(v)}" for k, v in getattr(wrong, "keywords", {}).items())
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
    try:
        pl.Trainer(**options, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except Exception as error:  # Lightning raises several kinds
        raise UserError(f"accelerator: {str(error).splitlines()[0]}") from None
    for name, node in cfg.logger.items():
        with tempfile.TemporaryDirectory() as folder:
            build({**node, "save_dir": folder}, f"logger.{name}")
