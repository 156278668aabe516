"""Augmentation by albumentations, each draw seeded by (seed, epoch, study, image)."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from xraylab.errors import UserError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for a newer version at import

import albumentations as A


class Augmentation:
    """A pipeline of albumentations transforms.

    Args:
        transforms: albumentations transforms, applied in order.
        per: ``study`` - one draw for all images of a study (slices of one volume); ``image`` - a draw each (views).
    """

    def __init__(self, transforms: Sequence[Any] = (), per: Literal["study", "image"] = "study") -> None:
        if per not in ("study", "image"):
            raise UserError(f"augmentation.per={per}: it is study or image.")
        self.per = per
        self._pipeline = A.Compose(list(transforms)) if len(transforms) else None

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
            self._pipeline.set_random_seed(_draw_seed(seed, epoch, study, 0))
            return np.asarray(self._pipeline(images=images)["images"])
        out = []
        for i, image in enumerate(images, start=first):
            self._pipeline.set_random_seed(_draw_seed(seed, epoch, study, i))
            out.append(self._pipeline(image=image)["image"])
        return np.stack(out)


def _draw_seed(seed: int, epoch: int, study: str, image: int) -> int:
    state = np.random.SeedSequence([seed, epoch, zlib.crc32(study.encode()), image])
    return int(state.generate_state(1)[0])
