"""A synthetic MRNet-v1.0: drawings of knees in the published layout, with findings that can be learned.

The signs, each in a few neighbouring slices: a torn ACL is bright fluid where the dark band of the ligament was, in the
notch; a meniscal tear is a bright cleft through a dark wedge; an otherwise abnormal knee has an effusion, a bright rim
round the joint. Gain, offset and bright spots elsewhere are drawn for every exam, so mean brightness tells nothing.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from xraylab.data.boxes import FILE, BoxRow, boxes_of, write_boxes
from xraylab.data.published import MRNET
from xraylab.data.published import MRNET_PLANES as PLANES
from xraylab.data.synthetic.mark import mark_synthetic, new_root
from xraylab.errors import UserError
from xraylab.system.progress import on_all_cores

SIZE = 256
LEAST_OF_A_CLASS = 15  # in valid, so that its metrics mean something

SEEN = 0.1  # least difference of what belongs to a sign
SIGNS = {"abnormal": ("effusion", "acl", "meniscus"), "acl": ("acl",), "meniscus": ("meniscus",)}  # that show a finding

AIR, CORTEX, MUSCLE, MARROW, CARTILAGE, FAT, FLUID = 0.03, 0.10, 0.33, 0.50, 0.62, 0.74, 0.95


def write_mrnet(root: Path, train: int = 60, valid: int = 40, slices: tuple[int, int] | None = None, seed: int = 0) -> Path:
    """Write a synthetic ``MRNet-v1.0`` tree to ``root``: three planes, six CSVs, uint8 arrays (slices, 256, 256).

    Args:
        train, valid: exams in each split; ids continue from train to valid as published.
        slices: least and most slices of an exam; None: the published 17-61.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already, or the numbers are too small for 15 of each class in valid.
    """
    if valid < 2 * LEAST_OF_A_CLASS or train < 10:
        raise UserError(
            f"train={train} valid={valid}: at least 10 and {2 * LEAST_OF_A_CLASS} exams are needed, "
            f"for {LEAST_OF_A_CLASS} of each class in valid."
        )
    if slices is not None and not (len(slices) == 2 and 1 <= slices[0] <= slices[1]):
        raise UserError(f"slices={list(slices)}: it is [least, most] with 1 <= least <= most.")
    new_root(root)
    first = 0
    jobs = []
    for split, count in (("train", train), ("valid", valid)):
        labels = _draw_labels(np.random.default_rng([seed, first]), split, count)
        for task, values in labels.items():
            rows = [f"{first + i:04d},{v}\n" for i, v in enumerate(values)]
            (root / f"{split}-{task}.csv").write_text("".join(rows), encoding="utf-8")
        for plane in PLANES:
            (root / split / plane).mkdir(parents=True)
        jobs += [(split, first + i, {t: bool(v[i]) for t, v in labels.items()}) for i in range(count)]
        first += count

    def write(job: tuple[str, int, dict[str, bool]]) -> list[BoxRow]:
        split, number, findings = job
        boxes: list[BoxRow] = []
        for p, plane in enumerate(PLANES):
            rng = np.random.default_rng([seed, number, p])
            low, high = slices or MRNET["train"]["slices"][plane]
            file = f"{split}/{plane}/{number:04d}.npy"
            volume, found = draw_exam(plane, findings, int(rng.integers(low, high + 1)), rng)
            np.save(root / file, volume)
            boxes += [(file, i + 1, name, *box) for i, name, box in found]
        return boxes

    write_boxes(root / FILE, [row for rows in on_all_cores(write, jobs) for row in rows])
    return mark_synthetic(root, f"MRNet, seed {seed}")


def _draw_labels(rng: np.random.Generator, split: str, count: int) -> dict[str, np.ndarray]:
    """Labels at the published prevalence, each class at least 15 times in valid; a torn part makes an exam abnormal."""
    least = LEAST_OF_A_CLASS if split == "valid" else 2
    published = MRNET["heldout" if split == "valid" else "train"]

    def number(task: str) -> int:
        return int(np.clip(round(published["positives"][task] / published["exams"] * count), least, count - least))

    abnormal = np.zeros(count, int)
    abnormal[rng.permutation(count)[: number("abnormal")]] = 1
    sick = np.flatnonzero(abnormal)
    labels = {"abnormal": abnormal}
    for task in ("acl", "meniscus"):
        labels[task] = np.zeros(count, int)
        labels[task][rng.permutation(sick)[: min(number(task), len(sick))]] = 1
    return labels


def draw_exam(
    plane: str, findings: dict[str, bool], slices: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, str, tuple[int, int, int, int]]]]:
    """One exam, and the boxes of its findings.

    Args:
        plane: axial, coronal or sagittal.
        findings: ``abnormal``, ``acl``, ``meniscus``.
        slices: how many.

    Returns:
        uint8 (slices, 256, 256); slice from 0 on, finding, x, y, width, height.
    """
    body = {k: float(rng.uniform(-1, 1)) for k in ("wide", "tall", "x", "y", "turn", "side")}
    signs = dict(findings)
    signs["effusion"] = findings["abnormal"] and (not (findings["acl"] or findings["meniscus"]) or rng.random() < 0.5)
    sign = float(rng.uniform(0.66, FLUID))
    spot = rng.uniform(0, 1, 6)  # vessels and cysts of any knee
    # where along the volume the signs lie: a middle part, at least one slice
    centre, reach = float(rng.uniform(-0.15, 0.15)), max(0.3, 1.2 / slices)
    texture = cv2.resize(rng.normal(0, 1, (24, 24)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    gain, offset = float(rng.uniform(0.75, 1.1)), float(rng.uniform(-0.02, 0.06))
    warp = _warp(body)
    volume, boxes = np.empty((slices, SIZE, SIZE), np.uint8), []

    def clean(t: float, here: dict[str, bool], rng: np.random.Generator) -> Any:
        canvas: Any = np.full((SIZE, SIZE), AIR, np.float32)
        DRAW[plane](_Pen(canvas, sign), t, here, spot, rng)
        return cv2.warpAffine(canvas, warp, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=AIR)

    for i in range(slices):
        t = 0.0 if slices == 1 else 2 * i / (slices - 1) - 1
        here = {k: v and abs(t - centre) < reach for k, v in signs.items()}
        before = copy.deepcopy(rng)
        drawn = clean(t, here, rng)
        for name, signs_of in SIGNS.items():
            if findings[name] and any(here[s] for s in signs_of):
                without = clean(t, {s: v and s not in signs_of for s, v in here.items()}, copy.deepcopy(before))
                boxes += [(i, name, box) for box in boxes_of(np.abs(drawn - without) > SEEN, joined=1 / 32)]
        canvas = cv2.GaussianBlur(drawn, (0, 0), 1.1)
        tissue = canvas > 0.06
        canvas = canvas * gain + offset * tissue + 0.018 * texture * tissue
        canvas += rng.normal(0, 0.022, canvas.shape).astype(np.float32)
        volume[i] = np.clip(canvas * 255, 0, 255).astype(np.uint8)
    return volume, boxes


def _warp(body: dict[str, float]) -> np.ndarray:
    """A patient's size, position, rotation (to 8 degrees) and side."""
    matrix: Any = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), 8 * body["turn"], 1 + 0.06 * body["wide"])
    matrix[:, 2] += (8 * body["x"], 8 * body["y"])
    if body["side"] > 0:  # the other knee
        matrix[:, 2] += matrix[:, 0] * (SIZE - 1)
        matrix[:, 0] *= -1
    return matrix


class _Pen:
    """Draws in coordinates from 0 to 1 on a float32 canvas (256, 256)."""

    def __init__(self, canvas: np.ndarray, sign: float) -> None:
        self.canvas, self.sign = canvas, sign  # how bright the fluid of a tear is

    def oval(self, x: float, y: float, rx: float, ry: float, value: float, angle: float = 0.0) -> None:
        if rx > 0 and ry > 0:
            box = ((x * SIZE, y * SIZE), (2 * rx * SIZE, 2 * ry * SIZE), angle)
            cv2.ellipse(self.canvas, box, value, -1, cv2.LINE_AA)

    def bone(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> None:
        """Cartilage, cortex and marrow, from outside to inside."""
        self.oval(x, y, rx + 0.016, ry + 0.016, CARTILAGE, angle)
        self.oval(x, y, rx, ry, CORTEX, angle)
        self.oval(x, y, rx - 0.012, ry - 0.012, MARROW, angle)

    def patch(self, value: float, *points: tuple[float, float]) -> None:
        cv2.fillPoly(self.canvas, [_fixed_point(points)], value, cv2.LINE_AA, 4)

    def line(self, value: float, width: float, *points: tuple[float, float]) -> None:
        cv2.polylines(self.canvas, [_fixed_point(points)], False, value, max(1, round(width * SIZE)), cv2.LINE_AA, 4)

    def fluid(self, x: float, y: float, r: float, rng: np.random.Generator) -> None:
        """An irregular bright spot."""
        for _ in range(4):
            dx, dy = rng.uniform(-0.5, 0.5, 2) * r
            self.oval(x + dx, y + dy, r * rng.uniform(0.5, 0.9), r * rng.uniform(0.5, 0.9), self.sign)

    def wedge(self, x: float, y: float, width: float, torn: bool, outwards: int) -> None:
        """A meniscus in section: a dark triangle, and through it the bright cleft of a tear."""
        self.patch(0.07, (x + outwards * width, y - 0.03), (x + outwards * width, y + 0.03), (x, y))
        if torn:
            self.line(self.sign, 0.016, (x + outwards * width * 1.05, y - 0.016), (x + outwards * width * 0.25, y + 0.006))


def _fixed_point(points: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Pixels with four binary places, as OpenCV's ``shift=4`` reads them."""
    return (np.array(points) * SIZE * 16).astype(np.int32)


def _sagittal(pen: _Pen, t: float, signs: dict[str, bool], spot: np.ndarray, rng: np.random.Generator) -> None:
    edge = 1 - 0.25 * t * t
    pen.patch(FAT, (0.17, -0.1), (0.10, 0.36), (0.16, 0.60), (0.24, 1.1), (0.86, 1.1), (0.90, 0.6), (0.86, 0.3), (0.90, -0.1))
    pen.patch(MUSCLE, (0.24, -0.1), (0.22, 0.3), (0.30, 0.62), (0.33, 1.1), (0.79, 1.1), (0.82, 0.6), (0.80, 0.3), (0.84, -0.1))
    pen.oval(0.74, 0.30 + 0.4 * spot[0], 0.016 + 0.016 * spot[1], 0.02 + 0.02 * spot[2], FLUID)
    pen.line(FAT, 0.02, (0.66, 0.0), (0.70, 0.4), (0.69, 1.0))
    pen.patch(FAT, (0.25, 0.45), (0.37, 0.50), (0.38, 0.58), (0.28, 0.62))  # infrapatellar fat pad
    pen.patch(CORTEX, (0.36, -0.1), (0.37, 0.3), (0.60, 0.3), (0.58, -0.1))
    pen.bone(0.49, 0.385, 0.185 * edge, 0.125 * edge, 8)
    pen.patch(MARROW, (0.375, -0.1), (0.385, 0.33), (0.585, 0.33), (0.565, -0.1))
    pen.patch(CORTEX, (0.35, 0.62), (0.41, 1.1), (0.62, 1.1), (0.66, 0.62))
    pen.bone(0.50, 0.625, 0.175 * edge, 0.055)
    pen.patch(MARROW, (0.37, 0.64), (0.425, 1.1), (0.605, 1.1), (0.64, 0.64))
    pen.line(CORTEX, 0.022, (0.27, 0.02), (0.22, 0.27), (0.22, 0.42), (0.33, 0.67))  # extensor tendon
    pen.bone(0.235, 0.345, 0.042, 0.085, -6)
    if abs(t) < 0.45:  # the notch: ligament, or the fluid of its tear
        pen.patch(MUSCLE + 0.05, (0.42, 0.42), (0.62, 0.42), (0.60, 0.57), (0.42, 0.57))
        pen.line(CORTEX, 0.03, (0.63, 0.46), (0.60, 0.52), (0.57, 0.60))  # posterior cruciate
        if signs["acl"]:
            pen.fluid(0.50, 0.505, 0.055, rng)
        else:
            pen.line(CORTEX, 0.034, (0.57, 0.42), (0.44, 0.575))
    else:
        pen.line(CARTILAGE, 0.014, (0.36, 0.535), (0.62, 0.535))
    for x, outwards in ((0.40, -1), (0.58, 1)):
        pen.wedge(x, 0.535, 0.075, signs["meniscus"] and outwards == 1, outwards)
    if signs["effusion"]:
        pen.patch(FLUID, (0.29, 0.10), (0.34, 0.08), (0.345, 0.30), (0.30, 0.40), (0.275, 0.30))


def _coronal(pen: _Pen, t: float, signs: dict[str, bool], spot: np.ndarray, rng: np.random.Generator) -> None:
    pen.patch(FAT, (0.12, -0.1), (0.08, 0.45), (0.14, 0.75), (0.20, 1.1), (0.80, 1.1), (0.86, 0.75), (0.92, 0.45), (0.88, -0.1))
    pen.patch(
        MUSCLE, (0.20, -0.1), (0.14, 0.45), (0.20, 0.75), (0.27, 1.1), (0.73, 1.1), (0.80, 0.75), (0.86, 0.45), (0.80, -0.1)
    )
    pen.oval(0.19 + 0.62 * (spot[3] > 0.5), 0.15 + 0.6 * spot[0], 0.016 + 0.016 * spot[1], 0.02 + 0.02 * spot[2], FLUID)
    pen.patch(CORTEX, (0.39, -0.1), (0.38, 0.3), (0.62, 0.3), (0.61, -0.1))
    for x in (0.335, 0.665):
        pen.bone(x, 0.40, 0.155, 0.125 - 0.015 * t * t)
    pen.patch(MARROW, (0.405, -0.1), (0.395, 0.18), (0.30, 0.34), (0.70, 0.34), (0.605, 0.18), (0.595, -0.1))
    pen.patch(CORTEX, (0.20, 0.60), (0.40, 0.80), (0.41, 1.1), (0.60, 1.1), (0.61, 0.80), (0.80, 0.60))
    pen.bone(0.50, 0.615, 0.32, 0.052)
    pen.patch(MARROW, (0.23, 0.625), (0.42, 0.81), (0.425, 1.1), (0.585, 1.1), (0.59, 0.81), (0.77, 0.625))
    pen.bone(0.80, 0.80, 0.045, 0.075)  # head of the fibula
    pen.patch(MARROW, (0.775, 0.82), (0.77, 1.1), (0.81, 1.1), (0.82, 0.82))
    pen.patch(MUSCLE + 0.05, (0.455, 0.40), (0.50, 0.33), (0.545, 0.40), (0.53, 0.57), (0.47, 0.57))  # notch
    if signs["acl"]:
        pen.fluid(0.50, 0.47, 0.05, rng)
    else:
        pen.line(CORTEX, 0.03, (0.535, 0.40), (0.48, 0.56))
    for x, outwards in ((0.27, -1), (0.73, 1)):
        pen.wedge(x, 0.54, 0.085, signs["meniscus"] and outwards == -1, outwards)
        pen.line(CORTEX, 0.014, (0.5 + outwards * 0.345, 0.36), (0.5 + outwards * 0.345, 0.70))  # collateral ligaments
    if signs["effusion"]:
        for side in (-1, 1):
            pen.line(FLUID, 0.028, (0.5 + side * 0.26, 0.22), (0.5 + side * 0.325, 0.33), (0.5 + side * 0.335, 0.47))


def _axial(pen: _Pen, t: float, signs: dict[str, bool], spot: np.ndarray, rng: np.random.Generator) -> None:
    pen.oval(0.50, 0.52, 0.43, 0.43, FAT)
    pen.oval(0.50, 0.53, 0.375, 0.375, MUSCLE)
    for x in (0.33, 0.67):  # heads of the gastrocnemius
        pen.oval(x, 0.78, 0.115, 0.085, MUSCLE - 0.06)
    pen.line(FAT, 0.014, (0.50, 0.70), (0.50, 0.86))
    pen.oval(0.52 + 0.06 * (spot[3] - 0.5), 0.73, 0.018 + 0.012 * spot[1], 0.018 + 0.012 * spot[2], FLUID)  # popliteal vessels
    pen.oval(0.28 + 0.44 * spot[0], 0.83, 0.018, 0.016, FLUID)
    wide = 0.165 - 0.02 * abs(t)
    for x in (0.37, 0.63):
        pen.bone(x, 0.53, wide - 0.015, 0.15, 12 if x < 0.5 else -12)
    pen.patch(MARROW, (0.33, 0.42), (0.50, 0.445), (0.67, 0.42), (0.64, 0.55), (0.36, 0.55))
    pen.line(CORTEX, 0.012, (0.28, 0.41), (0.40, 0.392), (0.50, 0.432), (0.60, 0.392), (0.72, 0.41))  # trochlea
    pen.patch(MUSCLE + 0.05, (0.455, 0.55), (0.545, 0.55), (0.565, 0.69), (0.435, 0.69))  # notch
    pen.oval(0.50, 0.268, 0.145, 0.062, CORTEX)  # patella
    pen.oval(0.50, 0.268, 0.132, 0.05, MARROW)
    pen.line(CARTILAGE, 0.016, (0.37, 0.325), (0.50, 0.35), (0.63, 0.325))
    pen.oval(0.475, 0.655, 0.018, 0.024, CORTEX)  # posterior cruciate
    if signs["acl"]:
        pen.fluid(0.52, 0.61, 0.048, rng)
    else:
        pen.oval(0.53, 0.60, 0.014, 0.034, CORTEX, 20)
    if signs["meniscus"]:
        pen.line(pen.sign, 0.016, (0.235, 0.60), (0.27, 0.665), (0.32, 0.69))
    if signs["effusion"]:
        for side in (-1, 1):
            pen.line(FLUID, 0.03, (0.5 + side * 0.17, 0.30), (0.5 + side * 0.23, 0.36), (0.5 + side * 0.265, 0.43))


DRAW = {"axial": _axial, "coronal": _coronal, "sagittal": _sagittal}
