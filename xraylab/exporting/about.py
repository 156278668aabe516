"""What a file says of itself: labels, inputs, thresholds, and what it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import xraylab
from xraylab.data.study_table import SYNTHETIC
from xraylab.evaluation.calibration import scaled
from xraylab.evaluation.probabilities import logit
from xraylab.evaluation.result import Chosen
from xraylab.exporting.program import StudyProgram, of_volumes
from xraylab.exporting.runs import Leaf, Models, leaves
from xraylab.run import home_of

NOTICE = "research only, no medical device"
SYNTHETIC_NOTICE = "synthetic sample: trained on drawings, results mean nothing for patients"


def said(
    models: Models, program: StudyProgram, inputs: Mapping[str, str], shapes: Iterable[tuple[int | None, ...]],
    temperatures: Mapping[str, float], chosen: Chosen,
) -> dict[str, Any]:  # fmt: skip
    """What is written into a file, as JSON by key.

    Args:
        inputs: what is seen, to the name of the input.
        shapes: of the inputs; None: any.
        temperatures: that are applied, by label.
        chosen: on validation, the content of ``operating_points.json``.
    """
    ends = list(leaves(models))
    data = list(dict.fromkeys(leaf.module.data for leaf in ends))
    synthetic = SYNTHETIC in data
    return {
        "labels": list(program.labels),
        "xraylab": xraylab.__version__,
        "run": name_of(models.run),
        "data": ", ".join(data),
        "synthetic": synthetic,
        "notice": f"{NOTICE}; {SYNTHETIC_NOTICE}" if synthetic else NOTICE,
        "inputs": {
            name: input_of(seen, [leaf for leaf in ends if seen in leaf.sees], shape)
            for (seen, name), shape in zip(inputs.items(), shapes, strict=True)
        },
        "outputs": {
            "probabilities": "float32 (labels,), of each label in the order of labels; as predict writes them"
            + (" with calibrate=true" if temperatures else ""),
            **({"logits": "float32 (labels,), natural log-odds before calibration"} if program.has_logits else {}),
        },
        "calibrated": bool(temperatures),
        "temperatures": dict(temperatures),
        "operating_points": operating_points(program.labels, temperatures, chosen),
        "models": [model_of(leaf) for leaf in ends],
        **({} if isinstance(models, Leaf) else {"combination": {"method": models.combination.method}}),
    }


def name_of(run: Path) -> str:
    """The run as outputs are ordered, ``mrnet/2026-01-31_12-00-00``: no path of the machine; of a checkpoint alone its file."""
    home = home_of(run)
    return run.name if home is None else "/".join(home.absolute().parts[-2:])


def input_of(seen: str, ends: list[Leaf], shape: tuple[int | None, ...]) -> dict[str, Any]:
    """What an input wants, in words and numbers.

    Args:
        seen: the plane; empty: of no plane.
        ends: the models that see it.
        shape: None: any.
    """
    images = ends[0].module.images
    what = "slices of a volume" if all(of_volumes(leaf.module) for leaf in ends) else "pictures of a study"
    axes = ["pictures", "height", "width", "red, green, blue"]
    return {
        "dtype": "uint8",
        "shape": [axis if size is None else size for axis, size in zip(axes[: len(shape)], shape, strict=True)],
        "plane": seen or None,
        "what": f"{what}, as decoded and windowed to 8 bits, before resizing, all of one size; at least one",
        "bits_of_16_bit_files": images["bits"],
    }


def model_of(leaf: Leaf) -> dict[str, Any]:
    """A model, and what is done to its pictures inside the file."""
    module = leaf.module
    return {
        "run": name_of(leaf.run),
        "sees": [seen for seen in leaf.sees if seen],
        "backbone": str(dict(module.net.backbone.hparams).get("name") or type(module.net.backbone).__name__),
        "pool": type(module.net.pool).__name__,
        "preprocessing": {**module.preprocessing, "range_of": "volume" if of_volumes(module) else "picture"},
    }


def operating_points(labels: Iterable[str], temperatures: Mapping[str, float], chosen: Chosen) -> dict[str, Any]:
    """Thresholds by rule and label, of the probabilities that the file gives: at or above it a study is called positive.

    Args:
        temperatures: that are applied: they move thresholds as they move probabilities, so calls stay what they were.
        chosen: on validation; empty: nothing is known.

    Returns:
        ``{"chosen_on", "rules": {rule: words}, "thresholds": {rule: {label: number or null}}}``; empty where nothing is known.
    """
    if not chosen:
        return {}
    found: dict[str, dict[str, float | None]] = {rule: {} for rule in chosen["rules"]}
    for label in labels:
        for rule, of in found.items():
            value = chosen["labels"][label]["thresholds"][rule]["value"] if label in chosen["labels"] else None
            of[label] = value if value is None or label not in temperatures else moved(value, temperatures[label])
    return {"chosen_on": chosen["chosen_on"], "rules": dict(chosen["rules"]), "thresholds": found}


def moved(threshold: float, temperature: float) -> float:
    """A threshold of probabilities as that of calibrated ones; of 0, all, and from 1 on, none, it is that still."""
    if not 0 < threshold < 1:
        return threshold
    return float(scaled(logit(np.array([threshold])), temperature)[0])
