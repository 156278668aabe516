"""Preprocessing as tensor operations of dynamic sizes: what :func:`xraylab.data.preprocessing.prepare` does, in a graph.

OpenCV's two ways of resizing are linear in the pixels and work on each axis, so each is a matrix of weights from either side,
built here from the sizes as OpenCV builds its tables: averages over areas in 32 bits, with its whole-number factors summed before
they are divided; cubic interpolation by a = -0.75, with the border repeated. Averages of few pixels are often halves, which the
order of their sums in 32 bits decides: they are summed as OpenCV sums them. Other sums are in 64 bits, so a value within 1e-5 of
the middle between two grey levels may fall to the other one.

Shapes: N images, C channels, height H, width W, and S the size that is asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import torch
from torch import Tensor

from xraylab.data.preprocessing import SHORTER_SIDE

SLIVER = 1e-3  # of a pixel: OpenCV leaves out what a cell covers less of
WHOLE = 2.0**-52  # how near to a whole number a factor is one
STEPS = 2048.0  # a weight's, in fixed point
FEW = 8  # pixels along an axis that an average has at most where it is summed in OpenCV's order


def fixed_point() -> bool:
    """Whether OpenCV here rounds cubic weights to 1/2048: without Intel's library, which does not, as on processors of others.

    The two differ by one grey level in about a twentieth of the pixels of an image that grows.
    """
    return not cv2.ipp.useIPP()


def prepared(images: Tensor, size: int | None, rescale: bool, resize: str, together: bool, steps: bool) -> Tensor:
    """What :func:`xraylab.data.preprocessing.prepare` makes of images.

    Args:
        images: float64 (N,C,H,W), whole numbers from 0 to 255.
        size, rescale, resize: as there.
        together: stretch the range of all images, as of a volume; else of each, as of views.
        steps: see :func:`fixed_point`.

    Returns:
        float64 (N,C,S,S), whole numbers from 0 to 255; (N,C,H,W) where no size is asked for.
    """
    if rescale:
        low, high = (images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True))
        if together:
            low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
        images = ((images - low) * _divided(255.0, (high - low).clamp(min=1.0))).round()
    if size is None:
        return images
    if resize == SHORTER_SIDE:
        height, width = (_length(images, axis) for axis in (2, 3))
        averaged = _averaged(images, size)
        return torch.where(torch.minimum(height, width) > size, averaged, _cubic(images, height, width, size, steps))
    smaller = [_length(images, axis).clamp(max=float(size)) for axis in (2, 3)]
    return _cubic(_averaged(images, size), smaller[0], smaller[1], size, steps)


def _length(images: Tensor, axis: int) -> Tensor:
    """float64 (), of an axis."""
    return torch.full((), images.shape[axis], dtype=torch.float64)


def _divided(number: float, by: Tensor) -> Tensor:
    """A number divided by a tensor; torch's own ``number / tensor`` multiplies by the reciprocal, which is rounded once more."""
    return torch.full_like(by, number) / by


class _Areas(NamedTuple):
    """How an axis is averaged: weights (S,H), the share of a pixel in each place; the first pixel (S,) of each; pixels a place;
    whether these are whole."""

    weights: Tensor
    begin: Tensor
    factor: Tensor
    whole: Tensor


def _areas(images: Tensor, axis: int, size: int) -> _Areas:
    """Of an axis that is larger than ``size``; of another each pixel is its own place, and places behind the last are empty."""
    length = _length(images, axis)
    places = length.clamp(max=float(size))
    factor = _divided(1.0, places / length)
    place = torch.arange(size, dtype=torch.float64)[:, None]
    pixel = torch.arange(images.shape[axis], dtype=torch.float64)[None, :]
    begin = place * factor
    end = begin + factor
    covered = torch.minimum(factor, length - begin)
    covered = torch.where(covered > 0, covered, 1.0)
    last = torch.minimum(end.floor(), length - 1)
    first = torch.minimum(begin.ceil(), last)
    share = torch.where((pixel >= first) & (pixel < last), 1.0, 0.0)
    share = torch.where((first - begin > SLIVER) & (pixel == first - 1), first - begin, share)
    over = torch.minimum((end - last).clamp(max=1.0), covered)
    share = torch.where((end - last > SLIVER) & (pixel == last), over, share)
    share = torch.where(place < places, share / covered, 0.0)
    start = torch.where(first - begin > SLIVER, first - 1, first)[:, 0].long()
    return _Areas(share.float().double(), start, factor, (factor - factor.round()).abs() < WHOLE)


def _averaged(images: Tensor, size: int) -> Tensor:
    """Images as (N,C,S,S), the axes that are larger than S averaged over areas, the others at the beginning of theirs."""
    rows, columns = (_areas(images, axis, size) for axis in (2, 3))
    whole = rows.whole & columns.whole  # then OpenCV adds pixels up, and divides
    of_rows, of_columns = (torch.where(whole, (of.weights > 0).double(), of.weights) for of in (rows, columns))
    sums = (of_rows @ images @ of_columns.T).float()
    few = ~whole & (rows.factor <= FEW - 2) & (columns.factor <= FEW - 2)
    in_order = _in_order(_in_order(images.float(), columns).transpose(2, 3), rows).transpose(2, 3)
    sums = torch.where(few, in_order, sums)
    area = (rows.factor.round() * columns.factor.round()).float()
    halves_up = whole & (rows.factor.round() == 2) & (columns.factor.round() == 2)
    means = sums * torch.where(whole, _divided(1.0, area), 1.0)
    return torch.where(halves_up, (means + 0.5).floor(), means.round()).double()


def _in_order(images: Tensor, areas: _Areas) -> Tensor:
    """Averages (N,C,H,S) along the last axis, summed from pixel to pixel in 32 bits."""
    last, weights = images.shape[3] - 1, areas.weights.float()
    total = torch.zeros_like(images[..., :1])
    for k in range(FEW):
        pixel = areas.begin + k
        at = pixel.clamp(max=last)
        weight = torch.where(pixel <= last, weights.gather(1, at[:, None])[:, 0], 0.0)
        total = total + images[..., at] * weight
    return total


def _cubic(images: Tensor, height: Tensor, width: Tensor, size: int, steps: bool) -> Tensor:
    """Cubic interpolation of the first ``height`` rows and ``width`` columns of images, as (N,C,S,S)."""
    rows, columns = (_taps(images.shape[axis], of, size, steps) for axis, of in ((2, height), (3, width)))
    return (rows @ images @ columns.T).round().clamp(0.0, 255.0)


def _taps(pixels: int, length: Tensor, size: int, steps: bool) -> Tensor:
    """Weights (S, pixels) of the cubic interpolation of so many pixels, of which ``length`` are there."""
    factor = _divided(1.0, _divided(float(size), length))
    middle = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * factor - 0.5
    if steps:
        middle = middle.float()
    before = middle.floor()
    x = middle - before
    a = -0.75
    weights = [
        ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a,
        ((a + 2) * x - (a + 3)) * x * x + 1,
        ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1,
    ]
    weights.append(1 - weights[0] - weights[1] - weights[2])
    if steps:
        weights = [(weight * STEPS).round() / STEPS for weight in weights]
    pixel = torch.arange(pixels, dtype=torch.float64)[None, :]
    out = torch.zeros_like(pixel)
    for k, weight in enumerate(weights):
        at = torch.minimum((before.double() + (k - 1)).clamp(min=0.0), length - 1)
        out = out + torch.where(pixel == at, weight.double(), 0.0)
    return out
