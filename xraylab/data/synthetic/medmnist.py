"""Drawn pictures in the layout of MedMNIST."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xraylab.data.published import MEDMNIST, Subset
from xraylab.data.synthetic.mark import mark_synthetic
from xraylab.errors import UserError
from xraylab.system.files import beside


def write_medmnist(
    path: Path, subset: str, resolution: int = 28, train: int = 400, val: int = 100, test: int = 150, seed: int = 0
) -> Path:
    """Write a synthetic ``.npz`` in the layout of one MedMNIST set: soft blobs whose places tell the class.

    Args:
        path: the file to create.
        train, val, test: items in each split.

    Raises:
        UserError: the file exists already, or a split is smaller than the number of classes.
    """
    about = MEDMNIST[subset]
    names = about.labels.split()
    if path.exists():
        raise UserError(f"{path} exists; name another folder, or delete it first.")
    if min(train, val, test) < 2 * len(names):
        raise UserError(f"train={train} val={val} test={test}: each is at least {2 * len(names)} for {subset}.")
    rng = np.random.default_rng([seed, len(names), resolution])
    places = np.random.default_rng(0).uniform(0.2, 0.8, (len(names), 3))
    out: dict[str, np.ndarray] = {}
    for key, count in (("train", train), ("val", val), ("test", test)):
        if about.kind == "findings":
            labels = (rng.random((count, len(names))) < 0.15).astype(np.uint8)
            labels[: 2 * len(names)] = np.tile(np.eye(len(names), dtype=np.uint8), (2, 1))
            shown = labels
        else:
            order = rng.permutation(np.arange(count) % len(names))
            if about.kind == "binary":  # as in pneumoniamnist, where three of four are positive
                order = rng.permutation((np.arange(count) % 4 > 0).astype(int))
            labels, shown = order[:, None].astype(np.uint8), np.eye(len(names), dtype=np.uint8)[order]
        out[f"{key}_images"] = np.stack([_blobs(places[s > 0], resolution, about, rng) for s in shown])
        out[f"{key}_labels"] = labels
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **out)
    mark_synthetic(path.parent, f"MedMNIST {subset}, seed {seed}")
    return path


def _blobs(places: np.ndarray, size: int, about: Subset, rng: np.random.Generator) -> np.ndarray:
    """A noisy oval with a bright blob at each place, uint8 of the set's shape; gain and offset vary."""
    dims = 3 if about.volume else 2
    grid = np.meshgrid(*[np.linspace(0, 1, size)] * dims, indexing="ij")
    body = np.exp(-(sum(((g - 0.5) / 0.42) ** 2 for g in grid) ** 3))
    image = 0.35 * body
    for place in places:
        at = place[:dims] + rng.normal(0, 0.03, dims)
        image = image + 0.4 * np.exp(-sum((g - x) ** 2 for g, x in zip(grid, at, strict=True)) / 0.008)
    image = image * rng.uniform(0.7, 1.1) + rng.uniform(0, 0.15) + rng.normal(0, 0.06, image.shape)
    grey = np.clip(image * 255, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1) if about.colour else grey
