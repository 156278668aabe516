"""Findings of synthetic chest X-rays, and the labels that reports give them.

Findings come together as in life (edema with a large heart and effusions), and each has a fixed share of any number of
studies. A report is uncertain of subtle findings and of negatives with a mimic, and does not mention most negatives. The share
of labels that are uncertain, and how many of those are positive in truth, are arguments: they decide which policy for uncertain
labels is best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xraylab.data.findings import CHEXPERT, COMPETITION, finding
from xraylab.data.published import CHEXPERT_IMAGES
from xraylab.data.synthetic.chest_drawing import DRAWN, MIMICKED, Case
from xraylab.errors import UserError

Rates = float | Mapping[str, float] | None

SHARE = {
    "enlarged_cardiomediastinum": 0.12, "cardiomegaly": 0.25, "lung_lesion": 0.10, "edema": 0.22, "consolidation": 0.20,
    "pneumonia": 0.15, "atelectasis": 0.25, "pneumothorax": 0.10, "pleural_effusion": 0.30, "pleural_other": 0.07,
    "fracture": 0.08, "support_devices": 0.40,
}  # fmt: skip
#: of what findings have in common: being sick, and four pairs of causes
TOGETHER = {
    "enlarged_cardiomediastinum": (0.2, 0.3, 0, 0, 0), "cardiomegaly": (0.25, 0.55, 0, 0, 0), "lung_lesion": (0.1, 0, 0, 0, 0),
    "edema": (0.35, 0.6, 0, 0, 0), "consolidation": (0.3, 0, 0.55, 0, 0), "pneumonia": (0.3, 0, 0.65, 0, 0),
    "atelectasis": (0.3, 0, 0, 0.5, 0), "pneumothorax": (0.2, 0, 0, 0, 0.55), "pleural_effusion": (0.35, 0.35, 0, 0.45, 0),
    "pleural_other": (0.1, 0, 0, 0, 0), "fracture": (0.1, 0, 0, 0, 0), "support_devices": (0.45, 0, 0, 0, 0.45),
}  # fmt: skip
OPACITIES = ("consolidation", "edema", "atelectasis", "lung_lesion", "pneumonia")  # any of them is a lung opacity
MIMICS = {name: 0.3 if name in COMPETITION else 0.08 for name in MIMICKED}  # share of negatives with one
MENTIONED = {name: counts for name, counts in CHEXPERT_IMAGES.items() if name != "no_finding"}  # positive, negative, uncertain
#: of uncertain labels, how many are positive in truth
TRUTH = dict.fromkeys(MENTIONED, 0.5) | {
    "atelectasis": 0.85, "edema": 0.7, "pleural_effusion": 0.6, "cardiomegaly": 0.4, "pneumonia": 0.35, "consolidation": 0.25,
}  # fmt: skip


@dataclass(frozen=True)
class Cases:
    """Studies, by the order of ``findings.CHEXPERT``.

    Attributes:
        truth: bool (n,14).
        severity: float (n,14), over 0 to 1 where the finding is there, else 0.
        mimic: float (n,14), over 0 to 1 where there is a look-alike, else 0.
        reported: float32 (n,14), 1, 0, -1 uncertain or NaN not mentioned, as a report says.
    """

    truth: np.ndarray
    severity: np.ndarray
    mimic: np.ndarray
    reported: np.ndarray

    def case(self, study: int, seed: int) -> Case:
        """What one study's images show."""
        severity, mimic = (dict(zip(CHEXPERT, values[study], strict=True)) for values in (self.severity, self.mimic))
        return Case({n: severity[n] for n in DRAWN if severity[n]}, {n: mimic[n] for n in DRAWN if mimic[n]}, seed)


def draw_labels(count: int, seed: int | Sequence[int], uncertain: Rates = None, truth: Rates = None) -> Cases:
    """Findings of ``count`` studies and what reports say of them; the findings do not depend on the rates.

    Args:
        uncertain: of the labels that are mentioned, the share that is uncertain: for all findings, or by finding; those
            not named, or None: as published. It is less where a finding has too few positives or negatives for it.
        truth: of uncertain labels, the share that is positive in truth, likewise.

    Raises:
        UserError: a rate is outside 0-1, or names no finding.
    """
    shares = {name: n[2] / sum(n) for name, n in MENTIONED.items()} | _rates("uncertain", uncertain)
    truths = TRUTH | _rates("truth", truth)
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, 5))
    severity = {name: np.zeros(count) for name in CHEXPERT}
    mimic = {name: np.zeros(count) for name in CHEXPERT}
    for name in DRAWN:
        weight = np.array(TOGETHER[name])
        latent = common @ weight + rng.normal(size=count) * np.sqrt(1 - (weight**2).sum())
        order = np.argsort(-latent, kind="stable")
        sick, healthy = np.split(order, [max(1, round(SHARE[name] * count))])
        severity[name][sick] = _spread(len(sick), rng)
        alike = rng.permutation(healthy)[: round(MIMICS.get(name, 0) * len(healthy))]
        mimic[name][alike] = _spread(len(alike), rng)
    severity["lung_opacity"] = np.max([severity[name] for name in OPACITIES], axis=0)
    mimic["lung_opacity"] = np.max([mimic[name] for name in OPACITIES], axis=0) * (severity["lung_opacity"] == 0)
    healthy = np.sum([severity[name] for name in DRAWN if name != "support_devices"], axis=0) == 0
    severity["no_finding"] = healthy.astype(float)

    reported = np.full((count, len(CHEXPERT)), np.nan, np.float32)
    for name in MENTIONED:
        reported[:, CHEXPERT.index(name)] = _report(name, severity[name], mimic[name], shares[name], truths[name], rng)
    said = [CHEXPERT.index(name) for name in MENTIONED if name != "support_devices"]
    nothing = ~np.isin(reported[:, said], (1, -1)).any(axis=1)
    reported[nothing, CHEXPERT.index("no_finding")] = 1
    by_name = [np.stack([values[name] for name in CHEXPERT], axis=1) for values in (severity, mimic)]
    return Cases(by_name[0] > 0, by_name[0], by_name[1], reported)


def _spread(count: int, rng: np.random.Generator) -> np.ndarray:
    """Amounts from 0.15 to 1, evenly, in any order."""
    return rng.permutation(np.linspace(0.15, 1, count)) if count > 1 else np.full(count, 0.6)


def _rates(key: str, given: Rates) -> dict[str, float]:
    """A rate for each finding that is named, or for all."""
    if given is None:
        return {}
    named = {finding(str(k)): v for k, v in given.items()} if isinstance(given, Mapping) else dict.fromkeys(MENTIONED, given)
    for name, rate in named.items():
        if name not in MENTIONED:
            raise UserError(f"{key}: {name} is none of {', '.join(MENTIONED)}.")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise UserError(f"{key}={rate} of {name}: it is a number from 0 to 1.")
    return named


def _report(
    name: str, severity: np.ndarray, mimic: np.ndarray, share: float, truth: float, rng: np.random.Generator
) -> np.ndarray:
    """One finding's labels: of those mentioned ``share`` is uncertain, of which ``truth`` is positive, both to within one."""
    sick, healthy = np.flatnonzero(severity > 0), np.flatnonzero(severity == 0)
    positive, negative, _ = MENTIONED[name]
    ratio = negative / positive  # of negatives to positives that are certain
    doubt = len(sick) * (1 + ratio) * share / (1 - share + share * truth * (1 + ratio)) if share else 0.0
    room = len(healthy) - share * (1 - truth) * len(severity)  # for explicit negatives when nothing is left unsaid
    least = max(5, len(severity) / 20)  # so that a part of them can be scored
    explicit = round(max(0, min(max(least, ratio * (len(sick) - truth * doubt)), room)))
    doubts = min(
        share * (len(sick) + explicit) / max(1e-9, 1 - share * (1 - truth)),
        len(sick) / max(1e-9, truth),
        (len(healthy) - explicit) / max(1e-9, 1 - truth),
    )
    doubted, mistaken = round(truth * doubts), round((1 - truth) * doubts)
    values = np.full(len(severity), np.nan, np.float32)
    values[sick] = 1
    subtle = sick[np.argsort(severity[sick] + 0.1 * rng.random(len(sick)))]
    values[subtle[:doubted]] = -1
    near = healthy[np.argsort(-mimic[healthy] - 0.1 * rng.random(len(healthy)))]
    values[near[:mistaken]] = -1
    rest = near[mistaken:]
    values[rest[np.argsort(-rng.random(len(rest)) - 0.3 * (mimic[rest] > 0))][:explicit]] = 0
    return values
