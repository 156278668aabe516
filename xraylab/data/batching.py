"""Packed batches of studies: which rows of a table make a step, how they are read, and how they are packed.

Shapes: I images in a batch, B studies, L labels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from xraylab.data.augmentation import Augmentation
from xraylab.data.preprocessing import EACH_AXIS, pack, prepare, require_one_size
from xraylab.data.study_table import StudyTable


class Batch(NamedTuple):
    """Packed studies; images are not padded, but blank ones may fill the batch where shapes have to be static.

    Of B = 0 studies there are the images of one, 0, which nothing is made of.
    """

    images: Tensor  # uint8 (I,C,H,W)
    # int64 (I,), the row 0..B-1 an image belongs to, ascending; of studies of P parts, row * P + part; B, or B * P, of blank ones
    study: Tensor
    labels: Tensor  # float32 (B,L) raw: 1, 0, -1 uncertain, NaN not mentioned
    rows: Tensor  # int64 (B,), rows of the table
    group: Tensor  # int64 (B,), number of the study's group among those of train, -1 for another
    scored: Tensor  # float32 (), labels scored in the whole optimiser step, over all its batches
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    real: int | None = None  # images that are not blank, where the batch is filled


class Draw(NamedTuple):
    """Plan of a batch that is to be read: rows of the table, the epoch (None: no augmentation), the step's scored labels.

    Where a process has no share in a small batch, ``blank`` is read instead of rows, as the images of no study.
    """

    rows: list[int]
    epoch: int | None
    scored: float
    blank: int | None = None


class StepSampler(Sampler[Draw]):
    """Sampler of the batches of an epoch in a seeded order, each knowing the number of scored labels of its optimiser step.

    That number is the loss's denominator, so a step does not depend on how its studies are cut into batches.

    Args:
        rows: rows of the table to draw from.
        scored: labels that the loss scores, for each of those rows.
        batch_size: studies in a batch, over all processes.
        accumulate: batches in an optimiser step.
        shuffle: a new seeded order every epoch; else the given order, without augmentation.
        seed: of the order.
        rank, world: of how many processes which this is. Shuffled, each takes its share of every batch, and where a batch is
            too small for a share a blank one, so that all have as many batches. Else each takes a part of the order.
    """

    def __init__(
        self, rows: Sequence[int] | np.ndarray, scored: Sequence[float] | np.ndarray, batch_size: int, accumulate: int = 1,
        shuffle: bool = False, seed: int = 0, rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        if not shuffle and world > 1:
            part = slice(len(rows) * rank // world, len(rows) * (rank + 1) // world)
            rows, scored, batch_size, rank, world = rows[part], scored[part], -(-batch_size // world), 0, 1
        self.rank, self.world = rank, world
        self.rows, self.scored = np.asarray(rows, np.int64), np.asarray(scored, np.float64)
        self.batch_size, self.accumulate, self.shuffle, self.seed = batch_size, accumulate, shuffle, seed
        self.epoch = 0
        self.skip = 0  # batches of the epoch that a resumed run has behind it

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every training epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in a whole epoch, also where the first are skipped: Lightning counts them as done."""
        return -(-len(self.rows) // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Places in ``rows``, in the order of an epoch."""
        order = np.arange(len(self.rows))
        return np.random.default_rng([self.seed, epoch]).permutation(order) if self.shuffle else order

    def fewest(self, images: np.ndarray, batch_size: int, epochs: int) -> int:
        """The fewest images that a process finds in a batch of that many studies, over whole epochs.

        Args:
            images: (rows,), how many each study has.
        """
        place, fewest = np.arange(len(self.rows)), int(images.sum())
        share = place // batch_size * self.world + place % batch_size % self.world
        for epoch in range(epochs if np.ptp(images) else 1):
            of = images[self.order(epoch)]
            blank = np.repeat(of[::batch_size], self.world)
            found = np.bincount(share, of, len(blank)).astype(int)
            fewest = min(fewest, int(np.where(found, found, blank).min()))
        return fewest

    def __iter__(self) -> Iterator[Draw]:
        order = self.order(self.epoch)
        step = self.batch_size * self.accumulate
        skip, self.skip = self.skip, 0
        for number, start in enumerate(range(0, len(order), self.batch_size)):
            if number < skip:
                continue
            whole = order[start // step * step :][:step]
            batch = order[start : start + self.batch_size]
            rows, scored = self.rows[batch].tolist(), float(self.scored[whole].sum())
            share = rows[self.rank :: self.world]
            yield Draw(share, self.epoch if self.shuffle else None, scored, None if share else rows[0])


class StudyDataset(Dataset[Batch]):
    """Dataset of packed batches: ``dataset[draw]`` reads, prepares, augments and packs one.

    With ``static_shapes`` blank images fill each batch up to a power of two, so that bags of 17 to 61 slices give two shapes
    and not 45: what XLA compiles and CUDA graphs record is of one shape.
    """

    def __init__(
        self, table: StudyTable, size: int | None = None, rescale: bool = False,
        augmentation: Augmentation | None = None, seed: int = 0, static_shapes: bool = False, resize: str = EACH_AXIS,
    ) -> None:  # fmt: skip
        self.static_shapes = static_shapes
        self.source, self.size, self.rescale, self.resize = table.source, size, rescale, resize
        self.augmentation, self.seed = augmentation, seed
        self.ids, self.groups = table.frame["id"].to_numpy(str), table.frame["group"].to_numpy(str)
        self.images = table.frame["images"].tolist()
        self.parts, self.part_of = table.parts, table.frame["parts"].tolist() if table.parts else []
        # where rows are single images, their place in the study, so that an image is drawn alike by either unit
        self.first = table.frame["image"].tolist() if "image" in table.frame else [0] * len(self.ids)
        self.group = torch.from_numpy(table.group_numbers())
        self.labels = torch.from_numpy(table.label_values())

    def __getitem__(self, draw: Draw) -> Batch:
        if draw.blank is not None:
            return self.batch([], [self.read(draw.blank)], draw.scored)
        return self.batch(draw.rows, [self.read(row, draw.epoch) for row in draw.rows], draw.scored)

    def batch(self, of: list[int], studies: Sequence[list[np.ndarray]], scored: float) -> Batch:
        """The batch of some rows of the table, their images as :meth:`read` gives them packed; ``scored`` as in :class:`Draw`."""
        rows, bags = torch.tensor(of, dtype=torch.int64), [bag for study in studies for bag in study]
        counts = [len(bag) for bag in bags]
        real = sum(counts) if self.static_shapes else None
        if real is not None:
            counts.append((1 << (real - 1).bit_length()) - real)
            bags = [*bags, np.zeros((counts[-1], *bags[0].shape[1:]), np.uint8)]
        return Batch(
            images=pack(bags),
            study=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
            labels=self.labels[rows],
            rows=rows,
            group=self.group[rows],
            scored=torch.tensor(scored, dtype=torch.float32),
            ids=tuple(self.ids[of]),
            groups=tuple(self.groups[of]),
            real=real,
        )

    def read(self, row: int, epoch: int | None = None) -> list[np.ndarray]:
        """A study's prepared images, uint8 (N,H,W[,3]), a bag for each part; augmented as in that training epoch, if given.

        Raises:
            UserError: an image cannot be read, or sizes differ and none is set.
        """
        bags = self.prepared(row, self.images[row])
        if epoch is not None and self.augmentation is not None:
            name = str(self.ids[row])
            draws = [f"{name}/{part}" for part in self.parts] or [name]
            bags = [self.augmentation(bag, self.seed, epoch, d, self.first[row]) for bag, d in zip(bags, draws, strict=True)]
        return bags

    def prepared(self, row: int, images: Sequence[str]) -> list[np.ndarray]:
        """As :meth:`read`, of some of the study's references, among which every part has one."""
        of = dict(zip(self.images[row], self.part_of[row], strict=True)) if self.parts else {}
        bags = [[image for image in images if of[image] == part] for part in self.parts] or [list(images)]
        prepared = [prepare(self.source.read(bag), self.size, self.rescale, self.resize) for bag in bags]
        require_one_size(prepared)
        return prepared


def of_images(values: Tensor, study: Tensor) -> Tensor:
    """Values of each image's study, (I,...) of (B,...); of blank images not mentioned (NaN), or -1 of integers."""
    none = values.new_full((1, *values.shape[1:]), float("nan") if values.is_floating_point() else -1)
    return torch.cat([values, none])[study]
