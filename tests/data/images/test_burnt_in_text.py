"""Text in pictures: words are found where they were written, in any font, size and tone; markers, ribs and noise are none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from xraylab.data.images.burnt_in_text import text_lines

FONTS = {"simplex": cv2.FONT_HERSHEY_SIMPLEX, "duplex": cv2.FONT_HERSHEY_DUPLEX, "plain": cv2.FONT_HERSHEY_PLAIN}


def film(height: int = 400, width: int = 500, seed: int = 0) -> np.ndarray:
    """uint8 (H,W): a smooth body with a border, and grain."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(30, 190, (6, 7)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 3, (height, width)), 0, 255).astype(np.uint8)


def written(picture: np.ndarray, words: str, at: tuple[int, int], scale: float, value: int = 255, font: str = "simplex"):
    """The same with words, and the box (x, y, x2, y2) that they were written into."""
    thick = max(1, round(1.5 * scale))
    (width, height), _ = cv2.getTextSize(words, FONTS[font], scale, thick)
    drawn = cv2.putText(picture.copy(), words, at, FONTS[font], scale, value, thick, cv2.LINE_AA)
    return drawn, (at[0], at[1] - height, at[0] + width, at[1])


def outside(lines, box: tuple[int, int, int, int], by: int) -> list:
    """Lines that reach out of a box by more than so many pixels."""
    left, top, right, bottom = box
    return [
        of for of in lines
        if min(of.x - left, of.y - top, right - of.x - of.width, bottom - of.y - of.height) < -by
    ]  # fmt: skip


@pytest.mark.parametrize("font", FONTS)
@pytest.mark.parametrize("scale", [0.4, 0.7])
@pytest.mark.parametrize("words", ["JOHN DOE", "PORTABLE", "1961-07-04"])
def test_words_are_found_where_they_are(words, scale, font):
    picture, box = written(film(), words, (40, 300), scale * (1.6 if font == "plain" else 1), font=font)
    lines = text_lines(picture)
    assert lines
    assert not outside(lines, box, 6)
    assert sum(line.width for line in lines) > 0.4 * (box[2] - box[0])


def test_dark_words_on_a_bright_picture_and_words_in_colour_are_found():
    bright = np.full((300, 400), 230, np.uint8)
    assert text_lines(written(bright, "MARY MAJOR", (30, 60), 0.6, value=0)[0])
    colour = np.repeat(film()[..., None], 3, axis=-1)
    assert text_lines(cv2.putText(colour, "MARY MAJOR", (30, 60), FONTS["simplex"], 0.6, (255, 255, 90), 1, cv2.LINE_AA))


def test_a_large_picture_is_looked_at_smaller_and_its_lines_lie_where_they_are():
    picture, box = written(film(2000, 2400), "JOHN DOE 12345", (300, 1500), 2.0)
    lines = text_lines(picture)
    assert lines
    assert not outside(lines, box, 25)


def test_what_is_no_text_is_not_found():
    ribs, grid = film(seed=1), film(seed=2)
    for y in range(40, 360, 30):
        cv2.ellipse(ribs, (250, y + 100), (200, 60), 0, 200, 340, 200, 6)
    grid[::25] = 255
    grid[:, ::25] = 255
    marker = cv2.arrowedLine(written(film(seed=3), "L", (440, 50), 1.2)[0], (60, 200), (60, 140), 255, 4)
    noise = np.random.default_rng(0).integers(0, 256, (400, 500)).astype(np.uint8)
    for name, picture in {"film": film(), "ribs": ribs, "grid": grid, "marker": marker, "noise": noise}.items():
        assert text_lines(picture) == [], name
    for value in (0, 128, 255):
        assert text_lines(np.full((64, 64), value, np.uint8)) == []
    assert text_lines(np.zeros((1, 1), np.uint8)) == []


def test_few_films_without_text_are_taken_for_some():
    assert sum(bool(text_lines(film(seed=seed))) for seed in range(60)) <= 1
