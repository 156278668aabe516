"""Predicting the studies of a table that can be read, and naming what cannot."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xraylab.data.batching import Batch, Draw, StepSampler, StudyDataset
from xraylab.data.datamodule import as_is, reading_context, worker_count
from xraylab.data.preprocessing import prepare
from xraylab.data.study_table import StudyTable
from xraylab.errors import UserError
from xraylab.evaluation.probabilities import require_finite
from xraylab.inference.inputs import FROM_THE_REST, LEFT_OUT, Skipped
from xraylab.models.distribution import described
from xraylab.system.progress import Pace, clock
from xraylab.system.signals import keep_from
from xraylab.training.callbacks.progress_bar import RunningLoss, StudyProgress
from xraylab.training.study_module import StudyModule
from xraylab.training.xla import device_options

log = logging.getLogger(__name__)


class View(NamedTuple):
    """An image that was read, by its study and place."""

    row: int  # of its study
    image: str
    place: str  # in a file of several images, as ``#2``


class _Read(NamedTuple):
    """What could be read of a draw: a batch of every size of images, and what is missing, by row."""

    batches: tuple[Batch, ...]
    views: tuple[View, ...]  # the images of the batches, where those are asked for
    skipped: tuple[tuple[int, str, str, str], ...]
    ids: tuple[str, ...]


class _Tolerant(Dataset[_Read]):
    """A dataset that goes on without what cannot be read, and names it; and the images that are read, if ``views``."""

    def __init__(self, studies: StudyDataset, views: bool) -> None:
        self.studies, self.views = studies, views

    def __getitem__(self, draw: Draw) -> _Read:
        by_shape: dict[tuple[int, ...], list[tuple[int, list[np.ndarray]]]] = defaultdict(list)
        skipped: list[tuple[int, str, str, str]] = []
        views: dict[int, Sequence[View]] = {}
        for row in draw.rows:
            bags, left, faults = self._read(row)
            if bags is not None:
                by_shape[bags[0].shape[1:]].append((row, bags))
                views[row] = self._views(row, left, len(bags[0])) if self.views else ()
            became = LEFT_OUT if bags is None else FROM_THE_REST
            skipped += [(row, image, reason, became) for image, reason in faults]
        batches = [self.studies.batch([r for r, _ in part], [b for _, b in part], 0.0) for part in by_shape.values()]
        read = tuple(view for part in by_shape.values() for row, _ in part for view in views[row])
        return _Read(tuple(batches), read, tuple(skipped), tuple(self.studies.ids[draw.rows]))

    def _views(self, row: int, images: Sequence[str], count: int) -> list[View]:
        if len(images) == count:
            return [View(row, image, "") for image in images]
        counts = ((image, self.studies.source.shape(image)[0]) for image in images)
        return [View(row, image, f"#{k + 1}" if n > 1 else "") for image, n in counts for k in range(n)]

    def _read(self, row: int) -> tuple[list[np.ndarray] | None, Sequence[str], list[tuple[str, str]]]:
        """A study's prepared images, or None; the files they are of; and files with the reason why they are not among them."""
        of, parts = self.studies.images[row], self.studies.parts
        try:
            return self.studies.read(row), of, []
        except UserError as error:
            whole = _reason("", error)
        faults, left = [], []
        for image in of:
            try:
                prepare(self.studies.source.read([image]), self.studies.size, self.studies.rescale, self.studies.resize)
                left.append(image)
            except UserError as error:
                faults.append((image, _reason(image, error)))
        if not faults:
            return None, [], [("", whole)]
        kept = {self.studies.part_of[row][of.index(image)] for image in left} if parts else set()
        try:
            return (self.studies.prepared(row, left) if left and kept == set(parts) else None), left, faults
        except UserError as error:
            return None, [], [*faults, ("", _reason("", error))]


def _reason(image: str, error: UserError) -> str:
    """An error in a few words, without the file's name."""
    return str(error).splitlines()[0].removeprefix(f"{image}: ").partition(". ")[0].rstrip(".")


class _Predictor(pl.LightningModule):
    """Predicts what was read: rows (B,), the network's outputs, those of views and which these are; what was not; and how far
    each study is from those of training (B,), where that is known."""

    def __init__(self, module: StudyModule) -> None:
        super().__init__()
        self.module = module

    def predict_step(
        self, read: _Read, batch_idx: int = 0
    ) -> tuple[list[Tensor], list[Tensor], list[Any], Any, Any, list[Tensor]]:  # fmt: skip
        found = self.module.distribution
        done, far = [], []
        with nullcontext() if found is None else described(self.module.net.backbone, found.layer) as seen:
            for batch in read.batches:
                done.append(self.module.predict_step(batch))
                if found is not None and seen is not None and seen.images is not None:
                    study = batch.study[: batch.real].cpu() // max(len(self.module.net.parts), 1)
                    far.append(by_study(found.distance(seen.images[: batch.real]), study, len(batch.rows)))
        views = [(by_image, real) for *_, real, _, by_image in done]
        return [d[0] for d in done], [d[4] for d in done], views, read.views, read.skipped, far


def by_study(values: Tensor, study: Tensor, studies: int) -> Tensor:
    """Means over each study's images, float64 (B,), of values (I,)."""
    total = torch.zeros(studies, dtype=torch.float64).index_add_(0, study, values.double())
    return total / torch.bincount(study, minlength=studies).clamp_min(1)


class _Log(pl.Callback):
    """How far it is, every few seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.pace = total, 0, Pace(total)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.done += len(batch.ids)
        if due := self.pace.due(self.done):
            rate, left = due[0], clock(due[1])
            log.info("predicting: %s of %s studies, %.1f a second, %s to go", f"{self.done:,}", f"{self.total:,}", rate, left)


def predict_rows(
    module: StudyModule, table: StudyTable, rows: np.ndarray, batch_size: int, accelerator: dict[str, Any], precision: str,
    workers: int | str,
) -> tuple[np.ndarray, np.ndarray, list[View], np.ndarray, list[Skipped], np.ndarray]:  # fmt: skip
    """Predict rows of a table.

    Returns:
        Rows that could be read (N,), in order; their logits (N,L); of a table some of whose studies have several views,
        these, and theirs (I,L); what could not be read; and how far each study is from those of training (N,), NaN: not known.

    Raises:
        UserError: logits are not numbers.
    """
    accelerator = dict(accelerator)
    static_shapes = bool(accelerator.pop("static_shapes", False))
    dataset = StudyDataset(table, **module.preprocessing, static_shapes=static_shapes)
    readers = worker_count(workers) if len(rows) > 2 * batch_size else 0
    loader = DataLoader(
        _Tolerant(dataset, table.many_views),
        sampler=StepSampler(rows, np.zeros(len(rows)), batch_size),
        batch_size=None,  # the sampler draws whole batches and the dataset packs them
        collate_fn=as_is,
        num_workers=readers,
        multiprocessing_context=reading_context(readers),
        pin_memory=torch.cuda.is_available(),
    )
    trainer = pl.Trainer(
        **device_options(accelerator, precision), logger=False,
        callbacks=[StudyProgress(RunningLoss(1)), _Log(len(rows))],
        enable_checkpointing=False,
    )  # fmt: skip
    outputs: Any = keep_from(trainer).predict(_Predictor(module), loader) or []
    ids = table.frame["id"].tolist()
    found, outputs_of, by_view, views, unread, far = ([part for output in outputs for part in output[k]] for k in range(6))
    skipped = [Skipped(ids[row], *rest) for row, *rest in unread]
    if not found:
        none = np.zeros((0, len(table.labels)))
        return np.zeros(0, np.int64), none, [], none, skipped, np.zeros(0)
    order = torch.cat(found).cpu().numpy()
    logits = module.log_odds(torch.cat(outputs_of))
    by_image = module.log_odds(torch.cat([part[:real] for part, real in by_view]))
    require_finite(logits, "input")
    places, of = np.argsort(order, kind="stable"), np.argsort([view.row for view in views], kind="stable")
    distances = torch.cat(far).numpy() if far else np.full(len(order), np.nan)
    return order[places], logits[places], [views[k] for k in of], by_image[of], skipped, distances[places]
