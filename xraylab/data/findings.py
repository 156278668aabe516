"""The vocabulary of findings and of views that all datasets of chest X-rays share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xraylab.errors import UserError, did_you_mean, require_each_once

#: of CheXpert and MIMIC-CXR, in the order of their label files
CHEXPERT = (
    "no_finding", "enlarged_cardiomediastinum", "cardiomegaly", "lung_opacity", "lung_lesion", "edema", "consolidation",
    "pneumonia", "atelectasis", "pneumothorax", "pleural_effusion", "pleural_other", "fracture", "support_devices",
)  # fmt: skip
#: of the CheXpert competition
COMPETITION = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural_effusion")
#: of ChestX-ray14
NIH = (
    "atelectasis", "cardiomegaly", "pleural_effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
    "consolidation", "edema", "emphysema", "fibrosis", "pleural_thickening", "hernia",
)  # fmt: skip
SAME = {"airspace_opacity": "lung_opacity", "effusion": "pleural_effusion", "pleural": "pleural_thickening"}

#: kinds of view that a choice stands for; frontal: known to be that and no more
VIEWS = {
    "frontal": ("pa", "ap", "frontal"),
    "lateral": ("lateral",),
    "pa": ("pa",),
    "ap": ("ap",),
    "all": ("pa", "ap", "frontal", "lateral", "other"),
}


def finding(name: str) -> str:
    """A finding's name in the vocabulary: ``Airspace Opacity`` and ``lung_opacity`` are one."""
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return SAME.get(name, name)


def spelled(label: str) -> str:
    """A finding as the published lists spell it: ``Pleural Effusion``."""
    return label.replace("_", " ").title()


def chosen(findings: str | Sequence[str], known: Sequence[str], on_request: Sequence[str] = ()) -> tuple[str, ...]:
    """The findings that a key stands for, in the order given.

    Args:
        findings: ``all``, ``competition``, one name or a list of names, in any spelling.
        known: names that the dataset has.
        on_request: others that it has, which ``all`` does not stand for.

    Raises:
        UserError: one that it does not have, or one twice.
    """
    names = list(findings) if isinstance(findings, list | tuple) else [str(findings)]
    if names == ["all"]:
        return tuple(known)
    names = list(COMPETITION) if names == ["competition"] else [finding(str(name)) for name in names]
    known = [*known, *on_request]
    shown = ",".join(map(str, findings)) if isinstance(findings, list | tuple) else findings
    words = f"findings={shown}: it is all, competition, or some of these, each once: {', '.join(known)}."
    require_each_once(names, known, words)
    return tuple(names)


def wanted_views(view: str | Sequence[str]) -> tuple[str, ...]:
    """The kinds of view that a key stands for.

    Args:
        view: ``frontal``, ``lateral``, ``all``, ``pa``, ``ap``, or a list of them.

    Raises:
        UserError: it is none of these.
    """
    names = [str(name) for name in view] if isinstance(view, list | tuple) else [str(view)]
    unknown = [name for name in names if name not in VIEWS]
    if unknown or not names:
        hint = did_you_mean(unknown[0], VIEWS) if unknown else ""
        raise UserError(f"view={','.join(names)}: it is {', '.join(VIEWS)}, or a list of them.{hint}")
    return tuple(dict.fromkeys(kind for name in names for kind in VIEWS[name]))
