"""Drawings of chest radiographs, frontal and lateral, with findings from subtle to obvious and with what looks like them.

A finding has a severity, which sets its size and contrast, and lies at the same place in every view of a study. A mimic is
harmless and something else to the eye: a fat pad beside the heart, a skin fold, a scar. Pose, exposure, noise, sharpness,
borders and bright side markers are drawn for every image alike, and every image is brought to a mean and a contrast of its
own, as automatic exposure does, so brightness tells nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from xraylab.data.synthetic.film import Film, Grid, expose, ramp

#: that are drawn; lung_opacity and no_finding follow from them
DRAWN = (
    "enlarged_cardiomediastinum", "cardiomegaly", "lung_lesion", "edema", "consolidation", "pneumonia", "atelectasis",
    "pneumothorax", "pleural_effusion", "pleural_other", "fracture", "support_devices",
)  # fmt: skip
#: that have a look-alike
MIMICKED = tuple(name for name in DRAWN if name not in ("fracture", "support_devices"))

SEEN = 0.02  # least difference of density of what belongs to a finding
APEX, BASE, SPACING = -0.37, 0.27, 0.083  # of the lungs, and between ribs, in heights of the body


@dataclass(frozen=True)
class Case:
    """The findings of one synthetic study, which its images show.

    Attributes:
        severity: of each finding that is there, over 0 to 1.
        mimic: how strong each look-alike is, over 0 to 1.
        seed: of where the findings lie.
    """

    severity: Mapping[str, float] = field(default_factory=dict)
    mimic: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def places(self) -> dict[str, np.ndarray]:
        """Where each finding lies, float (8,) from 0 to 1; the same whatever else the study has."""
        rng = np.random.default_rng(self.seed)
        return {name: rng.random(8) for name in DRAWN}


def draw_view(case: Case, view: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """One image. Whatever the case, ``rng`` leads to the same pose and exposure.

    Args:
        view: ``pa``, ``ap`` (a larger heart, turned a little more) or ``lateral``.
        size: the least of the longer side, in pixels.

    Returns:
        uint8 (H,W), the longer side ``size`` to 1.3 ``size``.
    """
    film = Film(view, size, rng)
    _Chest(film, case, view, rng).draw()
    return expose(film, rng)


def finding_masks(case: Case, view: str, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Where an image of :func:`draw_view` shows each of its findings, bool (H,W): where its density is another without it.

    Args:
        rng: in the state in which ``draw_view`` got it; it is not changed.
    """

    def density(severity: Mapping[str, float]) -> Grid:
        own = copy.deepcopy(rng)
        film = Film(view, size, own)
        _Chest(film, replace(case, severity=severity), view, own).draw()
        return film.density

    whole, masks = density(case.severity), {}
    for name in DRAWN:
        if case.severity.get(name):
            change = np.abs(whole - density({k: v for k, v in case.severity.items() if k != name}))
            masks[name] = change > max(SEEN, 0.3 * float(change.max()))
    return masks


class _Chest:
    """One view of one case, drawn onto a film."""

    def __init__(self, film: Film, case: Case, view: str, rng: np.random.Generator) -> None:
        self.film, self.lateral = film, view == "lateral"
        self.severity, self.mimic, self.places = case.severity, case.mimic, case.places()
        self.ap, self.breadth, self.deep = view == "ap", rng.uniform(0.93, 1.05), rng.uniform(-0.03, 0.03)
        self.rng = np.random.default_rng(rng.integers(2**31))
        self.x, self.y = film.x / self.breadth, film.y
        self.side: Grid = np.where(self.x < 0, -1, 1)
        self.out: Grid = self.x + 0.1 if self.lateral else np.abs(self.x)  # outwards or backwards
        collapse = self.amount("atelectasis")
        lift = 0.035 * collapse + 0.035 * (collapse > 0)
        lifted = (self.side == self.which("atelectasis")) & (not self.lateral)
        self.t = np.clip((self.y - APEX) / (BASE + 0.1 - APEX), 0, 1)
        far = np.clip(self.out - 0.15, 0, None) / 0.24
        self.dome: Grid = BASE + self.deep + 0.1 * far**2 - np.where(lifted, lift, 0)
        if self.lateral:
            self.wall = 0.42 * np.sqrt(1 - (1 - self.t) ** 2.1)
            front = -0.33 + 0.17 * (1 - self.t) ** 1.5 + 0.12 * np.clip(self.t - 0.6, 0, None)
            self.dome = self.dome + 0.25 * np.clip(-0.12 - self.x, 0, None) ** 1.5
            self.lung = ramp(self.wall - self.out, 0.02) * ramp(self.x - front, 0.03) * ramp(self.dome - self.y, 0.02)
            if lift:  # the other dome stays
                self.lung = self.lung * (1 - 0.6 * ramp(self.y - self.dome + lift * 1.6, 0.015))
        else:
            self.dome = self.dome + np.where(self.side < 0, -0.018, 0.012)
            self.wall = 0.4 * np.sqrt(1 - (1 - self.t) ** 2.3)
            self.lung = ramp(self.wall - self.out, 0.016) * ramp(self.dome - self.y, 0.014)

    def amount(self, name: str) -> float:
        return float(self.severity.get(name, 0.0))

    def like(self, name: str) -> float:
        return float(self.mimic.get(name, 0.0))

    def which(self, name: str) -> int:
        """The side of the body on which a finding lies: -1 left in the picture, 1 right."""
        return -1 if self.places[name][0] < 0.5 else 1

    def spot(self, name: str, low: float = -0.2, high: float = 0.2) -> tuple[float, float]:
        """A place in a lung, at a height between two."""
        _, across, down, back, *_ = self.places[name]
        y = low + (high - low) * down
        if self.lateral:
            return -0.12 + 0.3 * back, y
        return self.which(name) * self.breadth * (0.15 + 0.12 * across + 0.04 * (y > -0.1)), y

    def draw(self) -> None:
        """Everything, from the body to the devices on it."""
        film = self.film
        body = self._body()
        silhouette = self._middle()
        air = self.lung * (1 - silhouette)
        film.density += 0.5 * body - 0.36 * air * body
        film.density += self._bones() * body + 0.05 * silhouette
        film.density += self._vessels() * air
        film.density += self._shadows(air)
        self._pleura(air)
        self._devices()

    def _body(self) -> Grid:
        x, y, rng = self.film.x, self.film.y, self.rng
        if self.lateral:
            shoulder = 0.14 * ramp(-0.24 - y, 0.2)
            return ramp(0.43 - np.abs(x - 0.01) - 0.25 * (y - 0.05) ** 2, 0.03) * (1 + shoulder)
        trunk = ramp(0.48 - np.abs(x), 0.03) * ramp(y + 0.45 - 0.7 * np.clip(np.abs(x) - 0.1, 0, None) ** 1.4, 0.03)
        body = np.maximum(trunk, ramp(0.12 - np.abs(x), 0.03))
        belly = 0.16 * ramp(y - self.dome - 0.02, 0.06) - 0.14 * self.film.oval(0.2, BASE + 0.15, 0.07, 0.035, 0.5)
        breast = rng.uniform(0, 0.1) * sum(self.film.oval(s * 0.24, 0.17, 0.16, 0.13, 0.4) for s in (-1, 1))
        return body + belly + breast * trunk

    def _middle(self) -> Grid:
        """The outline of the heart and of what lies above it."""
        film, rng = self.film, self.rng
        heart, wide = self.amount("cardiomegaly"), self.amount("enlarged_cardiomediastinum")
        normal = rng.uniform(0.93, 1.07) * (1.1 if self.ap else 1.0)
        scale = normal * (1 + (0.2 + 0.33 * heart if heart else 0))
        pad, unfolded = self.like("cardiomegaly"), self.like("enlarged_cardiomediastinum")
        extra = 0.045 + 0.05 * wide if wide else 0.0
        if self.lateral:
            outline = film.oval(-0.12 + 0.13 * (scale - 1), 0.16, 0.17 * scale, 0.11 * (0.35 + 0.65 * scale), 0.2, 40)
            top = 0.75 * film.oval(-0.13, -0.17, 0.05 + extra, 0.17, 0.5, 8) * (0.25 + 8 * extra)
            spine = 0.5 * ramp(0.05 - np.abs(self._from_spine()), 0.03)
            outline = np.maximum(np.maximum(outline * 0.8, np.clip(top, 0, 0.8)), spine)
            faint = 0.5 * film.oval(-0.25, 0.09, 0.05, 0.09, 0.15) * (pad > 0) * (0.5 + 0.5 * pad)
            faint = faint + 0.5 * film.oval(0.1, -0.1, 0.03 + 0.03 * unfolded, 0.09, 0.2) * (unfolded > 0)
        else:
            outline = film.oval(0.055, 0.15, 0.155 * scale, 0.132 * (0.5 + 0.5 * scale), 0.14, 32)
            column = ramp(0.07 + extra * ramp(0.02 - self.y, 0.25) - self.out, 0.025)
            knob = film.oval(0.075, -0.135, 0.035, 0.05, 0.3)
            outline = np.maximum(np.maximum(outline, column), knob)
            bulge = film.oval(0.105, -0.1, 0.035 + 0.03 * unfolded, 0.07, 0.2) * (unfolded > 0)
            outline = np.maximum(outline, bulge)
            faint = 0.55 * film.oval(0.22, 0.235, 0.06 + 0.03 * pad, 0.05, 0.15) * (pad > 0) * (0.6 + 0.4 * pad)
        windpipe = 0.3 * ramp(0.022 - np.abs(self.x - (0.02 + 0.06 * self.y if self.lateral else 0.0)), 0.02)
        film.density -= 0.3 * windpipe * ramp(-0.07 - self.y, 0.05)
        return np.clip(np.maximum(outline, faint), 0, 1)

    def _from_spine(self) -> Grid:
        """How far behind the axis of the spine, seen from the side."""
        return self.x - 0.3 + 0.35 * (self.y + 0.05) ** 2

    def _bones(self) -> Grid:
        rng = self.rng
        place, severity = self.places["fracture"], self.amount("fracture")
        slope = rng.uniform(0.9, 1.2)
        if self.lateral:
            run = self.y + 0.02 - 0.5 * (self.x - 0.1) + 0.9 * (self.x - 0.1) ** 2
        else:
            run = self.y - slope * self.out**2 + 0.1 * self.out
        phase = (run - APEX + 0.02) / SPACING
        bone = np.ones_like(phase)
        if severity:
            along, middle = (self.x, -0.1 + 0.25 * place[1]) if self.lateral else (self.out, 0.16 + 0.14 * place[1])
            here, clear = (self.side == self.which("fracture")) | self.lateral, 2 if self.lateral else 1
            first = 3 + int(3 * place[2])
            for rib in range(first, first + 1 + round(2 * severity)):
                its = here & (np.abs(phase - rib) < 0.5)
                bone = np.where(its & (np.abs(along - middle) < 0.010 + 0.012 * severity), -0.5 * clear, bone)
                callus = np.exp(-(((np.abs(along - middle) - 0.03) / 0.012) ** 2))
                bone = bone + np.where(its, clear * (0.5 + severity) * callus, 0)
                phase = np.where(its & (along > middle), phase + 0.22 + 0.15 * severity, phase)
        within = ramp(self.wall + 0.03 - self.out, 0.02) * ramp(self.y - APEX + 0.03, 0.03) * ramp(0.3 - self.y, 0.1)
        ribs = np.clip(2.2 * (np.cos(2 * np.pi * phase) - 0.25), 0, 1) * within * bone
        if self.lateral:
            column = ramp(0.045 - np.abs(self._from_spine()), 0.02)
            discs = 0.75 + 0.25 * np.cos(2 * np.pi * self.y / 0.075 + 5 * self.x)
            sternum = ramp(0.012 - np.abs(self.x + 0.355 - 0.17 * (1 - self.t) ** 1.5), 0.01) * ramp(0.15 - self.y, 0.1)
            return 0.045 * ribs + 0.12 * column * discs + 0.1 * sternum * (self.t > 0)
        front = np.clip(2 * (np.cos(2 * np.pi * (self.y + 0.55 * self.out + 0.05) / (1.15 * SPACING)) - 0.3), 0, 1)
        ribs = ribs + 0.45 * front * within * ramp(self.out - 0.17, 0.05) * ramp(self.y + 0.28, 0.05)
        spine = (0.5 + 0.25 * np.cos(2 * np.pi * self.y / 0.06)) * ramp(0.042 - self.out, 0.015)
        tilt = rng.uniform(0.1, 0.35)
        clavicles = ramp(0.016 - np.abs(self.y + 0.29 + tilt * (self.out - 0.1)), 0.012) * ramp(self.out - 0.035, 0.02)
        return 0.075 * ribs + 0.14 * spine + 0.1 * clavicles * ramp(0.4 - self.out, 0.03)

    def _vessels(self) -> Grid:
        """Branches out of each hilum, more and thicker where edema is mimicked."""
        rng, crowd = self.rng, self.like("edema")
        lines = []
        for side in (0,) if self.lateral else (-1, 1):
            hilum = np.array((0.02, -0.02) if self.lateral else (side * 0.085, 0.0 + 0.015 * side))
            way = np.linspace(0, 2 * np.pi, 11)[:-1] if self.lateral else np.linspace(-1.25, 1.3, 9)
            for angle in way + rng.uniform(-0.2, 0.2, len(way)):
                length = rng.uniform(0.12, 0.24) * (1 + 0.25 * crowd)
                heading = np.array((math.cos(angle) * (side or 1), math.sin(angle)))
                points = [hilum + heading * length * f + rng.normal(0, 0.007, 2) for f in np.linspace(0.1, 1, 5)]
                for i, width in enumerate((0.014, 0.01, 0.007, 0.004)):
                    lines.append((np.stack(points[i : i + 2]), width * (1 + 0.8 * crowd)))
        hila = [(0.02, -0.02)] if self.lateral else [(-0.095, 0.015), (0.1, -0.01)]
        glow = sum(self.film.glow(x, y, 0.035, 0.055) for x, y in hila)
        return (0.09 if self.lateral else 0.12) * (1 + 0.4 * crowd) * self.film.strokes(lines) + 0.13 * glow

    def _shadows(self, air: Grid) -> Grid:
        """What is dense within the lungs."""
        film, lung = self.film, 0.6 * air + 0.4 * self.lung  # less of what the heart lies over is seen
        shadow: Grid = np.zeros_like(air)
        mottle = self._mottle()
        if severity := self.amount("edema"):
            hila = [(0.02, 0.0)] if self.lateral else [(-0.13, 0.03), (0.14, 0.02)]
            haze = sum(film.glow(x, y, 0.11 + 0.05 * severity, 0.17 + 0.05 * severity) for x, y in hila)
            kerley = [
                (np.array([(s * x, y), (s * (x - 0.05), y + 0.006)]), 0.005)
                for s in (-1, 1)
                for x, y in zip(0.36 + 0.01 * self.places["edema"][2:7], np.linspace(0.06, 0.24, 5), strict=True)
            ]
            shadow = shadow + np.clip(haze, 0, 1.2) * (0.07 + 0.16 * severity) * (1 + 0.35 * mottle) * air
            shadow = shadow + (0.08 + 0.1 * severity) * film.strokes(kerley) * air * (not self.lateral)
        if severity := self.amount("consolidation"):
            x, y = self.spot("consolidation", -0.12, 0.17)
            size = 0.06 + 0.04 * severity
            shadow = shadow + (0.16 + 0.2 * severity) * (1 + 0.15 * mottle) * film.oval(x, y, size * 1.15, size, 0.9) * lung
        if strength := self.like("consolidation"):  # the edge of the scapula or of a fold of clothing
            x, y = self.spot("consolidation", -0.2, 0.0)
            edge = film.oval(x + 0.05 * np.sign(x), y, 0.05, 0.13, 0.06, -15 * np.sign(x))
            shadow = shadow + (0.05 + 0.05 * strength) * edge
        if severity := self.amount("pneumonia"):
            x, y = self.spot("pneumonia", -0.05, 0.2)
            offsets = np.random.default_rng(int(1e6 * self.places["pneumonia"][6])).normal(0, 0.05, (6, 2))
            patches = sum(film.glow(x + dx, y + dy, 0.028, 0.028) for dx, dy in offsets)
            shadow = shadow + (0.08 + 0.16 * severity) * np.clip(patches, 0, 1) * (1 + 0.4 * mottle) * lung
        if strength := self.like("pneumonia"):  # crossing vessels
            x, y = self.spot("pneumonia", 0.05, 0.2)
            cross = [(np.array([(x - a, y - b), (x + a, y + b)]), 0.008) for a, b in ((0.05, 0.03), (0.045, -0.03), (0.01, 0.05))]
            shadow = shadow + (0.07 + 0.07 * strength) * film.strokes(cross) * air
        if severity := self.amount("atelectasis"):
            x, y = self.spot("atelectasis", 0.1, 0.2)
            tilt, reach = 0.6 * (self.places["atelectasis"][4] - 0.5), 0.08 + 0.05 * severity
            wedge = ramp(0.013 + 0.013 * severity - np.abs(film.y - y - tilt * (film.x - x)), 0.014)
            shadow = shadow + (0.15 + 0.16 * severity) * wedge * ramp(reach - np.abs(film.x - x), 0.03) * lung
        if strength := self.like("atelectasis"):  # a fissure or a scar
            x, y = self.spot("atelectasis", -0.1, 0.1)
            line = np.array([(x - 0.11, y + 0.012), (x, y), (x + 0.11, y + 0.004)])
            shadow = shadow + (0.09 + 0.08 * strength) * film.strokes([(line, 0.007)], 0.002) * lung
        if severity := self.amount("lung_lesion"):
            for k in range(1 + round(2 * severity * self.places["lung_lesion"][5])):
                x, y = self.spot("lung_lesion", -0.22, 0.18)
                x, y = x * (-1) ** k, y + 0.11 * k * (-1 if y > 0 else 1)
                radius = 0.022 + 0.026 * severity
                shadow = shadow + (0.16 + 0.16 * severity) * film.oval(x, y, radius, radius, 0.3) * lung
        if strength := self.like("lung_lesion"):  # nipples
            for x in (-0.22, 0.22) if not self.lateral else (-0.22,):
                shadow = shadow + (0.06 + 0.06 * strength) * film.oval(x, 0.17, 0.014, 0.014, 0.4)
        return shadow

    def _mottle(self) -> Grid:
        """A grainy texture around 0."""
        coarse = self.rng.normal(0, 1, (28, 28)).astype(np.float32)
        return cv2.resize(coarse, (self.film.width, self.film.height), interpolation=cv2.INTER_CUBIC)

    def _pleura(self, air: Grid) -> None:
        film, out = self.film, self.out
        either: Grid = np.ones_like(out, bool)
        if severity := self.amount("pleural_effusion"):
            place = self.places["pleural_effusion"]
            here = either if self.lateral or place[1] < 0.4 else self.side == self.which("pleural_effusion")
            height = 0.035 + 0.19 * severity
            surface = self.dome - 0.03 - height * (0.25 + 0.75 * np.clip((out - 0.1) / 0.28, 0, 1.2) ** 2)
            fluid = ramp(self.y - surface, 0.02) * ramp(self.wall + 0.005 - out, 0.015) * here
            fluid = fluid * ramp(self.dome + 0.06 - self.y, 0.02) * ramp(out - 0.05, 0.15)
            film.density += 0.36 * fluid * np.clip(air + 0.12, 0, 1)
        if strength := self.like("pleural_effusion"):  # a dome that bulges
            x = self.which("pleural_effusion") * 0.22 if not self.lateral else 0.05
            film.density += (0.2 + 0.1 * strength) * film.oval(x, BASE + 0.01, 0.085, 0.055 + 0.02 * strength, 0.12) * air
        if severity := self.amount("pneumothorax"):
            here = either if self.lateral else self.side == self.which("pneumothorax")
            depth = 0.03 + 0.09 * severity
            shrunk = np.clip((self.y - APEX - depth) / (BASE + 0.1 - APEX), 0, 1)
            rim = 0.4 * np.sqrt(1 - (1 - shrunk) ** 2.3) - depth * ramp(0.15 - self.y, 0.3)
            gas = ramp(out - rim, 0.008) * here * self.lung * ramp(0.2 - self.y, 0.2)
            line = np.exp(-(((out - rim) / 0.006) ** 2)) * here * self.lung * ramp(0.2 - self.y, 0.1)
            film.density += -(0.09 + 0.04 * severity) * gas + (0.1 + 0.05 * severity) * line
        if strength := self.like("pneumothorax"):  # a skin fold: an edge that goes on outside the lung, nothing dark
            beside = film.x - 0.15 * film.y - (self.which("pneumothorax") * 0.29 if not self.lateral else 0.12)
            film.density += (0.06 + 0.05 * strength) * ramp(beside, 0.006) * np.exp(-np.clip(beside, 0, None) / 0.03)
        if severity := self.amount("pleural_other"):
            here = either if self.lateral else self.side == self.which("pleural_other")
            thick = 0.02 + 0.03 * severity
            rind = ramp(out - self.wall + thick, 0.008) * ramp(self.y + 0.2, 0.1) * ramp(0.17 - self.y, 0.1)
            film.density += (0.18 + 0.14 * severity) * rind * here * self.lung
        if strength := self.like("pleural_other"):  # the shadow beside the ribs
            film.density += (0.04 + 0.03 * strength) * ramp(out - self.wall + 0.05, 0.06) * self.lung

    def _devices(self) -> None:
        severity, place = self.amount("support_devices"), self.places["support_devices"]
        if not severity:
            return
        film, side = self.film, self.which("support_devices")
        kinds = np.argsort(place[1:6])[: 1 + round(2 * severity)]
        way = np.linspace(0, 1, 7)[:, None]

        def bent(*points: tuple[float, float]) -> np.ndarray:
            corners = np.array(points)
            at = np.linspace(0, len(corners) - 1, 16)
            return np.stack([np.interp(at, range(len(corners)), corners[:, k]) for k in (0, 1)], 1)

        lines: list[tuple[np.ndarray, float]] = []
        flat = 0.35 if self.lateral else 1.0
        if 0 in kinds:  # central line
            lines.append((bent((side * 0.3 * flat, -0.34), (side * 0.12 * flat, -0.31), (-0.045, -0.2), (-0.05, 0.03)), 0.009))
        if 1 in kinds:  # pacemaker
            lines.append((bent((0.24 * flat, -0.22), (0.05, -0.25), (-0.05, -0.05), (0.02, 0.19), (0.09, 0.2)), 0.008))
            box = film.oval(0.27 * flat, -0.22, 0.06 * (0.5 + 0.5 * flat), 0.05, 0.1)
            film.density = np.maximum(film.density, 0.95 * box)
        if 2 in kinds:  # leads on the skin
            for k in (-1, 1):
                a, b = np.array((k * 0.25 * flat, -0.1 + 0.1 * place[6])), np.array((k * 0.4 * flat, 0.45))
                lines.append((a + (b - a) * way + np.array((0.02, 0)) * np.sin(6 * way), 0.006))
                film.density = np.maximum(film.density, 0.9 * film.oval(a[0], a[1], 0.016, 0.016, 0.3))
        if 3 in kinds:  # breathing tube
            lines.append((bent((0.0, -0.5), (0.005, -0.3), (0.0, -0.12)), 0.014))
        if 4 in kinds:  # feeding tube
            lines.append((bent((0.012, -0.5), (0.012, 0.0), (0.03, 0.25), (0.1, 0.36), (0.2, 0.38)), 0.008))
        film.density += 0.33 * np.clip(1.4 * film.strokes(lines, 0.002), 0, 1)
