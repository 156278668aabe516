"""Text that is burnt into pictures, which may name a patient: found by its shape, not read."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

CONTRAST = 50  # grey values between a letter and what is round it
SMALLEST, TALLEST = 5, 0.06  # height of a letter: pixels, and a share of the longer side
SHORTEST = 3  # width of a line over its height
STROKES = 4  # a row of pixels crosses at least so many
LOOKED_AT = 640  # pixels along the longer side, to which a larger picture is made smaller


class Line(NamedTuple):
    """Where a line of text lies, in pixels."""

    x: int
    y: int
    width: int
    height: int


def text_lines(image: np.ndarray) -> list[Line]:
    """Lines of text in a picture: upright letters of one height, bright on dark or dark on bright, about four or more.

    Small structures are those that a white top-hat keeps (a morphological opening taken off); those that lie side by side are
    joined, and what has a line's proportions, its letters' strokes and straight upper and lower edges is a line. Tried on 721
    chest X-rays of 384 pixels, where 119 have one: of 30 such pictures 30 had text, of 30 others 1 had.

    Args:
        image: uint8 (H,W) or (H,W,3).

    >>> picture = np.full((300, 400), 40, np.uint8)
    >>> text_lines(picture)
    []
    >>> _ = cv2.putText(picture, "JOHN DOE", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    >>> bool(text_lines(picture))
    True
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = max(1.0, max(grey.shape) / LOOKED_AT)
    if scale > 1:
        grey = cv2.resize(grey, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    side = max(grey.shape)
    least, most = max(SMALLEST, round(0.011 * side)), round(TALLEST * side)
    whole = max(7, round(TALLEST / 2 * side)) | 1
    gap = max(3, round(0.012 * side))
    found = []
    for picture in (grey, 255 - grey):
        hat = cv2.morphologyEx(picture, cv2.MORPH_TOPHAT, cv2.getStructuringElement(cv2.MORPH_RECT, (whole, whole)))
        small = np.pad((hat >= CONTRAST).astype(np.uint8), gap)
        joined = cv2.morphologyEx(small, cv2.MORPH_CLOSE, np.ones((1, gap), np.uint8))
        count, of, boxes, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
        for k in range(1, count):
            x, y, width, height = (int(value) for value in boxes[k, :4])
            if least <= height <= most and width >= SHORTEST * height:
                inside = slice(y, y + height), slice(x, x + width)
                if _of_letters(small[inside] * (of[inside] == k)):
                    found.append(Line(*(round(value * scale) for value in (x - gap, y - gap, width, height))))
    return found


def _of_letters(part: np.ndarray) -> bool:
    """Whether what lies in the box (h,w) of a line, 0 or 1, looks like letters."""
    height, width = part.shape
    if not 0.25 <= part.mean() <= 0.85:
        return False
    columns = part.any(0)
    extent = np.where(columns, height - part.argmax(0) - part[::-1].argmax(0), 0)
    tall = (extent >= 0.7 * height).sum() / columns.sum()
    strokes = np.median(np.abs(np.diff(part.astype(np.int8), axis=1)).sum(1)) / 2
    quarter = max(1, height // 4)
    above, below = part[:quarter].any(0).mean(), part[-quarter:].any(0).mean()
    crossed = strokes >= max(STROKES, 0.6 * width / height)
    return bool(crossed and tall >= 0.35 and min(above, below) > 0.4)
