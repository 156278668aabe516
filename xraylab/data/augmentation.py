"""Augmentation by albumentations, each draw seeded by (seed, epoch, study, image)."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from xraylab.errors import UserError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for a newer version at import

import albumentations as A


class Augmentation:
    """A pipeline of albumentations transforms.

    Every transform draws from a stream of its own, so what one draws says nothing of what another draws, and a transform
    that is added at the end changes nothing before it.

    Args:
        transforms: albumentations transforms, applied in order; they may hold others, as ``OneOf`` does.
        per: ``study`` - one draw for all images of a study (slices of one volume); ``image`` - a draw each (views).
    """

    def __init__(self, transforms: Sequence[Any] = (), per: Literal["study", "image"] = "study") -> None:
        if per not in ("study", "image"):
            raise UserError(f"augmentation.per={per}: it is study or image.")
        self.per = per
        self._pipeline = A.Compose(list(transforms)) if len(transforms) else None
        self._drawing = list(_nodes(self._pipeline)) if self._pipeline else []

    def __call__(self, images: np.ndarray, seed: int, epoch: int, study: str, first: int = 0) -> np.ndarray:
        """Augmented images, the same for the same (seed, epoch, study, image) in any process.

        Args:
            images: uint8 (N,H,W) or (N,H,W,3).
            first: place of the first of them in the study.

        Returns:
            uint8, of the same shape.
        """
        if self._pipeline is None:
            return images
        if self.per == "study":
            self._seed(seed, epoch, study, 0)
            return np.asarray(self._pipeline(images=images)["images"])
        out = []
        for i, image in enumerate(images, start=first):
            self._seed(seed, epoch, study, i)
            out.append(self._pipeline(image=image)["image"])
        return np.stack(out)

    def _seed(self, seed: int, epoch: int, study: str, image: int) -> None:
        # not by Compose.set_random_seed, which gives all transforms the same numbers (albumentations 2.0.8)
        root = np.random.SeedSequence([seed, epoch, zlib.crc32(study.encode()), image])
        for node, own in zip(self._drawing, root.spawn(len(self._drawing)), strict=True):
            node.set_random_state(np.random.default_rng(own), random.Random(int(own.generate_state(1, np.uint64)[0])))


def _nodes(transform: Any) -> Iterator[Any]:
    """A transform and all that it holds, itself first: setting its state sets theirs too."""
    yield transform
    for inner in getattr(transform, "transforms", ()):
        yield from _nodes(inner)
