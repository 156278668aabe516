"""A synthetic MURA-v1.1: drawings of upper-extremity X-rays in the published layout, with signs that can be learned.

An abnormal study has one sign, at a place on one bone, in one or more of its views: a fracture, a jagged dark gap whose
fragments are displaced; or hardware, a bright plate with screws, a rod, or pins. Pose, exposure, noise, borders and bright
side markers are drawn for every image alike, so brightness tells nothing.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from xraylab.data.boxes import FILE, BoxRow, boxes_of, write_boxes
from xraylab.data.published import MURA_STUDIES
from xraylab.data.synthetic.bone_drawing import draw_sign, draw_view
from xraylab.data.synthetic.mark import mark_synthetic, new_root
from xraylab.errors import UserError
from xraylab.system.progress import on_all_cores

LEAST = {"train": 70, "valid": 40}  # studies; in valid for 15 of each class, so that its metrics mean something
VIEWS = (0.15, 0.45, 0.33, 0.07)  # shares of studies of one to four
RETURNS = 0.08  # share of studies by the patient before, and as large a one by a patient of another body part
SHOWN = 0.9  # chance that a view of an abnormal study shows its sign
COLOUR = 0.08  # share of images stored as RGB
SEEN = 12  # of 255, least difference of what belongs to a sign
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(96)  # in every 20th study, as the published tree has some


def write_mura(root: Path, train: int = 300, valid: int = 120, seed: int = 0) -> Path:
    """Write a synthetic ``MURA-v1.1`` tree to ``root``: PNG images, grey or RGB, and four CSVs.

    Body parts and classes have their published shares, and each split a study at least of every class of every part.

    Args:
        train, valid: studies in each split; patients' numbers continue from train to valid as published.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already, or the numbers are too small for 15 of each class in valid.
    """
    if train < LEAST["train"] or valid < LEAST["valid"]:
        raise UserError(
            f"train={train} valid={valid}: at least {LEAST['train']} and {LEAST['valid']} studies are needed, "
            "for both classes of every body part and 15 of each class in valid."
        )
    new_root(root)
    first = 1
    jobs: list[tuple[int, str, str, bool, int]] = []
    for split, count in (("train", train), ("valid", valid)):
        rng = np.random.default_rng([seed, 0, first])
        studies = _draw_studies(rng, split, count, first)
        rows, images = [], []
        for patient, part, number, abnormal in studies:
            sign = "positive" if abnormal else "negative"
            folder = f"{split}/XR_{part.upper()}/patient{patient:05d}/study{number}_{sign}"
            views = int(rng.choice(4, p=VIEWS)) + 1
            rows.append(f"MURA-v1.1/{folder}/,{int(abnormal)}\n")
            images += [f"MURA-v1.1/{folder}/image{v}.png\n" for v in range(1, views + 1)]
            jobs.append((len(jobs) + 1, folder, part, abnormal, views))
        (root / f"{split}_labeled_studies.csv").write_text("".join(rows), encoding="utf-8")
        (root / f"{split}_image_paths.csv").write_text("".join(images), encoding="utf-8")
        first = max(patient for patient, *_ in studies) + 1

    def write(job: tuple[int, str, str, bool, int]) -> list[BoxRow]:
        boxes: list[BoxRow] = []
        study, folder, part, abnormal, views = job
        (root / folder).mkdir(parents=True)
        rng = np.random.default_rng([seed, study, 0])
        sign, shown = draw_sign(rng), rng.random(views) < SHOWN
        shown[rng.integers(views)] = True
        for v in range(views):
            rng = np.random.default_rng([seed, study, v + 1])
            image = draw_view(part, sign if abnormal and shown[v] else None, rng)
            if abnormal and shown[v]:
                without = draw_view(part, None, np.random.default_rng([seed, study, v + 1]))
                found = boxes_of(cv2.absdiff(image, without) > SEEN, joined=1)
                boxes += [(f"{folder}/image{v + 1}.png", None, "abnormal", *box) for box in found]
            if rng.random() < COLOUR:
                image = np.repeat(image[..., None], 3, axis=2)
            (root / folder / f"image{v + 1}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        if study % 20 == 1:
            (root / folder / "._image1.png").write_bytes(APPLE_DOUBLE)
        return boxes

    write_boxes(root / FILE, [row for rows in on_all_cores(write, jobs) for row in rows])
    return mark_synthetic(root, f"MURA, seed {seed}")


def _draw_studies(rng: np.random.Generator, split: str, count: int, first: int) -> list[tuple[int, str, int, bool]]:
    """Each study's patient from ``first`` on, body part, number among the patient's of that part, and class."""
    published = np.array([MURA_STUDIES[part][split != "train"] for part in MURA_STUDIES])
    counts = np.ones_like(published)
    for _ in range(count - counts.size):  # one by one to whom most are due (Sainte-Lague)
        counts.flat[np.argmax(published / (counts + 0.5))] += 1
    studies: list[tuple[int, str, int, bool]] = []
    seen: Counter[tuple[int, str]] = Counter()
    last = first - 1
    for part, (normal, abnormal) in zip(MURA_STUDIES, counts, strict=True):
        start = last + 1  # the part's first patient who is new
        for label in rng.permutation([False] * normal + [True] * abnormal):
            chance, patient = rng.random(), last
            if first < start and RETURNS < chance < 2 * RETURNS:
                patient = int(rng.integers(first, start))
            elif last < start or chance > RETURNS:
                patient = last = last + 1
            seen[patient, part] += 1
            studies.append((patient, part, seen[patient, part], bool(label)))
    return studies
