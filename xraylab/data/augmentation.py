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

TRIALS = 16  # draws of a trial


class Augmentation:
    """Pipeline of albumentations transforms for the training images of a study.

    Every transform draws from a stream of its own, so what one draws says nothing of what another draws, and a transform
    that is added at the end changes nothing before it.

    Args:
        transforms: albumentations transforms, applied in order; they may hold others, as ``OneOf`` does.
        per: ``study`` - one draw for all images of a study (slices of one volume); ``image`` - a draw each (views).

    >>> flip = Augmentation([A.HorizontalFlip(p=1)], per="image")
    >>> flip(np.array([[[0, 1, 2]]], np.uint8), seed=0, epoch=0, study="s1")
    array([[[2, 1, 0]]], dtype=uint8)
    """

    def __init__(self, transforms: Sequence[Any] = (), per: Literal["study", "image"] = "study") -> None:
        if per not in ("study", "image"):
            raise UserError(f"augmentation.per={per}: it is study or image.")
        self.per = per
        self._pipeline: Any = A.Compose(list(transforms)) if len(transforms) else None
        self._drawing = list(_nodes(self._pipeline)) if self._pipeline else []

    def __call__(self, images: np.ndarray, seed: int, epoch: int, study: str, first: int = 0) -> np.ndarray:
        """Augmented images, the same for the same (seed, epoch, study, image) in any process.

        Args:
            images: uint8 (N,H,W) or (N,H,W,3).
            first: place of the first of them in the study.

        Returns:
            uint8, of the same shape.

        Raises:
            UserError: a transform fails, or gives something else.
        """
        if self._pipeline is None:
            return images
        try:
            made = self._made(images, seed, epoch, study, first)
        except MemoryError:
            raise
        except Exception as error:  # of as many kinds as there are transforms
            raise self._fault(images, seed, epoch, study, first) from error
        if made.dtype != np.uint8 or made.shape != images.shape:
            raise self._fault(images, seed, epoch, study, first)
        return made

    def require_fit(self, height: int, width: int, channels: int) -> None:
        """Try the pipeline on blank pictures of this size, in a few draws: what rarely applies may not be among them.

        Raises:
            UserError: a transform fails, or gives something else than uint8 of the same shape.
        """
        blank = np.zeros((2, height, width, channels)[: 4 if channels > 1 else 3], np.uint8)
        for draw in range(TRIALS if self._pipeline else 0):
            self(blank, 0, draw, "")

    def _made(self, images: np.ndarray, seed: int, epoch: int, study: str, first: int) -> np.ndarray:
        if self.per == "study":
            self._seed(seed, epoch, study, 0)
            several = images if len(images) != 2 else images[[0, 1, 1]]  # OpenCV rounds two channels otherwise
            made = self._pipeline(images=several)
            return np.asarray(made["images"])[: len(images)]
        out = []
        for i, image in enumerate(images, start=first):
            self._seed(seed, epoch, study, i)
            out.append(self._pipeline(image=image)["image"])
        return np.stack(out)

    def _fault(self, images: np.ndarray, seed: int, epoch: int, study: str, first: int) -> UserError:
        """The error of a draw that fails, with the transform that is to blame: they are applied one by one."""
        key, whole = ("images", [images]) if self.per == "study" else ("image", list(images))
        for i, made in enumerate(whole, start=first if self.per == "image" else 0):
            shape = made.shape
            self._seed(seed, epoch, study, i)
            for transform in self._pipeline.transforms:
                try:
                    made = np.asarray(transform(**{key: made})[key])
                except Exception as error:  # of as many kinds as there are transforms
                    words = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
                    fault = f"fails for pictures {shape}: {type(error).__name__}: {words}"
                else:
                    if made.dtype == np.uint8 and made.shape == shape:
                        continue
                    fault = f"makes {made.dtype} {made.shape} of uint8 {shape}"
                return _refusal(f"augmentation: {type(transform).__name__} {fault}", self.per)
        return _refusal(
            "augmentation: its transforms together fail, or give something else than uint8 of the same shape", self.per
        )

    def _seed(self, seed: int, epoch: int, study: str, image: int) -> None:
        # not by Compose.set_random_seed, which gives all transforms the same numbers (albumentations 2.0.8)
        root = np.random.SeedSequence([seed, epoch, zlib.crc32(study.encode()), image])
        for node, own in zip(self._drawing, root.spawn(len(self._drawing)), strict=True):
            node.set_random_state(np.random.default_rng(own), random.Random(int(own.generate_state(1, np.uint64)[0])))


def _refusal(words: str, per: str) -> UserError:
    return UserError(
        f"{words} (augmentation.per={per}). Transforms are to give uint8 of the same shape: leave it out, or choose another; "
        "image.size, image.mean and image.std set size and scale."
    )


def _nodes(transform: Any) -> Iterator[Any]:
    """A transform and all that it holds, itself first: setting its state sets theirs too."""
    yield transform
    for inner in getattr(transform, "transforms", ()):
        yield from _nodes(inner)
