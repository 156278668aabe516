"""Maps as pictures: over the image in its own pixels, and several in one sheet with captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from xraylab.system.files import beside

OPACITY = 0.6  # of a map where it is largest
TILE = 256  # pixels, of a sheet's tile
LINE = 18  # pixels, of a line of text
RING = 0.025  # radius of the ring round the peak, of the shorter side


def overlay(image: np.ndarray, heat: np.ndarray, largest: float, ringed: bool = False) -> np.ndarray:
    """A map over its image.

    Args:
        image: uint8 (H,W) or (H,W,3).
        heat: float (H,W); what is not positive is not shown.
        largest: the value that is shown the strongest, the same for images that are to be compared.
        ringed: draw a ring round the largest value.

    Returns:
        uint8 (H,W,3), RGB.

    >>> overlay(np.full((2, 2), 100, np.uint8), np.zeros((2, 2)), largest=1.0)[0, 0].tolist()  # nothing to show: the image
    [100, 100, 100]
    """
    colour = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    level = np.clip(heat / largest, 0, 1) if largest > 0 else np.zeros(heat.shape)
    heated = cv2.cvtColor(cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    alpha = OPACITY * level[..., None]
    out = np.ascontiguousarray(np.round(colour * (1 - alpha) + heated * alpha).astype(np.uint8))
    if ringed and level.max() > 0:
        y, x = peak_of(heat)
        radius = max(3, round(RING * min(heat.shape)))
        for width, shade in ((3, (0, 0, 0)), (1, (255, 255, 255))):
            cv2.circle(out, (int(x), int(y)), radius, shade, width, cv2.LINE_AA)
    return out


def peak_of(heat: np.ndarray) -> tuple[int, int]:
    """Row and column of the largest value of float (H,W); of several, the nearest to the middle: from the middle of an outermost
    place to the border a map is level.

    >>> peak_of(np.array([[2.0, 2.0, 0.0, 0.0]] * 3))
    (1, 1)
    """
    rows, columns = np.nonzero(heat >= heat.max() - 1e-6 * abs(heat.max()))
    height, width = heat.shape
    nearest = int(np.argmin(np.abs(rows - (height - 1) / 2) / height + np.abs(columns - (width - 1) / 2) / width))
    return int(rows[nearest]), int(columns[nearest])


def sheet(tiles: Sequence[tuple[np.ndarray, str]], head: str, columns: int = 4) -> np.ndarray:
    """Pictures in rows, each with its caption, below a heading.

    Args:
        tiles: uint8 (H,W,3) of any size, and a caption of one line.
        head: lines of text.

    Returns:
        uint8 (height,width,3).
    """
    columns = min(columns, len(tiles))
    lines = head.splitlines()
    rows = -(-len(tiles) // columns)
    font = ImageFont.load_default(13)
    wide = max([columns * TILE, *(round(font.getlength(line)) + 8 for line in lines)])
    canvas = Image.new("RGB", (wide, len(lines) * LINE + 6 + rows * (TILE + LINE + 4)), "white")
    pen = ImageDraw.Draw(canvas)
    for k, line in enumerate(lines):
        pen.text((4, 2 + k * LINE), line, "black", font)
    for k, (picture, caption) in enumerate(tiles):
        left, top = k % columns * TILE, len(lines) * LINE + 6 + k // columns * (TILE + LINE + 4)
        scale = (TILE - 4) / max(picture.shape[:2])
        size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = Image.fromarray(cv2.resize(picture, size, interpolation=how))
        canvas.paste(small, (left + (TILE - small.width) // 2, top + (TILE - small.height) // 2))
        pen.text((left + 4, top + TILE), caption, "black", font)
    return np.asarray(canvas)


def write_png(path: Path, picture: np.ndarray, about: str) -> None:
    """uint8 (H,W,3) as a PNG, as a whole or not at all, whose description says what it is of."""
    text = PngInfo()
    text.add_text("Description", about)
    with beside(path) as partial:
        Image.fromarray(picture).save(partial, format="png", pnginfo=text)
