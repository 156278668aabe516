"""The data module: loaders over a study table."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from xraylab.data.augmentation import Augmentation
from xraylab.data.batching import Batch, StepSampler, StudyDataset
from xraylab.data.preprocessing import EACH_AXIS
from xraylab.data.study_table import HELD_BACK, SPLITS, StudyTable
from xraylab.system.processes import cores

ADAPT = 2048  # studies that a loss adapts by, at most: held back, and of train


def as_is(packed: Any) -> Any:
    """The batch itself, for a loader whose dataset has packed it; of the module, so that workers can import it."""
    return packed


class StudyDataModule(pl.LightningDataModule):
    """Lightning data module over a study table: train, validation and test loaders of packed batches.

    Args:
        table: with its splits assigned.
        batch_size: studies, or images where those are the unit, in a batch, over all processes.
        accumulate: batches in an optimiser step.
        size, rescale, resize: see :func:`xraylab.data.preprocessing.prepare`.
        augmentation: of the training images.
        workers: processes that read; 0 reads in the main process.
        seed: of order and augmentation.
        scored: bool (studies, labels), which labels the loss scores; None: all certain ones.
        unit: ``study`` trains on whole studies, ``image`` on single images with their study's labels. Validation and test read
            whole studies.
        rank, world: of how many processes which this is; it reads its share, see :class:`xraylab.data.batching.StepSampler`.
        static_shapes: see :class:`xraylab.data.batching.StudyDataset`.

    >>> import pandas as pd
    >>> from xraylab.data.images.source import ArraySource
    >>> source = ArraySource({"mine": np.zeros((4, 8, 8), np.uint8)}, volume=False)
    >>> frame = pd.DataFrame({"id": [*"abcd"], "group": "", "split": "train", "acl": [0.0, 1.0, 0.0, 1.0]})
    >>> table = StudyTable(frame.assign(images=[(f"mine:{i}",) for i in range(4)]), ("acl",), source, "mine")
    >>> [batch.images.shape for batch in StudyDataModule(table, batch_size=2).train_dataloader()]
    [torch.Size([2, 1, 8, 8]), torch.Size([2, 1, 8, 8])]
    """

    def __init__(
        self, table: StudyTable, batch_size: int = 1, accumulate: int = 1, size: int | None = None,
        rescale: bool = False, augmentation: Augmentation | None = None, workers: int = 0, seed: int = 0,
        scored: np.ndarray | None = None, unit: str = "study", rank: int = 0, world: int = 1, static_shapes: bool = False,
        resize: str = EACH_AXIS,
    ) -> None:  # fmt: skip
        super().__init__()
        self.table, self.batch_size, self.accumulate, self.workers = table, batch_size, accumulate, workers
        labels = table.label_values()
        counts = ((labels == 0) | (labels == 1) if scored is None else scored).sum(1)
        plain = StudyDataset(table, size, rescale, static_shapes=static_shapes, resize=resize)
        parts = {split: table.part(split).index.to_numpy() for split in (*SPLITS, HELD_BACK)}
        # of every label so many studies where it is uncertain, and not most of them of one label
        rng = np.random.default_rng(seed)
        where = [parts["train"][labels[parts["train"], k] == -1] for k in range(labels.shape[1])]
        each = max(ADAPT // len(where), 1)
        parts["uncertain"] = np.unique(np.concatenate([rng.permutation(rows)[:each] for rows in where]))
        shared: dict[str, Any] = {"rank": rank, "world": world}
        self._plain = {
            # what a loss adapts by, every process sees whole
            name: (StepSampler(rows, counts[rows], batch_size, **(shared if name in SPLITS else {})), plain)
            for name, rows in parts.items()
        }
        if unit == "image":
            counts = np.repeat(counts, table.frame["images"].map(len))
            table = table.by_image()
        rows = table.part("train").index.to_numpy()
        self._train = (
            StepSampler(rows, counts[rows], batch_size, accumulate, True, seed, rank, world),
            StudyDataset(table, size, rescale, augmentation, seed, static_shapes, resize),
        )

    def loader(self, split: str, plain: bool = False, rows: np.ndarray | None = None) -> DataLoader[Batch]:
        """The loader of a split; or of at most ``ADAPT`` studies of train with ``uncertain`` labels, of each label as many.

        Args:
            plain: whole studies in table order and without augmentation, whichever split it is.
            rows: of these rows of the table instead, plain and in one process.
        """
        sampler, dataset = self._train if split == "train" and not plain else self._plain[split]
        if rows is not None:
            sampler = StepSampler(rows, np.zeros(len(rows)), self.batch_size)
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler draws whole batches and the dataset packs them
            collate_fn=as_is,
            num_workers=self.workers,
            multiprocessing_context=reading_context(self.workers),
            worker_init_fn=outlive_signals,
            persistent_workers=self.workers > 0 and split in ("train", "valid"),
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """The loader of train, shuffled and augmented; the order and the pictures depend on seed and epoch alone."""
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """The loader of valid, in table order."""
        return self.loader("valid")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The loader of test, in table order."""
        return self.loader("test")

    predict_dataloader = test_dataloader  # ``loader(split, plain=True)`` has the others

    def lone_image(self, epochs: int, batch_size: int | None = None) -> bool:
        """Whether some training batch of a process is one image, in whole epochs.

        Args:
            batch_size: another than this module's.
        """
        (sampler, dataset), size = self._train, batch_size or self.batch_size
        if sampler.fewest(np.ones(len(sampler.rows), int), size, 1) > 1:
            return False
        studies = (dataset.images[row] for row in sampler.rows)
        counts = [len(s) if self.table.views else sum(dataset.source.shape(image)[0] for image in s) for s in studies]
        return sampler.fewest(np.array(counts), size, epochs) == 1

    @property
    def train_units(self) -> int:
        """Studies, or images, in an epoch."""
        return len(self._train[0].rows)

    def state_dict(self) -> dict[str, Any]:
        """The batches trained on so far: where in which epoch a checkpoint was written."""
        assert self.trainer is not None
        return {"batches": batches_done(self.trainer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after those batches, in the middle of an epoch if need be."""
        sampler = self._train[0]
        sampler.epoch, sampler.skip = divmod(int(state["batches"]), max(len(sampler), 1))


def outlive_signals(worker: int) -> None:
    """Make a worker deaf to any SIGTERM but its parent's. A scheduler sends one to all, and the parent needs one more batch."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def batches_done(trainer: pl.Trainer) -> int:
    """Training batches behind a run, over all its epochs and resumptions."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]


def reading_context(workers: int) -> str | None:
    """The start method of workers: fork where that is usual, also in a process of joblib's, whose own way torch cannot use."""
    return "fork" if workers and sys.platform == "linux" else None


def worker_count(wanted: int | str, processes: int = 1) -> int:
    """The number of workers of one of several processes; ``auto``: one for every two cores of its share, at most 8."""
    if wanted != "auto":
        return int(wanted)
    return min(8, cores() // processes // 2)
