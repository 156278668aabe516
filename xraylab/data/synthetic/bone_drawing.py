"""Drawings of bones: limbs, their lesions and hardware, and how a film shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

KINDS = {"fracture": 0.5, "plate": 0.2, "rod": 0.15, "pins": 0.15}  # share of each among signs
AIR, FLESH, CORTEX, MARROW, DENSE, THIN, METAL = 8, 44, 64, 40, 170, 16, 255  # bones add up, with what they lie on

ACROSS = np.linspace(-1, 1, 9)
XY = tuple[float, float]
Layer = list[tuple[int, np.ndarray]]  # values and outlines (n,2), each drawn over the one before


@dataclass(frozen=True)
class Sign:
    """The abnormality of a synthetic study: its kind and its place.

    Attributes:
        kind: fracture, plate, rod or pins.
        bone: which of a drawing's long bones, 0 to 1.
        place: where along the part of it that may carry a sign, 0 to 1.
        seed: of its size and details.
    """

    kind: str
    bone: float
    place: float
    seed: int


def draw_sign(rng: np.random.Generator) -> Sign:
    """A sign of any kind at any place."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    return Sign(kind, rng.random(), rng.random(), int(rng.integers(2**31)))


def draw_view(part: str, sign: Sign | None, rng: np.random.Generator) -> np.ndarray:
    """One view.

    Args:
        part: elbow, finger, forearm, hand, humerus, shoulder or wrist.
        sign: what it shows; None: nothing. The rest of the picture is the same with it and without.

    Returns:
        uint8 (H,W), the longer side 160-224.
    """
    plan = _Plan()
    DRAW[part](plan, rng)
    matrix, width, height = _draw_pose(part, rng)

    def drawn(layer: Layer) -> Any:
        canvas: Any = np.zeros((height, width), np.uint8)
        for value, outline in layer:
            pixels = (outline @ matrix[:, :2].T + matrix[:, 2]) * 16  # four binary places, as shift=4 reads them
            cv2.fillPoly(canvas, [pixels.astype(np.int32)], value, cv2.LINE_AA, 4)
        return canvas

    canvas = cv2.GaussianBlur(drawn(plan.flesh), (0, 0), 0.016 * max(width, height)) + np.uint8(AIR)
    carriers = [bone for bone in plan.bones if bone.span]
    carrier = carriers[int(sign.bone * len(carriers))] if sign else None
    for bone in plan.bones:
        layer = bone.whole()
        if sign and bone is carrier and sign.kind == "fracture":
            gap, layer = bone.broken(sign)
            canvas = cv2.subtract(canvas, drawn([(FLESH, gap)]))
        canvas = cv2.add(canvas, drawn(layer))
    for layer in plan.layers:
        canvas = cv2.add(canvas, drawn(layer))
    if sign and carrier and sign.kind != "fracture":
        canvas = np.maximum(canvas, drawn(carrier.hardware(sign)))
    return _expose(canvas, rng)


def _draw_pose(part: str, rng: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """Drawing coordinates to pixels, (2,3): rotation, zoom, breadth (a limb turned about its axis), side; width, height."""
    longest, broad = int(rng.integers(160, 225)), part in ("hand", "shoulder")
    shortest = round(longest * rng.uniform(*((0.8, 0.95) if broad else (0.65, 0.9))))
    lying, quarter = rng.random() < 0.2, rng.choice((-90, 90))
    angle = math.radians(np.clip(rng.normal(0, 9), -20, 20) + (quarter if lying and part != "shoulder" else 0))
    zoom, shift = longest * rng.uniform(0.95, 1.1), longest * rng.uniform(-0.03, 0.03, 2)
    breadth = rng.uniform(0.75, 1.05) * rng.choice((-1, 1))
    width, height = (longest, shortest) if lying else (shortest, longest)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    turn = np.array([[cos * breadth, -sin], [sin * breadth, cos]])
    return np.column_stack([turn, shift + np.array((width / 2, height / 2)) - turn @ (0.5, 0.5)]), width, height


def _expose(canvas: Any, rng: np.random.Generator) -> np.ndarray:
    """Border, side marker, blur, contrast, uneven light, gain, offset and noise; uint8 (H,W)."""
    height, width = canvas.shape
    longest = max(width, height)
    edges = np.round(np.where(rng.random(4) < 0.6, rng.uniform(0.01, 0.05, 4), 0) * longest).astype(int)
    if rng.random() < 0.5:  # collimated
        frame = np.ones((height, width), bool)
        frame[edges[0] : height - edges[1], edges[2] : width - edges[3]] = False
        canvas[frame] = rng.choice((0, 40, 210, 230))
    margin, tall = 0.11 * longest, longest * rng.uniform(0.07, 0.12)
    x, y = np.where(rng.random(2) < 0.5, margin, np.array((width, height)) - margin) + tall * np.array((-0.4, 0.5))
    letter, value, bold = str(rng.choice(("L", "R"))), int(rng.integers(190, 256)), int(rng.integers(2, 5))
    if rng.random() < 0.9:
        cv2.putText(canvas, letter, (round(x), round(y)), cv2.FONT_HERSHEY_SIMPLEX, tall / 22, value, bold, cv2.LINE_AA)
    picture = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.6, 1.0)).astype(np.float32) / 255
    light: Any = np.add.outer(*(np.linspace(-v, v, 18) for v in rng.uniform(-0.15, 0.15, 2))) + rng.normal(1, 0.05, (18, 18))
    picture = picture ** rng.uniform(0.8, 1.3) * cv2.resize(light.astype(np.float32), (width, height))
    picture = picture * rng.uniform(0.55, 1.2) + rng.uniform(0, 0.08)
    picture += rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0.008, 0.03))
    return np.clip(picture * 255, 0, 255).astype(np.uint8)


class _Bone:
    """A long bone. Places on it are (t, s): 0 to 1 along the axis, -1 to 1 across.

    Args:
        start, end: of the axis, which ``bow`` bends aside.
        widths: half the widths at both ends; ``waist``: by what share the middle is thinner.
        span: between which t a sign may lie; None: nowhere.
    """

    def __init__(self, start: XY, end: XY, widths: XY, waist: float = 0.35, bow: float = 0.0, span: XY | None = None) -> None:
        self.start, self.axis = np.array(start), np.subtract(end, start)
        self.length = float(np.hypot(*self.axis))
        self.normal = np.array((-self.axis[1], self.axis[0])) / self.length
        self.widths, self.waist, self.bow, self.span = widths, waist, bow, span

    def half(self, t: Any) -> np.ndarray:
        """Half the width at t, rounded off at both ends."""
        away = np.abs(2 * np.clip(t, 0, 1) - 1)
        cap = min(1.0, 1.2 * max(self.widths) / self.length)
        end = np.sqrt(1 - np.clip((away - 1 + cap) / cap, 0, 1) ** 2.5)
        return np.interp(t, (0, 1), self.widths) * (1 - self.waist * (1 - away**3)) * end

    def at(self, t: Any, s: Any, lean: XY = (0, 0)) -> np.ndarray:
        """Points (n,2) at t and s (n), moved aside by ``lean[0] + lean[1] * t``."""
        t, s = np.asarray(t), np.asarray(s)
        aside = s * self.half(t) + self.bow * 4 * t * (1 - t) + lean[0] + lean[1] * t
        return self.start + t[:, None] * self.axis + aside[:, None] * self.normal

    def part(self, low: Any, high: Any, s: Any = ACROSS, lean: XY = (0, 0)) -> np.ndarray:
        """The outline between two edges, t at each ``s``, or one t for all."""
        low, high, s = np.broadcast_arrays(low, high, s)
        ways = np.linspace(low, high, 24)
        t = np.concatenate([low, ways[:, -1], high[::-1], ways[::-1, 0]])
        return self.at(t, np.concatenate([s, np.full(24, s[-1]), s[::-1], np.full(24, s[0])]), lean)

    def whole(self) -> Layer:
        return [(CORTEX, self.part(0, 1)), (MARROW, self.part(0.03, 0.97, 0.62 * ACROSS))]

    def _place(self, sign: Sign) -> tuple[float, float]:
        """A sign's t, and half the bone's width there."""
        low, high = self.span or (0.5, 0.5)
        place = low + (high - low) * sign.place
        return place, float(self.half(place))

    def broken(self, sign: Sign) -> tuple[np.ndarray, Layer]:
        """The outline of a jagged gap, and two fragments with dense margins, turned about the bone's ends."""
        rng = np.random.default_rng(sign.seed)
        (place, half), size = self._place(sign), rng.uniform(0.75, 1.25)
        gap = size * max(0.045, 0.6 * half) / self.length
        slant = rng.uniform(-0.6, 0.6) * half / self.length
        push = rng.choice((-1, 1)) * size * max(0.016, rng.uniform(0.5, 0.75) * half)
        crack = place + slant * ACROSS + gap * rng.uniform(-0.25, 0.25, 9)
        layer = []
        for end, way, lean in ((0, -1, (0, push / place)), (1, 1, (-push / (1 - place), push / (1 - place)))):
            edge = np.clip(crack + way * gap / 2, 0.05, 0.95)
            layer.append((CORTEX, self.part(end, edge, ACROSS, lean)))
            layer.append((MARROW, self.part(end - 0.03 * way, edge, 0.62 * ACROSS, lean)))
            layer.append((DENSE, self.part(edge, edge + 0.022 * way / self.length, ACROSS, lean)))
        return self.part(crack - gap / 2, crack + gap / 2, 1.2 * ACROSS), layer

    def hardware(self, sign: Sign) -> Layer:
        """A plate with screws, a rod with locking screws, or crossed pins."""
        rng = np.random.default_rng(sign.seed)
        (place, half), size, side = self._place(sign), rng.uniform(0.75, 1.25), rng.choice((-1, 1))
        reach = size * min(0.11, max(0.08, 0.17 * self.length)) / self.length
        low, high = max(0.04, place - reach), min(0.96, place + reach)
        thin, cross = 0.008, 1.5 * half / self.length  # half the thickness of a screw
        outlines = []
        if sign.kind == "plate":
            outlines = [self.part(low, high, side * np.array((0.95 - 0.012 / half, 0.95 + 0.012 / half)))]
            pins = [((t, t + rng.uniform(-0.02, 0.02)), 1.0) for t in np.linspace(low, high, rng.integers(4, 7))[1:-1]]
        elif sign.kind == "rod":
            outlines = [self.part(low, high, 0.012 / half * ACROSS)]
            pins = [((t, t), 1.25) for t in (low + 0.03, high - 0.03)]
        else:
            pins = [((t - d, t + d), 1.3) for t, d in ((place - 0.07, cross), (place + 0.07, cross), (place, -cross))]
        for ends, s in pins:
            a, b = self.at(ends, (side * s, -side * s))
            aside = thin * np.array((a[1] - b[1], b[0] - a[0])) / np.hypot(*(b - a))
            outlines.append(np.array([a + aside, b + aside, b - aside, a - aside]))
        return [(METAL, outline) for outline in outlines]


class _Plan:
    """What a drawing consists of, in coordinates from 0 to 1, y downwards."""

    def __init__(self) -> None:
        self.flesh: Layer = []
        self.bones: list[_Bone] = []
        self.layers: list[Layer] = []

    def limb(self, start: XY, end: XY, *widths: float) -> None:
        self.flesh.append((FLESH, _Bone(start, end, (widths[0], widths[-1]), 0.0).part(0, 1)))

    def trunk(self, *points: XY) -> None:
        self.flesh.append((FLESH, np.array(points)))

    def bone(self, start: XY, end: XY, *widths: float, **options: Any) -> None:
        self.bones.append(_Bone(start, end, (widths[0], widths[-1]), **options))

    def flat(self, *points: XY) -> None:
        self.layers.append([(THIN, np.array(points))])

    def oval(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> None:
        """A short bone, or the end of a long one."""
        a, turn = np.linspace(0, 2 * np.pi, 24), math.radians(angle)
        spin = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        circle = np.stack([rx * np.cos(a), ry * np.sin(a)], 1) @ spin
        self.layers.append([(CORTEX, np.add((x, y), circle)), (MARROW, np.add((x, y), 0.78 * circle))])

    def carpals(self, rng: np.random.Generator, size: float, *places: XY) -> None:
        for x, y in places:
            self.oval(x, y, *rng.uniform(0.85 * size, 1.1 * size, 2))


def _ray(plan: _Plan, base: XY, angle: float, lengths: tuple[float, ...], half: float, spans: tuple[XY | None, ...]) -> None:
    """Bones in a row upwards from ``base``, ``angle`` degrees to the right, and the flesh of their finger."""
    up = np.array((math.sin(math.radians(angle)), -math.cos(math.radians(angle))))
    start = np.array(base)
    for i, (length, span) in enumerate(zip(lengths, spans, strict=True)):
        end = start + length * up
        plan.limb(tuple(start - 0.02 * up), tuple(end + 0.02 * up), 1.75 * half)
        plan.bone(tuple(start), tuple(end - 0.06 * lengths[0] * up), half, 0.85 * half, span=span)
        start, half = end, half * (0.86 if i else 0.9)


def _hand(plan: _Plan, rng: np.random.Generator) -> None:
    spread, mid = rng.uniform(0.8, 1.2), (0.25, 0.75)
    plan.limb((0.50, 0.60), (0.50, 1.2), 0.13, 0.11)
    plan.trunk((0.36, 0.80), (0.34, 0.52), (0.45, 0.44), (0.58, 0.46), (0.66, 0.56), (0.62, 0.80))
    _ray(plan, (0.40, 0.725), -42 * spread, (0.15, 0.115, 0.08), 0.027, (mid, mid, None))
    rays = (((0.435, 0.67), -14, 1.0), ((0.49, 0.66), -4, 1.04), ((0.54, 0.67), 6, 0.95), ((0.585, 0.69), 17, 0.78))
    for base, angle, size in rays:
        size *= rng.uniform(0.96, 1.04)
        lengths = (0.205 * size, 0.145 * size, 0.095 * size, 0.065 * size)
        _ray(plan, base, angle * spread, lengths, 0.026, (mid, mid, None, None))
    plan.carpals(rng, 0.029, (0.43, 0.70), (0.475, 0.69), (0.52, 0.695), (0.565, 0.715))
    plan.carpals(rng, 0.029, (0.45, 0.745), (0.50, 0.75), (0.55, 0.755))
    plan.bone((0.465, 0.785), (0.46, 1.25), 0.055, 0.035)
    plan.bone((0.56, 0.80), (0.555, 1.25), 0.03)


def _finger(plan: _Plan, rng: np.random.Generator) -> None:
    two = rng.random() < 0.5
    size, mid = rng.uniform(0.95, 1.05), (0.2, 0.8)
    x = 0.42 if two else 0.5
    _ray(plan, (x, 1.2), rng.uniform(-4, 2), (0.36 * size, 0.32 * size, 0.21 * size, 0.15 * size), 0.085, (None, mid, mid, None))
    if two:
        _ray(plan, (x + 0.22, 1.3), rng.uniform(4, 9), (0.36, 0.30, 0.2, 0.14), 0.08, (None,) * 4)


def _wrist(plan: _Plan, rng: np.random.Generator) -> None:
    plan.limb((0.50, 0.15), (0.50, 1.3), 0.25, 0.19)
    plan.limb((0.50, 0.55), (0.50, -0.3), 0.22, 0.27)
    for x, angle in ((0.37, -9), (0.46, -3), (0.55, 4), (0.63, 11)):
        _ray(plan, (x, 0.335), angle, (0.36, 0.3), 0.05, ((0.25, 0.65), None))
    _ray(plan, (0.30, 0.40), -36, (0.30, 0.2), 0.05, (None, None))
    plan.carpals(rng, 0.054, (0.34, 0.39), (0.415, 0.38), (0.50, 0.375), (0.595, 0.385))
    plan.carpals(rng, 0.054, (0.37, 0.475), (0.455, 0.485), (0.545, 0.48), (0.61, 0.46))
    plan.bone((0.42, 0.55), (0.44, 1.4), 0.12, 0.08, waist=0.4, span=(0.12, 0.45))
    plan.bone((0.60, 0.575), (0.585, 1.4), 0.065, 0.06, waist=0.3, span=(0.12, 0.45))


def _forearm(plan: _Plan, rng: np.random.Generator) -> None:
    plan.limb((0.50, -0.4), (0.50, 0.6), 0.17, 0.19)
    plan.limb((0.50, 0.1), (0.49, 1.2), 0.21, 0.12)
    bow = rng.uniform(0.01, 0.04)
    plan.bone((0.50, -0.4), (0.50, 0.11), 0.09, 0.13)
    plan.bone((0.42, 0.13), (0.43, 0.87), 0.045, 0.07, bow=bow, span=(0.2, 0.8))
    plan.bone((0.53, 0.09), (0.555, 0.88), 0.07, 0.04, bow=-bow / 2, span=(0.2, 0.8))
    plan.carpals(rng, 0.038, (0.42, 0.91), (0.475, 0.92), (0.53, 0.915), (0.43, 0.97), (0.49, 0.98), (0.55, 0.975))


def _elbow(plan: _Plan, rng: np.random.Generator) -> None:
    if rng.random() < 0.5:  # from the front
        plan.limb((0.50, -0.3), (0.50, 0.6), 0.19, 0.22)
        plan.limb((0.50, 0.3), (0.50, 1.3), 0.25, 0.17)
        plan.bone((0.50, -0.5), (0.50, 0.46), 0.10, 0.19, waist=0.4, span=(0.62, 0.82))
        plan.oval(0.41, 0.445, 0.06, 0.045)
        plan.oval(0.56, 0.45, 0.075, 0.05)
        plan.bone((0.565, 0.44), (0.58, 1.4), 0.09, 0.06, span=(0.15, 0.45))
        plan.bone((0.405, 0.50), (0.43, 1.4), 0.062, 0.07, span=(0.12, 0.42))
        return
    bend = rng.uniform(0.05, 0.35)
    plan.limb((0.34, -0.3), (0.36, 0.72), 0.17, 0.17)
    plan.limb((0.25, 0.56), (1.3, 0.62 + bend), 0.17, 0.13)
    plan.bone((0.34, -0.5), (0.37, 0.56), 0.085, 0.10, span=(0.6, 0.82))
    plan.oval(0.385, 0.545, 0.075, 0.07)
    plan.bone((0.26, 0.545), (1.25, 0.68 + bend), 0.10, 0.06, waist=0.3, span=(0.25, 0.5))
    plan.bone((0.47, 0.55), (1.25, 0.56 + bend), 0.06, 0.07, span=(0.12, 0.35))


def _humerus(plan: _Plan, rng: np.random.Generator) -> None:
    plan.limb((0.50, -0.2), (0.50, 1.3), 0.23, 0.15)
    plan.limb((0.50, 0.0), (0.9, 0.0), 0.2)
    plan.bone((0.48, 0.09), (0.50, 0.87), 0.105, 0.12, waist=0.52, bow=rng.uniform(-0.015, 0.015), span=(0.22, 0.78))
    plan.oval(0.51, 0.125, 0.095, 0.085)
    plan.oval(0.65, 0.13, 0.045, 0.08, 10)  # glenoid
    plan.bone((0.45, 0.005), (0.9, -0.04), 0.03)
    plan.bone((0.45, 0.885), (0.45, 1.3), 0.055)
    plan.bone((0.55, 0.86), (0.55, 1.3), 0.07)


def _shoulder(plan: _Plan, rng: np.random.Generator) -> None:
    high = rng.uniform(-0.02, 0.02)
    plan.trunk((0.12, 1.1), (0.13, 0.45), (0.22, 0.26), (0.45, 0.15), (0.8, 0.05), (1.2, -0.1), (1.2, 1.1))
    for i in range(4):
        plan.bone((0.66 + 0.01 * i, 0.34 + 0.17 * i), (1.2, 0.26 + 0.2 * i), 0.02, bow=-0.09, waist=0.0)
    plan.flat((0.52, 0.36), (0.80, 0.28), (0.86, 0.36), (0.70, 0.84), (0.64, 0.80), (0.55, 0.50))  # scapula
    plan.bone((0.53, 0.33), (0.69, 0.86), 0.018, waist=0.0)  # its border
    plan.bone((0.27, 0.30), (0.27, 1.4), 0.115, 0.075, waist=0.3, span=(0.25, 0.55))
    plan.oval(0.335, 0.36, 0.115, 0.12, -30)
    plan.oval(0.50, 0.40, 0.035, 0.10, 8)  # glenoid
    plan.bone((0.40, 0.215 + high), (1.0, 0.19 + high), 0.04, 0.045, bow=0.025, span=(0.25, 0.7))
    plan.bone((0.27, 0.235), (0.44, 0.19), 0.035)  # acromion


DRAW: dict[str, Callable[[_Plan, np.random.Generator], None]] = {
    "elbow": _elbow, "finger": _finger, "forearm": _forearm, "hand": _hand, "humerus": _humerus, "shoulder": _shoulder,
    "wrist": _wrist,
}  # fmt: skip
