"""Checks of a run's data against its settings, and the log lines about that data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from xraylab.config.settings import Evaluate, Settings
from xraylab.data.study_table import StudyTable
from xraylab.errors import UserError, did_you_mean, listed
from xraylab.evaluation.metrics import METRICS
from xraylab.evaluation.predictions import Scoring, scored_labels
from xraylab.models import MaxProbability, StudyNet
from xraylab.models.trial import lone_norms
from xraylab.training.callbacks.unfreeze import Unfreeze
from xraylab.training.components import Components

if TYPE_CHECKING:
    from xraylab.training.experiment import Experiment

log = logging.getLogger(__name__)


def require_fit(table: StudyTable, parts: Components, settings: Settings, world: int, objectives: Sequence[str] = ()) -> None:
    """Refuse settings that this data cannot have.

    Args:
        world: how many processes share it.
        objectives: of a sweep, metrics.

    Raises:
        UserError: what does not fit, and what would.
    """
    if settings.unit == "image" and not table.views:
        raise UserError(f"unit=image: the images of {table.name} are slices, whose labels are their volume's. Leave unit=study.")
    for split in ("valid", "test"):
        if 0 < len(table.part(split)) < world:
            raise UserError(f"{split} has {len(table.part(split))} studies, fewer than the {world} processes: start less.")
    announce(table, settings)
    named = [*parts.monitors.items(), *(("sweep.objective", metric) for metric in objectives)]
    check_labels(table, named, settings.evaluate, settings.selection)
    if table.channels not in (1, parts.backbone.in_chans):
        raise UserError(f"{table.name} has colour images: backbone.in_chans={parts.backbone.in_chans} must be {table.channels}.")
    if parts.loss.exclusive and not table.exclusive:
        raise UserError(f"loss=cross_entropy is for exclusive labels; those of {table.name} are not. Use loss=weighted_bce.")
    if parts.loss.exclusive and isinstance(parts.pool, MaxProbability):
        raise UserError("pool=max_probability: largest probabilities of exclusive classes do not sum to 1. Use mean_probability.")
    if table.exclusive and not parts.loss.exclusive:
        log.warning(
            "%s has %d exclusive classes: trained as labels on their own; loss=cross_entropy treats them as exclusive.",
            table.name, len(table.labels),
        )  # fmt: skip


def check_batches(experiment: Experiment, fresh: bool) -> None:
    """Refuse batches that batch norm would stop at, in some epoch: one image, of whose channels a layer sees one value.

    Args:
        fresh: a new run; else one that goes on, whose batches are what they are.

    Raises:
        UserError: there are such batches.
    """
    s, backbone, data, world = experiment.settings, experiment.module.net.backbone, experiment.data, experiment.processes.world
    if not data.lone_image(s.max_epochs):
        return
    unfreezing = [c for c in experiment.callbacks if isinstance(c, Unfreeze)]
    frozen = [backbone.before(place) if c.freeze_batch_stats else set() for c in unfreezing for place in c.at.values()]
    fixed = {name for name, norm in backbone.named_modules() if not norm.training and all(f"{name}.weight" in f for f in frozen)}

    def stops(height: int, width: int) -> list[str]:
        return [name for name in lone_norms(backbone, height, width) if name not in fixed]

    height, width = stored_size(experiment.table) if s.image.size is None else (s.image.size, s.image.size)
    if not (stopped := stops(height, width)):
        return
    near = sorted(range(world, 2 * s.batch_size + 2), key=lambda size: (abs(size - s.batch_size), size))
    ways = [f"batch_size={b}" for b in near if not data.lone_image(s.max_epochs, b)][:1]
    larger = 2 * max(height, width)
    ways += [f"image.size={larger}"] if not stops(larger, larger) else []
    share = f" over {world} processes" if world > 1 else ""
    raise UserError(
        f"batch_size={s.batch_size}{share}: with {data.train_units} {'images' if s.unit == 'image' else 'studies'} of train "
        f"some batch is one image, which cannot be batch-normalised: of {height}x{width} pixels {stopped[-1]} sees one value a "
        f"channel. {'' if fresh else 'What a run that goes on has in its batches cannot change: begin anew. '}"
        f"Set {' or '.join(ways) or 'a larger batch_size'}."
    )


def stored_size(table: StudyTable) -> tuple[int, int]:
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


def announce(table: StudyTable, settings: Settings) -> None:
    """Log what the data is: its studies and labels by split, and what was left out."""
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


def check_labels(table: StudyTable, monitors: Sequence[tuple[str, str]], counts_as: Evaluate, selection: str) -> None:
    """Say where metrics will be undefined; refuse to monitor one that will be, or that does not exist."""
    scoring = Scoring(**counts_as.model_dump())
    single = []
    for split in ("valid", "test"):
        values = scored_labels(table.label_values(table.part(split).index), scoring)
        for i, label in enumerate(table.labels):
            positives, negatives = int((values[:, i] == 1).sum()), int((values[:, i] == 0).sum())
            if len(values) and not (positives and negatives):
                single.append((split, label))
                undefined = "%s: label %s has %d positive and %d negative studies: its AUROC is undefined."
                log.warning(undefined, split, label, positives, negatives)
    for key, metric in monitors:
        split = metric.split("/")[0]
        there = table.part(split)
        if not len(there):
            raise UserError(f"{key}={metric}: there is no {split} (selection={selection}). Choose by valid.")
        known = {"valid/loss"} | {f"{split}/{name}/{m}" for name in (*table.labels, "macro") for m in METRICS}
        if metric not in known:
            raise UserError(
                f"{key}={metric}: there is no such metric.{did_you_mean(metric, known)} There are: {listed(sorted(known), 30)}."
            )
        if np.isnan(scored_labels(table.label_values(there.index), scoring)).all():
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


def announce_batch_norm(net: StudyNet, batch_size: int, world: int) -> None:
    """Say that statistics are not those of one process, where they are not."""
    if count := sum(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training for m in net.modules()):
        log.warning(
            "batch norm: %d layers take the statistics of each process's part of a batch, %d of %d at most, so the run is not "
            "the one that a single process would be. One process would be; or frozen ones (backbone.trainable_from=<stage>), "
            "or none (of backbone=cnn: backbone.batch_norm=false).",
            count, -(-batch_size // world), batch_size,
        )  # fmt: skip
