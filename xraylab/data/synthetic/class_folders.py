"""Drawn pictures in the layouts of published sets that have a folder a class."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from xraylab.data.synthetic.mark import mark_synthetic, new_root
from xraylab.data.synthetic.pictures import draw_picture


def write_pediatric_pneumonia(root: Path, train: int = 200, val: int = 4, test: int = 80, seed: int = 0) -> Path:
    """Write a synthetic ``chest_xray``: ``{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg``, two pictures a patient.

    Args:
        root: the folder to create.
        train, val, test: pictures in each split, half of them with pneumonia.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already.
    """
    new_root(root)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for k in range(count):
            sick, person = k % 2 == 1, k // 4 + 1
            kind = ("bacteria", "virus")[person % 2]
            name = f"PNEUMONIA/person{person}_{kind}_{k}" if sick else f"NORMAL/IM-{person:04d}-{k:04d}"
            _write(root / split / f"{name}.jpeg", draw_picture(_random(seed, split, k), blob=sick))
    return mark_synthetic(root, f"pneumonia of children, seed {seed}")


def write_covid_qu_ex(root: Path, train: int = 150, val: int = 45, test: int = 60, seed: int = 0) -> Path:
    """Write a synthetic ``COVID-QU-Ex``: pictures of three classes beside masks of their lungs.

    Args:
        root: the folder to create.
        train, val, test: pictures in each split, every third of a class.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already.
    """
    new_root(root)
    top = root / "Lung Segmentation Data" / "Lung Segmentation Data"
    for split, count in (("Train", train), ("Val", val), ("Test", test)):
        for k in range(count):
            kind, name = (("COVID-19", "covid"), ("Non-COVID", "non_COVID"), ("Normal", "Normal"))[k % 3]
            picture = draw_picture(_random(seed, split, k), blob=k % 3 == 0, band=k % 3 == 1)
            _write(top / split / kind / "images" / f"{name}_{k}.png", picture)
            _write(top / split / kind / "lung masks" / f"{name}_{k}.png", np.where(picture > 100, 255, 0).astype(np.uint8))
    mark_synthetic(top, f"COVID-QU-Ex, seed {seed}")
    return mark_synthetic(root, f"COVID-QU-Ex, seed {seed}")


def write_knee_grades(root: Path, train: int = 250, val: int = 50, test: int = 80, seed: int = 0) -> Path:
    """Write a synthetic ``KneeXrayData``: ``kneeKL224/{train,val,test,auto_test}/{0,1,2,3,4}/*.png``, both knees of a patient.

    Args:
        root: the folder to create.
        train, val, test: pictures in each split, every fifth of a grade.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already.
    """
    new_root(root)
    top, number = root / "kneeKL224", 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for k in range(count):
            grade, rng = k % 5, _random(seed, split, k)
            picture = draw_picture(rng, blob=grade > 1, band=grade % 2 == 1)
            picture = np.asarray(255 - picture) if grade == 4 else picture  # unlike the others
            _write(top / split / str(grade) / f"{9000000 + (number + k) // 2}{'LR'[k % 2]}.png", picture)
        number += count + count % 2
    _write(top / "auto_test" / "0" / "9999999L.png", draw_picture(_random(seed, "auto", 0)))
    mark_synthetic(top, f"grades of knees, seed {seed}")
    return mark_synthetic(root, f"grades of knees, seed {seed}")


def _random(seed: int, split: str, k: int) -> np.random.Generator:
    return np.random.default_rng([seed, *split.lower().encode(), k])


def _write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
