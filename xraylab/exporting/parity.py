"""Whether a written file says what xraylab says: on studies of the run's own data, and on drawn ones of odd sizes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from xraylab.data.preprocessing import pack, prepare
from xraylab.data.study_table import SPLITS
from xraylab.errors import UserError
from xraylab.evaluation.operating_points import decided
from xraylab.evaluation.predictions import KEYS, PredictionTable
from xraylab.evaluation.probabilities import sigmoid
from xraylab.exporting.formats import Ask
from xraylab.exporting.program import of_volumes
from xraylab.exporting.runs import Leaf, Models, combinations, leaves, predicted
from xraylab.inference.predictor import Predicted, predict_opened
from xraylab.inference.studies import Opened, Options, open_studies

log = logging.getLogger(__name__)

MOST = 1e-4  # the largest difference of a probability that is let pass
CPU = {"accelerator": "cpu", "devices": 1}
DRAWN = ((1, 223, 301), (3, 96, 128), (2, 512, 400))  # pictures, height and width of drawn studies
UNSIZED = 224  # of pictures of a model that does not resize them, where none of its own are there


class Study(NamedTuple):
    """A study's pictures, by what is seen of it: uint8 (N,H,W) or (N,H,W,3)."""

    id: str
    pictures: dict[str, np.ndarray]


@dataclass(frozen=True)
class Studies:
    """Studies, and what xraylab itself predicts of them.

    Attributes:
        studies: those that a file is asked about.
        table: a prediction table of them.
        where: what they are, in words.
        synthetic: the model or the images are of the synthetic sample.
    """

    studies: list[Study]
    table: pd.DataFrame
    where: str
    synthetic: bool = False


@dataclass
class Parity:
    """How far a file is from xraylab.

    Attributes:
        largest: difference of a probability.
        studies: how many there were.
        where: what they are, in words.
        worst: the study and the label of the largest difference.
    """

    largest: float = 0.0
    studies: int = 0
    where: list[str] = field(default_factory=list)
    worst: tuple[str, str] = ("", "")


def own_studies(models: Models, root: str | None, checkpoint: str, most: int) -> Studies | None:
    """Studies of the run's own data, of the first split that it did not learn from, and what the run predicts of them.

    Args:
        root: where the data is now; None: where the run found it.
        checkpoint: as of ``xraylab.predict``.
        most: studies at most.

    Returns:
        None where the data is not there, or no study has pictures of one size: why is logged.
    """
    fitted = {of.combination.fit_on for of in combinations(models)}
    options = Options(checkpoint, root, "32", workers=0, accelerator=CPU)
    for split in reversed(SPLITS):
        if split in fitted:
            continue
        try:
            opened = {id(leaf): open_studies(leaf.run, split, options) for leaf in leaves(models)}
            found = _readable(models, opened, most)
            if not found:
                log.info("no study of %s has pictures of one size each, which the file takes", split)
                continue
            done = predicted(models, lambda leaf: predict_opened(_some(opened[id(leaf)], found), split, options))  # noqa: B023
        except UserError as error:
            log.info("no studies of %s to compare on: %s", split, str(error).splitlines()[0])
            continue
        left = set(done.table["id"])
        return Studies([s for s in found if s.id in left], done.table, f"studies of {split}", done.synthetic)
    return None


def _readable(models: Models, opened: Mapping[int, Opened], most: int) -> list[Study]:
    """The first studies that all models have, whose pictures can be read and are of one size each."""
    rows = {key: dict(zip(of.table.frame["id"].iloc[of.rows], of.rows.tolist(), strict=True)) for key, of in opened.items()}
    found: list[Study] = []
    for name in next(iter(rows.values())):
        if len(found) == most:
            break
        if any(name not in of for of in rows.values()):
            continue
        pictures: dict[str, np.ndarray] = {}
        for leaf in leaves(models):
            pictures |= _pictures(leaf, opened[id(leaf)], rows[id(leaf)][name]) or {}
        if set(pictures) == {seen for leaf in leaves(models) for seen in leaf.sees}:
            found.append(Study(name, pictures))
    return found


def _pictures(leaf: Leaf, opened: Opened, row: int) -> dict[str, np.ndarray] | None:
    """Of a study, by what is seen; None: they cannot be read, or are of several sizes."""
    table = opened.table
    references = table.frame["images"].tolist()[row]
    part_of = table.frame["parts"].tolist()[row] if table.parts else [leaf.sees[0]] * len(references)
    out = {}
    for seen in leaf.sees:
        try:
            images = table.source.read([image for image, part in zip(references, part_of, strict=True) if part == seen])
        except UserError:
            return None
        if len({image.shape for image in images}) != 1:
            return None
        out[seen] = np.stack(list(images))
    return out


def _some(opened: Opened, studies: Sequence[Study]) -> Opened:
    """The same with these studies alone."""
    ids = opened.table.frame["id"].tolist()
    wanted = {study.id for study in studies}
    kept = [(row, path) for row, path in zip(opened.rows.tolist(), opened.paths, strict=True) if ids[row] in wanted]
    return opened._replace(rows=np.array([row for row, _ in kept]), paths=[path for _, path in kept], lost=[])


def drawn_studies(models: Models, size: tuple[int, int] | None, seed: int = 0) -> Studies:
    """Studies of noise on a slope, of several numbers and sizes of pictures, and what the run predicts of them.

    Args:
        size: height and width of all; None: of several sizes, for a model that resizes.
    """
    rng = np.random.default_rng(seed)
    colour = {seen: leaf.module.images["channels"] == 3 for leaf in leaves(models) for seen in leaf.sees}
    studies = []
    for number, (count, *own) in enumerate(DRAWN, start=1):
        height, width = size or own
        slope = np.add.outer(np.linspace(0, 90, height), np.linspace(0, 90, width))
        pictures = {}
        for k, (seen, three) in enumerate(colour.items()):
            noise = rng.integers(0, 70, (count + k, height, width, 3 if three else 1))
            images = (slope[..., None] * rng.uniform(0.3, 1, (count + k, 1, 1, 1)) + noise).astype(np.uint8)
            pictures[seen] = images if three else images[..., 0]
        studies.append(Study(f"drawn{number}", pictures))
    table = predicted(models, lambda leaf: Predicted(_table(leaf, studies), paths=[study.id for study in studies])).table
    return Studies(studies, table, f"drawn ones of {'one size' if size else 'odd sizes'}")


@torch.no_grad()
def _table(leaf: Leaf, studies: Sequence[Study]) -> pd.DataFrame:
    """What a model predicts of studies, as a prediction table."""
    logits = []
    for study in studies:
        given = [study.pictures[seen] for seen in leaf.sees]
        bags = [prepare(im if of_volumes(leaf.module) else list(im), **leaf.module.preprocessing) for im in given]
        of = torch.repeat_interleave(torch.arange(len(bags)), torch.tensor([len(bag) for bag in bags]))
        logits.append(leaf.module.log_odds(leaf.module.net(pack(bags), of, 1))[0])
    z = np.stack(logits)
    names = {"id": [study.id for study in studies], **dict.fromkeys((key for key in KEYS if key != "id"), "")}
    columns = {f"p_{label}": sigmoid(z[:, k]) for k, label in enumerate(leaf.module.labels)}
    columns |= {f"logit_{label}": z[:, k] for k, label in enumerate(leaf.module.labels)}
    return pd.DataFrame({**names, **columns})


def compared(
    ask: Ask, labels: Sequence[str], inputs: Mapping[str, str], temperatures: Mapping[str, float], asked: Sequence[Studies]
) -> Parity:
    """Ask a file about studies.

    Args:
        ask: what runs it.
        labels: in the order of its probabilities.
        inputs: what is seen, to the name of the input.
        temperatures: that are applied, by label.
    """
    out = Parity()
    for of in asked:
        table = decided(of.table, None, temperatures).set_index("id")
        wanted = PredictionTable(table.reset_index())
        assert set(wanted.predicted) == set(labels)
        for study in of.studies:
            given = ask({name: study.pictures[seen] for seen, name in inputs.items()})
            expected = table.loc[study.id, [f"p_{label}" for label in labels]].to_numpy(np.float64)
            differences = np.abs(given - expected)
            differences[~np.isfinite(differences)] = np.inf
            k = int(differences.argmax())
            if differences[k] >= out.largest:
                out.largest, out.worst = float(differences[k]), (study.id, labels[k])
        out.studies += len(of.studies)
        out.where.append(f"{len(of.studies)} {of.where}")
    return out


def own_size(models: Models, own: Studies | None) -> tuple[int, int] | None:
    """Height and width of pictures as a model wants them that does not resize; None: all resize, and take any."""
    fixed = [leaf.module for leaf in leaves(models) if leaf.module.preprocessing["size"] is None]
    if not fixed:
        return None
    if own is not None:
        height, width = next(iter(own.studies[0].pictures.values())).shape[1:3]
        return height, width
    side = int(dict(fixed[0].net.backbone.hparams).get("image_size") or UNSIZED)
    return side, side


def of_size(studies: Studies, size: tuple[int, int]) -> Studies | None:
    """Those whose pictures are all of this size; None: there is none."""
    kept = [s for s in studies.studies if all(images.shape[1:3] == size for images in s.pictures.values())]
    return replace(studies, studies=kept) if kept else None


def require_parity(found: Parity, output: Path) -> None:
    """Refuse a file that says something else.

    Raises:
        UserError: a probability differs by more than ``MOST``.
    """
    if not found.largest <= MOST:
        study, label = found.worst
        raise UserError(
            f"{output} is not written: of {label} in study {study} it would say another probability than xraylab, by "
            f"{found.largest:.2g}, where {MOST:g} is let pass."
        )
