"""Predicting with a finished run: studies to a table of probabilities, without labels being needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from xraylab.config.instantiate import plain
from xraylab.config.settings import check_config
from xraylab.data.study_table import SYNTHETIC, StudyTable
from xraylab.errors import UserError, listed
from xraylab.evaluation.ensembles.alignment import alike
from xraylab.evaluation.ensembles.combination import Combination, read_combination
from xraylab.evaluation.operating_points import CHOSEN, read_chosen
from xraylab.evaluation.predictions import COLUMNS, PREFIXES, PredictionTable
from xraylab.evaluation.probabilities import sigmoid
from xraylab.evaluation.result import Chosen
from xraylab.inference.inputs import LEFT_OUT, Files, Skipped
from xraylab.inference.studies import Opened, Options, open_studies
from xraylab.inference.tolerant_loader import View, predict_rows
from xraylab.run import short_names
from xraylab.training.checkpoints import checkpoint_named, read_checkpoint
from xraylab.training.devices import hardware

log = logging.getLogger(__name__)

BATCH = 8  # studies in a batch, where the run does not say


@dataclass(frozen=True)
class Predicted:
    """Predictions, and the files that could not be read.

    Attributes:
        table: a prediction table, in the order of the input; it has truths only where those of the run's own data are known.
        skipped: files that could not be read, and what became of their studies.
        synthetic: the model or the images are of the synthetic sample.
        paths: of each study in the table, for the files of challenges.
        images: the same by image, where studies have several views; an image is its file, with ``#`` and a number where a file
            holds several.
        unlike: ids of studies that are unlike those that a model was trained on, as far as its checkpoint knows that.
    """

    table: pd.DataFrame
    skipped: list[Skipped] = field(default_factory=list)
    synthetic: bool = False
    paths: list[str] = field(default_factory=list)
    images: pd.DataFrame | None = None
    unlike: list[str] = field(default_factory=list)

    def warn_of_unlike(self) -> None:
        """Say which studies are unlike those of the training."""
        if self.unlike:
            log.warning(
                "%d of %d studies are not like those that the model was trained on, so what it says of them means nothing: %s",
                len(self.unlike), len(self.table), listed(self.unlike),
            )  # fmt: skip


def predict(run: Path, studies: str | Files, options: Options | None = None) -> Predicted:
    """Predict studies with a run, or with a combination of runs by its members.

    Args:
        run: its directory, or a checkpoint file.
        studies: ``train``, ``valid`` or ``test`` of the run's own data; or files.

    Raises:
        UserError: no such checkpoint or split, the data has changed so that its splits are not those of training, or nothing
            can be read.
    """
    options = options or Options()
    if members := read_combination(run) if run.is_dir() else None:
        return _combined(run, *members, studies, options)
    return predict_opened(open_studies(run, studies, options), studies, options)


def predict_opened(opened: Opened, studies: str | Files, options: Options) -> Predicted:
    """Predict the studies that were found, see :func:`predict`.

    Raises:
        UserError: nothing can be read.
    """
    module, table, rows, paths, lost, config = opened
    module.net.to(memory_format=torch.channels_last)
    found, logits, views, by_image, skipped, far = predict_rows(module, table, rows, *_how(config, options), options.workers)
    if not len(found):
        named = listed((f"{s.file or s.id} ({s.reason})" for s in skipped), 5)
        raise UserError(f"not one of {len(rows)} studies can be read: {named}.")
    split = studies if isinstance(studies, str) else ""
    predictions = PredictionTable.of_studies(table.frame, table.labels, split, found, sigmoid(logits), logits).frame
    images = _image_table(table, split, views, by_image) if views else None
    if not isinstance(studies, str):
        unknown = [f"y_{label}" for label in table.labels]
        predictions = predictions.drop(columns=unknown)
        images = images.drop(columns=unknown) if images is not None else None
    place = dict(zip(rows.tolist(), paths, strict=True))
    synthetic = module.data == SYNTHETIC or table.synthetic
    limit = np.inf if module.distribution is None else module.distribution.threshold
    unlike = predictions["id"][far > limit].tolist()
    return Predicted(predictions, [*lost, *skipped], synthetic, [place[row] for row in found.tolist()], images, unlike)


def _how(config: DictConfig | None, options: Options) -> tuple[int, dict[str, Any], str]:
    """Studies in a batch, arguments of the Trainer, and its precision."""
    settings = check_config(config) if config is not None else None
    batch_size = options.batch_size or (settings.batch_size if settings else BATCH)
    accelerator = options.accelerator or (plain(config.accelerator) if config is not None else {"accelerator": "auto"})
    precision = options.precision or (settings.precision if settings else "auto")
    return batch_size, *hardware(accelerator, precision)


def _image_table(table: StudyTable, split: str, views: Sequence[View], logits: np.ndarray) -> pd.DataFrame:
    """The prediction table by image, of logits (I,L)."""
    first, images = np.r_[0, table.frame["images"].map(len).cumsum()], table.frame["images"].tolist()
    rows = np.array([first[row] + images[row].index(image) for row, image, _ in views])
    out = PredictionTable.of_studies(table.by_image().frame, table.labels, split, rows, sigmoid(logits), logits).frame
    return out.assign(image=out["image"] + [place for _, _, place in views])


def run_labels(run: Path, checkpoint: str = "best") -> list[str]:
    """The labels that a run predicts.

    Raises:
        UserError: there is no such checkpoint.
    """
    if found := read_combination(run) if run.is_dir() else None:
        return list(dict.fromkeys(label for member in found[1] for label in run_labels(member_run(run, member))))
    return list(read_checkpoint(checkpoint_named(run, checkpoint))["xraylab"]["labels"])


def chosen_of(run: Path, checkpoint: str = "best") -> Chosen:
    """The thresholds and temperatures that were chosen for a run's probabilities, see :mod:`xraylab.evaluation.operating_points`;
    empty: unknown.

    Raises:
        UserError: there is no such checkpoint, or what was chosen cannot be read.
    """
    if run.is_dir() and read_combination(run):
        return read_chosen(run / CHOSEN, None)
    file = checkpoint_named(run, checkpoint)
    return read_chosen(file.parent.parent / CHOSEN, read_checkpoint(file)["global_step"])


def _combined(run: Path, combination: Combination, members: list[Path], studies: str | Files, options: Options) -> Predicted:
    """Each member predicts; what they say is joined as ``combination.json`` says."""
    require_joinable(run, combination, studies, options)
    return joined(combination, [predict(member_run(run, member), studies, options) for member in members])


def require_joinable(run: Path, combination: Combination, studies: str | Files, options: Options) -> None:
    """Refuse what a combination cannot predict.

    Raises:
        UserError: a checkpoint other than its members' best, or the split that it was fitted on.
    """
    if options.checkpoint != "best":
        raise UserError(
            f"checkpoint={options.checkpoint}: {run} is a combination, of its members' best checkpoints. Leave it out."
        )
    if studies == combination.fit_on:
        raise UserError(
            f"input={studies}: {run} was fitted on that split; {run / 'predictions' / f'{studies}.csv'} has its studies as they "
            "were judged. Give another split, or files."
        )


def joined(combination: Combination, done: Sequence[Predicted]) -> Predicted:
    """What a combination makes of its members' predictions.

    Raises:
        UserError: there is no study that all could predict.
    """
    tables, skipped = member_tables(combination, done)
    table = combination.join(tables)
    views = [d.images for d in done if d.images is not None]
    images = None
    if len(views) == len(done):
        try:
            images = combination.join(_same_images(views))
        except UserError as error:  # as of a stack, or where models are chosen by another group than an image's
            log.info("there is no table by image: %s.", error)
    paths = {i: path for d in reversed(done) for i, path in zip(d.table["id"], d.paths, strict=True)}
    return Predicted(table, skipped, any(d.synthetic for d in done), [paths[i] for i in table["id"]], images, _unlike(done))


def _unlike(done: Sequence[Predicted]) -> list[str]:
    return list(dict.fromkeys(i for d in done for i in d.unlike))


def member_tables(combination: Combination, done: Sequence[Predicted]) -> tuple[list[pd.DataFrame], list[Skipped]]:
    """The members' tables as a combination joins them, and what was skipped."""
    if combination.method == "union":
        return [d.table for d in done], list(dict.fromkeys(s for d in done for s in d.skipped))
    return _shared(done)


def _same_images(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Tables by image, of the images that are in all of them, in one order."""
    indexed = [table.set_index(["id", "image"], drop=False).rename_axis([None, None]) for table in tables]
    shared = indexed[0].index[np.all([indexed[0].index.isin(table.index) for table in indexed], axis=0)]
    return [table.loc[shared].reset_index(drop=True) for table in indexed]


def member_run(run: Path, member: Path) -> Path:
    if member.is_dir():
        return member
    raise UserError(f"{run}: its member {member.resolve()} is a table of predictions, of a model that is not here.")


def predict_all(runs: Sequence[Path], studies: str | Files, options: Options | None = None) -> Predicted:
    """Predict studies with several runs, each of other labels, as one table.

    Raises:
        UserError: as of :func:`predict`; or two runs predict one label.
    """
    options = options or Options()
    require_apart(runs, options)
    return side_by_side(runs, [predict(run, studies, options) for run in runs])


def require_apart(runs: Sequence[Path], options: Options) -> None:
    """Refuse runs of which two predict one label.

    Raises:
        UserError: as said.
    """
    of: dict[str, Path] = {}
    for run in runs if len(runs) > 1 else ():
        for label in run_labels(run, options.checkpoint):
            if label in of:
                raise UserError(f"run: {of[label]} and {run} both predict {label}. Combine them first: python -m xraylab.combine")
            of[label] = run


def side_by_side(runs: Sequence[Path], done: Sequence[Predicted]) -> Predicted:
    """The predictions of several runs, each of other labels, as one.

    Raises:
        UserError: there is no study that all could predict.
    """
    if len(runs) == 1:
        return done[0]
    tables, skipped = _shared(done)
    names = short_names(runs)
    table, views = _side_by_side(tables, names), [d.images for d in done if d.images is not None]
    paths = dict(zip(done[0].table["id"], done[0].paths, strict=True))
    images = _side_by_side(_same_images(views), names) if len(views) == len(done) else None
    return Predicted(table, skipped, any(d.synthetic for d in done), [paths[i] for i in table["id"]], images, _unlike(done))


def _side_by_side(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """Tables of the same rows and other labels as one; patients and groups are joined as those of a combination."""
    keys = [c for c in tables[0].columns if c in COLUMNS]
    first = alike([table[keys] for table in tables], names)[0]
    return first.assign(**{c: table[c] for kind in PREFIXES for table in tables for c in map(str, table) if c.startswith(kind)})


def _shared(done: Sequence[Predicted]) -> tuple[list[pd.DataFrame], list[Skipped]]:
    """The tables of several runs, of the studies that all could predict, in one order; and what was skipped.

    Raises:
        UserError: there is no such study.
    """
    shared = set.intersection(*(set(d.table["id"]) for d in done))
    if not shared:
        raise UserError("there is no study that every run could predict: their ids, or what could be read, differ.")
    order = [i for i in done[0].table["id"] if i in shared]
    tables = [d.table.set_index("id").loc[order].reset_index()[d.table.columns] for d in done]
    skipped = list(dict.fromkeys(s if s.id in shared else s._replace(study=LEFT_OUT) for d in done for s in d.skipped))
    named = {s.id for s in skipped}
    lost = [i for i in dict.fromkeys(i for d in done for i in d.table["id"]) if i not in shared and i not in named]
    return tables, [*skipped, *(Skipped(i, "", "not every run has images of it", LEFT_OUT) for i in lost)]
