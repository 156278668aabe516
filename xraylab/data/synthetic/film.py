"""A film: shapes drawn in shares of a picture, and how it is exposed."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

Grid = Any  # float32 (H,W)


def ramp(distance: Grid, width: float) -> Grid:
    """0 outside to 1 inside over ``width``, by the distance inwards."""
    return np.clip(0.5 + distance / width, 0, 1)


class Film:
    """A picture of density, and its grid of body coordinates: from -0.5 to 0.5, x to the right, y downwards."""

    def __init__(self, view: str, size: int, rng: np.random.Generator) -> None:
        longest = int(rng.integers(size, round(1.3 * size) + 1))
        shortest = round(longest * rng.uniform(0.78, 0.98))
        self.width, self.height = (shortest, longest) if view == "lateral" or rng.random() < 0.6 else (longest, shortest)
        angle = math.radians(np.clip(rng.normal(0, 3 if view == "ap" else 1.7), -7, 7))
        zoom = rng.uniform(0.94, 1.1) * np.array((self.width, self.height))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * zoom[:, None]
        shift = np.array((self.width, self.height)) * (0.5 + rng.uniform(-0.03, 0.03, 2))
        self.turn, self.shift, self.unit = turn, shift, float(zoom.mean())
        pixels = np.stack(np.meshgrid(np.arange(self.width), np.arange(self.height)), -1) - shift
        body = (pixels @ np.linalg.inv(turn).T).astype(np.float32)
        self.x, self.y = body[..., 0], body[..., 1]
        self.density: Grid = np.zeros((self.height, self.width), np.float32)

    def oval(self, x: float, y: float, rx: float, ry: float, edge: float = 0.1, angle: float = 0.0) -> Grid:
        """1 within an ellipse, 0 outside; ``edge``: as a share of the radius."""
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        dx, dy = self.x - x, self.y - y
        return ramp(1 - np.hypot((dx * cos + dy * sin) / rx, (dy * cos - dx * sin) / ry), edge)

    def glow(self, x: float, y: float, rx: float, ry: float) -> Grid:
        """1 at a point, falling off as a bell does."""
        return np.exp(-(((self.x - x) / rx) ** 2) - ((self.y - y) / ry) ** 2)

    def strokes(self, lines: list[tuple[np.ndarray, float]], soft: float = 0.004) -> Grid:
        """1 on lines, points (n,2) and a width each, in body coordinates; blurred by ``soft``."""
        canvas: Any = np.zeros((self.height, self.width), np.uint8)
        for points, width in lines:
            pixels = np.round((np.asarray(points) @ self.turn.T + self.shift) * 16).astype(np.int32)
            thick = width * self.unit
            value = int(255 * min(1.0, thick))
            cv2.polylines(canvas, [pixels], False, value, max(1, round(thick)), cv2.LINE_AA, 4)
        return cv2.GaussianBlur(canvas, (0, 0), max(0.3, soft * self.unit)).astype(np.float32) / 255


def expose(film: Film, rng: np.random.Generator) -> np.ndarray:
    """Blur, contrast, uneven light, mean, borders, side marker and noise; uint8 (H,W)."""
    height, width = film.height, film.width
    longest = max(width, height)
    picture: Any = cv2.GaussianBlur(film.density, (0, 0), rng.uniform(0.003, 0.008) * longest)
    picture = np.clip(picture, 0.01, 1.1) ** rng.uniform(0.75, 1.25)
    light: Any = np.add.outer(*(np.linspace(-v, v, 18) for v in rng.uniform(-0.12, 0.12, 2))) + rng.normal(1, 0.03, (18, 18))
    picture = picture * cv2.resize(light.astype(np.float32), (width, height))
    picture = (picture - picture.mean()) / picture.std() * rng.uniform(0.16, 0.23) + rng.uniform(0.4, 0.58)
    if rng.random() < 0.4:  # collimated
        edges = np.round(rng.uniform(0, 0.04, 4) * longest).astype(int)
        frame = np.ones((height, width), bool)
        frame[edges[0] : height - edges[1], edges[2] : width - edges[3]] = False
        picture[frame] = rng.choice((0.0, 0.05, 0.9))
    if rng.random() < 0.8:
        tall, x = longest * rng.uniform(0.05, 0.08), rng.choice((0.04, 0.9)) * width
        at = (round(x), round(rng.uniform(0.09, 0.2) * height))
        stamp: Any = np.zeros((height, width), np.uint8)
        letter = str(rng.choice(("L", "R")))
        cv2.putText(stamp, letter, at, cv2.FONT_HERSHEY_SIMPLEX, tall / 22, 255, 1 + longest // 160, cv2.LINE_AA)
        picture = np.maximum(picture, stamp / 255 * rng.uniform(0.8, 1.0))
    picture = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0.008, 0.025))
    return np.clip(picture * 255, 0, 255).astype(np.uint8)
