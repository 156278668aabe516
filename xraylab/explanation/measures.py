"""How good maps are: against boxes, chance and a guess at the centre; by deletion and insertion; and against random weights.

Shapes: I images of a study, H x W their pixels.
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from xraylab.data.boxes import Box
from xraylab.data.preprocessing import pack
from xraylab.errors import UserError
from xraylab.evaluation import intervals
from xraylab.evaluation.intervals import Interval
from xraylab.explanation.explanations import Explainer, Key
from xraylab.explanation.maps import StudyMaps
from xraylab.explanation.pictures import peak_of
from xraylab.system.progress import watched
from xraylab.training.study_module import StudyModule

log = logging.getLogger(__name__)

LEAST = 20  # patients that an interval needs
FLOOR = 0.1  # of the variance of a share, which that of an energy has at least
SPREAD = 0.25  # of the centre's guess, a bell whose deviation is that share of each side and of the depth
FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the pixels that are deleted or inserted
BLUR = 0.1  # of the longer side, of what pixels are deleted by
SURVIVES = 0.5  # rank correlation with maps of random weights from which on a map explains nothing

#: difference -> what is compared, and with what
DIFFERENCES = {
    "pointing_chance": ("pointing", "chance"), "pointing_centre": ("pointing", "centre"),
    "energy_chance": ("energy", "chance"), "energy_centre": ("energy", "bell"),
}  # fmt: skip
#: measure -> what it is; those that end in _chance and _centre are differences, and are what methods are judged by
MEASURES = {
    "pointing": "share of studies whose largest value, over all images, lies in a box of the finding",
    "energy": "share of the positive values that lies in boxes of the finding",
    "pointing_chance": "pointing less that of a place at random: the boxes' share of all pixels",
    "pointing_centre": "pointing less that of the middle of the picture, or of the middle slice",
    "energy_chance": "energy less that of a map that is the same everywhere",
    "energy_centre": "energy less that of a bell round the middle",
    "deletion": "how much sooner the probability falls when the pixels of the largest values are blurred first, than any pixels",
    "insertion": "how much sooner it rises when those pixels of a blurred study are made sharp first",
    "random_weights": "rank correlation with maps of the same network with random weights; a map that survives explains nothing",
}


def interval_of(name: str, values: Mapping[str, Sequence[float]], patients: Sequence[str]) -> Interval:
    """The mean over studies of a measure, and its 95% interval, for which studies of one patient may depend on each other.

    Pointing has the exact interval of a share, less the mean of chance, which the boxes fix; of two shares that of their
    difference. The rest has Student's t, and energies a variance that no sample can lack. In simulations of 20 to 100 studies
    they cover .92 and more, but for energies near 0 in 20 (.90).

    >>> hits = {"pointing": [0, 1] * 20}
    >>> found = interval_of("pointing", hits, [str(k) for k in range(40)])
    >>> found.value, round(found.low, 2), round(found.high, 2)
    (0.5, 0.34, 0.66)
    """
    what, base = DIFFERENCES.get(name, (name, None))
    names, of = np.unique(np.asarray(patients), return_inverse=True)
    x = np.asarray(values[what], float)
    y = np.zeros_like(x) if base is None else np.asarray(values[base], float)
    if len(names) < LEAST:
        return intervals.none(float((x - y).mean()), f"{len(names)} patients, of {LEAST} that it takes")
    if what == "pointing":
        share = intervals.share(x == 1, of, len(names))
        if base == "centre" and np.isin(y, (0, 1)).all():
            return intervals.difference(share, intervals.share(y == 1, of, len(names)))
        less = float(y.mean())
        return replace(share, value=share.value - less, low=share.low - less, high=share.high - less)
    least = FLOOR * x.mean() * (1 - x.mean()) / len(x) if what == "energy" else 0.0
    return intervals.any_mean(x - y, of, len(names), least)


def located(heat: Mapping[Key, np.ndarray], boxes: Mapping[Key, Sequence[Box]]) -> dict[str, float]:
    """Pointing and energy of one study's map, and the same of chance and of a guess at the centre.

    Args:
        heat: of each image float (H,W), see :meth:`Explanation.heat`.
        boxes: of the finding, by image.

    >>> heat = {("a.png", None): np.eye(4)[[0, 0, 0, 0]]}  # all in the left column
    >>> found = located(heat, {("a.png", None): [Box(0, 0, 0.25, 1)]})
    >>> found["pointing"], found["energy"], found["chance"]
    (1.0, 1.0, 0.25)
    """
    inside = {key: mask_of(values.shape, boxes.get(key, ())) for key, values in heat.items()}
    pixels = sum(values.size for values in heat.values())
    chance = sum(int(mask.sum()) for mask in inside.values()) / pixels
    top = max(heat, key=lambda key: float(heat[key].max()))
    positive = {key: np.maximum(values, 0) for key, values in heat.items()}
    whole = sum(float(values.sum()) for values in positive.values())
    hit = bool(whole) and bool(inside[top][peak_of(heat[top])])  # a map of nothing points nowhere
    centre, bell = centre_guess(heat, inside)
    energy = sum(float(positive[key][mask].sum()) for key, mask in inside.items()) / (whole or 1.0)
    return {"pointing": float(hit), "energy": energy, "chance": chance, "centre": centre, "bell": bell}


def mask_of(shape: tuple[int, ...], boxes: Sequence[Box]) -> np.ndarray:
    """bool (H,W), the pixels whose middles lie in a box."""
    y, x = ((np.arange(side) + 0.5) / side for side in shape)
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask |= np.outer((y >= box.top) & (y < box.bottom), (x >= box.left) & (x < box.right))
    return mask


def centre_guess(heat: Mapping[Key, np.ndarray], inside: Mapping[Key, np.ndarray]) -> tuple[float, float]:
    """Pointing and energy of a guess at the middle: of the middle slices of each volume, and of each view."""
    depth: dict[str, list[Key]] = {}
    for key in heat:
        depth.setdefault(key[0] if key[1] is not None else f"{key[0]}#", []).append(key)
    hits, energy, whole = [], 0.0, 0.0
    for keys in depth.values():
        middle = keys[(len(keys) - 1) // 2]
        mask = inside[middle]
        hits.append(float(mask[mask.shape[0] // 2, mask.shape[1] // 2]))
        along = bell_of(len(keys))
        for weight, key in zip(along, keys, strict=True):
            bell = weight * np.outer(*(bell_of(side) for side in inside[key].shape))
            energy, whole = energy + float(bell[inside[key]].sum()), whole + float(bell.sum())
    return float(np.mean(hits)), energy / whole


def bell_of(count: int) -> np.ndarray:
    """float (count,), a bell round the middle."""
    place = (np.arange(count) + 0.5) / count - 0.5
    return np.exp(-0.5 * (place / SPREAD) ** 2)


def curves(module: StudyModule, bags: Sequence[np.ndarray], maps: StudyMaps, seed: int) -> dict[str, float]:
    """Deletion and insertion of one study (Petsiuk et al. 2018), each less that of pixels in random order.

    Args:
        bags: the study as the network gets it.
        maps: of one finding.

    Returns:
        ``deletion``: area over the curve of the probability less that of random pixels; ``insertion``: area under it, likewise.
    """
    images = pack(bags)
    height, width = images.shape[-2:]
    heat = np.stack([maps.pixels(k, height, width) for k in range(len(images))])
    sigma = BLUR * max(height, width)
    blurred = [np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in bag]).astype(np.uint8) for bag in bags]
    away, k = pack(blurred), module.labels.index(maps.finding)
    row = torch.repeat_interleave(torch.arange(len(bags)), torch.tensor([len(bag) for bag in bags]))
    rng = np.random.default_rng(seed)
    areas: dict[str, list[float]] = {"deletion": [], "insertion": []}
    for values in (heat, rng.random(heat.shape)):
        rank = rankdata(-values, method="ordinal").reshape(heat.shape) - 1
        for name, (start, end) in {"deletion": (images, away), "insertion": (away, images)}.items():
            p = []
            for fraction in FRACTIONS:
                gone = torch.from_numpy(rank < fraction * rank.size)[:, None]
                changed = torch.where(gone, end, start).to(module.device)
                with torch.no_grad():
                    logits = module.net.eval()(changed, row.to(module.device), 1)
                p.append(float(module.loss.log_odds(logits.double())[0, k].sigmoid()))
            areas[name].append(float(np.trapezoid(p, FRACTIONS)))
    return {"deletion": areas["deletion"][1] - areas["deletion"][0], "insertion": areas["insertion"][0] - areas["insertion"][1]}


def randomised(module: StudyModule, seed: int) -> StudyModule:
    """A copy of a model whose every layer is as before any training."""
    other = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in other.net.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    return other


def alike(first: Mapping[Key, np.ndarray], second: Mapping[Key, np.ndarray]) -> float:
    """The rank correlation (Spearman) of two maps of one study, each image on 32 x 32 places."""
    a, b = (rankdata(np.concatenate([cv2.resize(of[key], (32, 32)).ravel() for key in first])) for of in (first, second))
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0


class BoxOn(NamedTuple):
    """A box on an image; ``unit`` is the size of the picture that its pixels are of, None: of the image as it is."""

    image: Key
    pixels: tuple[float, float, float, float]  # x, y, width, height
    unit: tuple[float, float] | None

    def of(self, height: int, width: int) -> Box:
        """As fractions of an image of that size."""
        across, down = self.unit or (width, height)
        x, y, wide, high = self.pixels
        return Box(x / across, y / down, (x + wide) / across, (y + high) / down)


def boxes_by_study(explainer: Explainer, frame: pd.DataFrame) -> dict[tuple[str, str], list[BoxOn]]:
    """The boxes of a table that are of each study and finding of an input, by (study, finding).

    A box is of the image whose reference is its ``image``, or ends in it.
    """
    names: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for study, image in explainer.images():
        names[image.rpartition("/")[2]].append((study, image))
    found: dict[tuple[str, str], list[BoxOn]] = defaultdict(list)
    for row in frame[frame["finding"].isin(explainer.logits)].to_dict("records"):
        unit = (float(row["unit_width"]), float(row["unit_height"])) if row["unit_width"] else None
        pixels = (float(row["x"]), float(row["y"]), float(row["width"]), float(row["height"]))
        for study, image in dict.fromkeys(names.get(row["image"].rpartition("/")[2], ())):
            if image == row["image"] or image.endswith(f"/{row['image']}"):
                key = (image, None if pd.isna(row["slice"]) else int(row["slice"]))
                found[study, row["finding"]].append(BoxOn(key, pixels, unit))
    return found


class Estimate(NamedTuple):
    """A mean over studies with its 95% interval; NaN and the reason where there is none."""

    n: int  # studies
    patients: int
    value: float
    low: float
    high: float
    reason: str | None

    def record(self) -> dict[str, float | int | str | None]:
        """For JSON: null where there is no interval."""
        return {name: None if value != value else value for name, value in self._asdict().items()}


@dataclass
class Measured:
    """Values of one method, study by study.

    Attributes:
        values: measure to values.
        patients: measure to the patient of each value.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    patients: dict[str, list[str]] = field(default_factory=dict)

    def add(self, found: Mapping[str, float], patient: str) -> None:
        """A study's values."""
        for name, value in found.items():
            self.values.setdefault(name, []).append(value)
            self.patients.setdefault(name, []).append(patient)

    def estimates(self) -> dict[str, Estimate]:
        """Each measure's mean, with its interval."""
        found = {}
        for name in MEASURES:
            what = DIFFERENCES.get(name, (name,))[0]
            if what in self.values:
                of = self.patients[what]
                i = interval_of(name, self.values, of)
                found[name] = Estimate(len(of), len(set(of)), i.value, i.low, i.high, i.reason)
        return found


def measure(
    explainer: Explainer, boxes: pd.DataFrame | None, findings: Sequence[str] | None, methods: Sequence[str],
    limit: int | None, drawn: int, seed: int,
) -> dict[str, dict[str, Estimate]]:  # fmt: skip
    """Judge methods on the studies of an input that have a box of a finding, or where there are none, on those called positive.

    Args:
        boxes: of :func:`xraylab.data.boxes.read_boxes`; None: there are none, and so no pointing and no energy.
        findings: None: all.
        limit: cases (a study and a finding) at most for deletion, insertion and random weights, which take longest; None: all.
        drawn: images of a study at most that are occluded.
        seed: of random pixels and weights.

    Returns:
        Method to measure to estimate; a method that is not for this model is left out, and said.

    Raises:
        UserError: there is no such study.
    """
    of = boxes_by_study(explainer, boxes) if boxes is not None else {}
    cases: list[tuple[str, str]] = [key for key in of if findings is None or key[1] in findings]
    if boxes is None:
        cases = [
            (study, name) for study in explainer.ids for name in explainer.called(study) if findings is None or name in findings
        ]
    if not cases:
        raise UserError(
            "measure=true: no study of this input has a box of a finding of this model, so there is nothing to measure."
        )
    other = [randomised(module, seed) for module in explainer.modules]
    single, left = len(explainer.members) == 1, list(methods)
    measured: dict[str, Measured] = {method: Measured() for method in methods}
    for number, (study, finding) in enumerate(watched(cases, len(cases), "measuring maps")):
        read, patient = explainer.read(study), explainer.patients[study] or study
        for method in list(left):
            most = drawn if method == "occlusion" else None
            try:
                (found,) = explainer.explained(study, read, [finding], method, most)
            except UserError as error:
                log.info("%s is left out: %s", method, error)
                left.remove(method)
                continue
            heat = found.heat()
            if (study, finding) in of:
                boxes_on: dict[Key, list[Box]] = defaultdict(list)
                for box in of[study, finding]:
                    if box.image in heat:
                        boxes_on[box.image].append(box.of(*heat[box.image].shape))
                measured[method].add(located(heat, boxes_on), patient)
            if limit is not None and number >= limit:
                continue
            (random,) = explainer.explained(study, read, [finding], method, most, other)
            measured[method].add({"random_weights": alike(heat, random.heat())}, patient)
            if single and read[0] is not None:
                measured[method].add(curves(explainer.modules[0], read[0].bags, found.maps[0], seed), patient)
    return {method: measured[method].estimates() for method in left}


def recommended(found: Mapping[str, Mapping[str, Estimate]]) -> tuple[str | None, str]:
    """The method that points best, and why it or none is recommended.

    It has to beat a guess at the centre by an interval that excludes 0, and not to survive random weights.
    """
    if not any("pointing" in of for of in found.values()):
        return None, "no boxes are known, so no method is recommended"
    judged = {
        method: of for method, of in found.items()
        if of["pointing_centre"].low > 0 and not of["random_weights"].value > SURVIVES
    }  # fmt: skip
    if not judged:
        return None, "no method beats a guess at the centre by an interval that excludes 0, and forgets random weights"
    best = max(judged, key=lambda method: judged[method]["pointing"].value)
    return best, "it points best of those that beat a guess at the centre"


def as_text(found: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A table, one row a measure and one column a method."""
    rows = [["", *found]]
    for name in [name for name in MEASURES if any(name in of for of in found.values())]:
        n = max(of[name].n for of in found.values() if name in of)
        sign = "" if name in ("pointing", "energy") else "+"
        rows.append([f"{name} (n {n})", *(_cell(of.get(name), sign) for of in found.values())])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _cell(of: Estimate | None, sign: str) -> str:
    if of is None:
        return ""
    return f"{of.value:{sign}z.3f} " + ("(no interval)" if of.reason else f"({of.low:z.3f} to {of.high:z.3f})")
