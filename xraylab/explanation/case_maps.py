"""Maps of the cases that a run's report shows: drawn when they are asked for, for they take the model and its data."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from xraylab.errors import UserError
from xraylab.explanation.explanations import Explainer, Explanation
from xraylab.explanation.maps import METHODS
from xraylab.explanation.pictures import overlay, write_png
from xraylab.inference.cases import FOLDER, MAPS, SIDE
from xraylab.inference.studies import Options
from xraylab.run import Run, read_record
from xraylab.system.files import beside
from xraylab.system.progress import watched

COLUMNS = ["label", "kind", "id", "what", "method", "picture", "split", "data"]


def explain_cases(run: Path, method: str = METHODS[0]) -> int:
    """Write ``figures/cases/maps.csv`` and, of each case of a run, the image of the largest share under its map.

    Args:
        run: its directory; it is explained as it was evaluated, with that checkpoint and that root.
        method: see :func:`xraylab.explanation.maps.explain`.

    Returns:
        How many cases have a map; one whose images can no longer be read has none.

    Raises:
        UserError: the run has no cases, or its data is not there, or a method is not for this model.
    """
    file = run / FOLDER / "cases.csv"
    if not file.is_file():
        raise UserError(f"explain=true: {run} has no cases with pictures: it has no model of its own, or was trained by cases=0.")
    cases = pd.read_csv(file, dtype=str, keep_default_na=False)
    asked = read_record(Run(run).evaluation_file, "data").get("evaluated", {}).get("options", {})
    options = Options(str(asked.get("checkpoint", "best")), asked.get("root"), "32")
    explainer = Explainer(run, cases["split"].iloc[0], options, cases["id"].unique().tolist())
    kinds: dict[str, dict[str, str]] = {}  # study -> finding -> kind
    for study, label, kind in zip(cases["id"], cases["label"], cases["kind"], strict=True):
        kinds.setdefault(study, {})[label] = kind
    split, data = cases["split"].iloc[0], cases["data"].iloc[0]
    rows: list[tuple[str, ...]] = []
    studies = [study for study in kinds if study in explainer.ids]
    for study in watched(studies, len(studies), "explaining cases"):
        try:
            read = explainer.read(study)
        except UserError:
            continue
        for found in explainer.explained(study, read, list(kinds[study]), method):
            name = f"map_{len(rows) + 1:02d}.png"
            picture, words = _deciding(found)
            write_png(run / FOLDER / name, picture, data)
            rows.append((found.finding, kinds[study][found.finding], study, words, method, name, split, data))
    places = {key: k for k, key in enumerate(zip(cases["label"], cases["id"], strict=True))}
    rows.sort(key=lambda row: places[row[0], row[2]])
    with beside(run / FOLDER / MAPS) as partial:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(partial, index=False)
    return len(rows)


def _deciding(found: Explanation) -> tuple[np.ndarray, str]:
    """The image of the largest share under its map, small, and what to say of it."""
    pictures, maps = found.pictures[0], found.maps[0]
    k = int(np.argmax(maps.shares))
    heat, image = maps.pixels(k, *pictures[k].pixels.shape[:2]), pictures[k].pixels
    scale = min(1.0, SIDE / max(image.shape[:2]))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image, heat = (cv2.resize(of, size, interpolation=cv2.INTER_AREA) for of in (image, heat))
    of_several = [p for p in pictures if p.image == pictures[k].image]
    place = f"slice {pictures[k].slice} of {len(of_several)}" if pictures[k].slice else f"image {k + 1} of {len(pictures)}"
    whole = maps.probability if maps.of == "probability" else maps.logit
    x, y = maps.peak(k)
    where = f"brightest at {x:.0%} of its width, {y:.0%} of its height" if heat.max() > 0 else "nothing in it speaks for it"
    words = f"{place} adds {maps.shares[k]:+.3f} of the {maps.of} {whole:.3f}; {where}"
    return overlay(image, heat, float(heat.max()), ringed=True), words
