"""A model's most confident mistakes and best calls, with pictures: chosen and drawn at evaluation, while the data is at hand.

``figures/cases/cases.csv`` has one row a case: ``label, kind, id, p, logit, y, what, picture``, the most confident mistakes
first.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xraylab.data.study_table import StudyTable
from xraylab.evaluation.predictions import CERTAIN, THRESHOLD, PredictionTable, Scoring, scored_labels
from xraylab.system.files import beside

FOLDER = Path("figures") / "cases"
MAPS = "maps.csv"  # of the cases that have been explained, in that folder
EACH = 12  # cases of a finding where nobody says how many
ALL = 60  # pictures, at most, of all findings together
SIDE = 192  # pixels, at most, of a picture's longer side
KINDS = ("false positive", "false negative", "true positive", "true negative")


def choose_cases(table: PredictionTable, each: int, scoring: Scoring = CERTAIN) -> pd.DataFrame:
    """The cases of a prediction table: of each finding the most confident mistakes, and half as many confident right calls.

    Args:
        table: by study.
        each: at most this many of a finding, and no more than 60 of all.
        scoring: what blank and uncertain labels count as.

    Returns:
        ``label, kind, id, p, logit, y, row``: by finding, kinds in the order of ``KINDS``, each by falling confidence, which
        logits tell where probabilities are 0 or 1; row is the place in the table.
    """
    labels = table.labels
    each = min(each, ALL // len(labels)) if len(labels) <= ALL else min(each, 1)
    mistakes = each - each // 3
    quota = dict(zip(KINDS, (mistakes - mistakes // 2, mistakes // 2, each // 3 - each // 6, each // 6), strict=True))
    found = []
    for label in labels[:ALL]:
        truth = scored_labels(table.raw(label), scoring)
        p, z = table.probability(label), table.log_odds(label)
        for kind, most in quota.items():
            positive, right = kind.endswith("positive"), kind.startswith("true")
            called = p >= THRESHOLD if positive else p < THRESHOLD
            rows = np.flatnonzero(called & (truth == (positive == right)))
            confidence = z[rows] if positive else -z[rows]
            for row in rows[np.argsort(-confidence, kind="stable")][:most]:
                found.append((label, kind, table.frame["id"].iloc[row], p[row], z[row], int(truth[row]), int(row)))
    return pd.DataFrame(found, columns=["label", "kind", "id", "p", "logit", "y", "row"])


def write_cases(
    directory: Path, table: StudyTable, predictions: PredictionTable, rows: np.ndarray, each: int, scoring: Scoring = CERTAIN,
) -> None:  # fmt: skip
    """Write ``figures/cases``: a picture of each case, the first view or middle slice, and ``cases.csv``.

    What was there of an earlier evaluation is removed.

    Args:
        directory: of the run.
        table: the data that the predictions are of.
        predictions: a prediction table, by study.
        rows: (N,) the places of its rows in ``table.frame``.
        each: see :func:`choose_cases`; 0: none.
    """
    folder = directory / FOLDER
    if folder.is_dir():
        shutil.rmtree(folder)
    cases = choose_cases(predictions, each, scoring)
    if cases.empty:
        return
    drawn: dict[int, tuple[str, str]] = {}  # a study may be a case of several findings
    for row in dict.fromkeys(cases["row"]):
        references = table.frame["images"].iloc[rows[row]]
        k = 0 if table.views or table.parts else len(references) // 2
        images = table.source.read(references[k : k + 1])
        i = 0 if table.views else len(images) // 2
        by_file = table.views or (len(references) > 1 and not table.parts)
        place, of = (k, len(references)) if by_file else (i, len(images))
        what = f"{'view' if table.views else 'slice'} {place + 1} of {of}" if of > 1 else ""
        what = " ".join([*table.parts[:1], what]).strip()
        name = f"{len(drawn) + 1:02d}.png"
        with beside(folder / name) as partial:
            _write_png(partial, images[i], table.data)
        drawn[row] = (name, what)
    pictures = pd.DataFrame([drawn[row] for row in cases["row"]], columns=["picture", "what"])
    split = predictions.frame["split"].iloc[0]
    out = pd.concat([cases.drop(columns="row"), pictures], axis=1).assign(split=split, data=table.data)
    with beside(folder / "cases.csv") as partial:
        out.to_csv(partial, index=False)


def _write_png(path: Path, image: np.ndarray, data: str) -> None:
    """uint8 (H,W) or (H,W,3) as a small PNG that says of what data it is."""
    scale = min(1.0, SIDE / max(image.shape[:2]))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    about = PngInfo()
    about.add_text("Description", data)
    Image.fromarray(np.ascontiguousarray(image)).save(path, format="png", pnginfo=about)
