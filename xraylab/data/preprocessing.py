"""Preprocessing: from pixels as stored to those that a network sees, by stretching, resizing and packing."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from xraylab.data.images.source import Images
from xraylab.errors import UserError

EACH_AXIS, SHORTER_SIDE = "each_axis", "shorter_side"  # ways to resize, see :func:`prepare`


def prepare(images: Images, size: int | None = None, rescale: bool = False, resize: str = EACH_AXIS) -> np.ndarray:
    """Preprocess images as every network gets them, in training and after.

    Args:
        images: uint8, slices (N,H,W) or (N,H,W,3), or a list of views (H,W) or (H,W,3).
        size: resize to (size, size); None: leave.
        rescale: stretch the range of the volume, or of each view, to 0-255, as Bien et al. 2018 do.
        resize: ``each_axis`` is averaged over areas where it shrinks, by its own factor, and cubic where it grows;
            ``shorter_side``: both are averaged where the shorter shrinks, else both cubic, which aliases an axis that shrinks
            beside one that does not. Models of before ``each_axis`` have it.

    Returns:
        uint8 (N,H',W'[,3]).

    Raises:
        UserError: views of different sizes and no size is set.
    """
    if isinstance(images, list):
        views = [prepare(view[None], size, rescale, resize) for view in images]
        require_one_size(views)
        return np.concatenate(views)
    if rescale:
        low, high = int(images.min()), int(images.max())
        table = np.clip((np.arange(256) - low) * (255 / max(high - low, 1)), 0, 255).round().astype(np.uint8)
        images = np.asarray(table[images])
    if size is not None and images.shape[1:3] != (size, size):
        return np.stack([_resized(image, size, resize) for image in images])
    return images


def _resized(image: np.ndarray, size: int, resize: str) -> np.ndarray:
    height, width = image.shape[:2]
    if resize == SHORTER_SIDE:
        how = cv2.INTER_AREA if min(height, width) > size else cv2.INTER_CUBIC
        return cv2.resize(image, (size, size), interpolation=how)
    if max(height, width) > size:
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    return image if image.shape[:2] == (size, size) else cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)


def pack(bags: Sequence[np.ndarray]) -> Tensor:
    """Bags of uint8 (N,H,W[,3]) one after another as (I,C,H,W).

    Raises:
        UserError: their sizes differ and no size was set.
    """
    require_one_size(bags)
    images = torch.from_numpy(np.ascontiguousarray(np.concatenate(bags) if len(bags) > 1 else bags[0]))
    return images.permute(0, 3, 1, 2) if images.ndim == 4 else images.unsqueeze(1)


def require_one_size(bags: Sequence[np.ndarray]) -> None:
    shapes = sorted({f"{bag.shape[1]}x{bag.shape[2]}" for bag in bags})
    if len(shapes) > 1:
        raise UserError(f"images of different sizes in one batch ({', '.join(shapes)}): set image.size=<pixels>.")


def require_uint8(images: Images) -> Images:
    """Images of one study as a caller gives them; one grey image (H,W) becomes (1,H,W).

    Raises:
        UserError: another shape or dtype; values scaled to 0-1 would give a plausible and wrong answer.
    """
    if isinstance(images, np.ndarray) and images.ndim == 2:
        images = images[None]
    for bag in [view[None] for view in images] if isinstance(images, list) else [images]:
        if bag.dtype != np.uint8 or bag.ndim not in (3, 4) or bag.size == 0 or (bag.ndim == 4 and bag.shape[-1] != 3):
            raise UserError(f"predict: {bag.dtype} {bag.shape} given; uint8 (N,H,W) or (N,H,W,3) on the scale 0-255 is wanted.")
    return images
