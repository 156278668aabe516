"""Drawn pictures in the layouts of a user: a folder a class, or a CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np

from xraylab.data.synthetic.mark import mark_synthetic, new_root
from xraylab.errors import UserError


def write_folder(root: Path, train: int = 200, val: int = 60, test: int = 80, seed: int = 0) -> Path:
    """Write a synthetic dataset: ``{train,val,test}/{normal,abnormal}/`` with studies of 1-3 views, two studies a patient.

    Args:
        root: the folder to create.
        train, val, test: studies in each split, every other one abnormal.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already, or a split has fewer than 4 studies.
    """
    if min(train, val, test) < 4:
        raise UserError(f"train={train} val={val} test={test}: each is at least 4 studies.")
    new_root(root)
    number = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for i in range(count):
            rng = np.random.default_rng([seed, number])
            abnormal = i % 4 in (0, 3)
            study = root / split / ("abnormal" if abnormal else "normal") / f"patient{number // 2:05d}_study{number % 2 + 1}"
            views = [draw_picture(rng, blob=abnormal) for _ in range(rng.integers(1, 4))]
            study.mkdir(parents=True)
            for k, view in enumerate(views, start=1):
                cv2.imwrite(str(study / f"image{k}.png"), view)
            number += 1
        number += number % 2  # no patient in two splits
    return mark_synthetic(root, f"folders of classes, seed {seed}")


def draw_picture(rng: np.random.Generator, blob: bool = False, band: bool = False) -> np.ndarray:
    """A noisy oval, uint8 (64-96, 64-96), with a bright blob, or a bright band at its foot, as findings.

    Gain and offset are drawn as well, so mean brightness tells little.
    """
    height, width = (int(n) for n in rng.integers(64, 97, 2))
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    body = np.exp(-((((x - 0.5) / 0.42) ** 2 + ((y - 0.5) / 0.45) ** 2) ** 3))
    image = 0.4 * body
    if blob:
        at = rng.uniform(0.3, 0.7, 2)
        image = image + 0.5 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 0.006)
    if band:
        image = image + 0.4 * body * np.exp(-(((y - rng.uniform(0.72, 0.82)) / 0.05) ** 2))
    image = image * rng.uniform(0.7, 1.1) + rng.uniform(0, 0.15) + rng.normal(0, 0.05, image.shape)
    return np.asarray(np.clip(image * 255, 0, 255).astype(np.uint8))


def write_table(root: Path, train: int = 240, test: int = 80, seed: int = 0) -> Path:
    """Write a synthetic ``table.csv`` and its pictures: two labels, some of them uncertain or blank, two studies a patient.

    Args:
        root: the folder to create.
        train, test: studies in each split.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already, or a split has fewer than 8 studies.
    """
    if min(train, test) < 8:
        raise UserError(f"train={train} test={test}: each is at least 8 studies.")
    new_root(root)
    (root / "images").mkdir()
    rows = [["id", "patient", "group", "split", "images", "nodule", "effusion"]]
    for split, count in (("train", train), ("test", test)):
        for i in range(count):
            number = len(rows)
            rng = np.random.default_rng([seed, number])
            truth = (i % 2 == 1, i % 4 > 1)
            images = [f"images/s{number:05d}_{k}.png" for k in range(1, 1 + int(rng.integers(1, 3)))]
            for image in images:
                cv2.imwrite(str(root / image), draw_picture(rng, blob=truth[0], band=truth[1]))
            cells = [str(rng.choice([str(int(t)), "-1", ""], p=[0.9, 0.05, 0.05])) for t in truth]
            patient = f"p{split[:2]}{i // 2:05d}"
            rows.append([f"s{number:05d}", patient, ("north", "south")[i // 8 % 2], split, ";".join(images), *cells])
    with open(root / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return mark_synthetic(root, f"a table, seed {seed}")
