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
from omegaconf import DictConfig, OmegaConf, open_dict

from xraylab.config.dataset import resolved_again
from xraylab.config.instantiate import build, plain
from xraylab.config.settings import check_config
from xraylab.data.datasets.mrnet import PLANES
from xraylab.data.images.dicom import dicom_layouts, is_dicom
from xraylab.data.images.source import AnyFileSource
from xraylab.data.study_table import SPLITS, SYNTHETIC, StudyTable
from xraylab.errors import UserError, listed
from xraylab.evaluation.ensembles.alignment import alike
from xraylab.evaluation.ensembles.combination import Combination, read_combination
from xraylab.evaluation.operating_points import CHOSEN, read_chosen
from xraylab.evaluation.predictions import COLUMNS, PREFIXES, PredictionTable
from xraylab.evaluation.probabilities import sigmoid
from xraylab.evaluation.result import Chosen
from xraylab.inference.inputs import LEFT_OUT, Files, Skipped, of_plane, with_parts
from xraylab.inference.tolerant_loader import View, predict_rows
from xraylab.run import home_of, read_config, short_names
from xraylab.training.checkpoints import checkpoint_named, read_checkpoint
from xraylab.training.devices import hardware
from xraylab.training.experiment import split_table
from xraylab.training.study_module import StudyModule, load_module

log = logging.getLogger(__name__)

BATCH = 8  # studies in a batch, where the run does not say


@dataclass(frozen=True)
class Options:
    """Options of a prediction.

    Attributes:
        checkpoint: ``best``, ``last`` or a file.
        root: where the run's own data is now; None: where the run found it.
        precision, batch_size: None: as in training; without the run's configuration ``auto`` and ``BATCH``.
        bits: of 16-bit PNG and TIFF files; None: as in training.
        workers: processes that read, or ``auto``.
        accelerator: arguments of the Trainer; None: as in training.
    """

    checkpoint: str = "best"
    root: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    bits: int | None = None
    workers: int | str = "auto"
    accelerator: dict[str, Any] | None = None


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
    """

    table: pd.DataFrame
    skipped: list[Skipped] = field(default_factory=list)
    synthetic: bool = False
    paths: list[str] = field(default_factory=list)
    images: pd.DataFrame | None = None


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
    module = load_module(checkpoint_named(run, options.checkpoint))
    module.net.to(memory_format=torch.channels_last)
    config = _config(run)
    lost: list[Skipped] = []
    if isinstance(studies, str):
        table, lost = _own(run, config, studies, module, options)
        rows = table.part(studies).index.to_numpy()
        paths = [f"{table.name}/{i}" for i in table.frame.loc[rows, "id"]]
    else:
        plane = OmegaConf.select(config, "plane") if config is not None else None
        if module.net.parts:
            studies = with_parts(studies, module.net.parts)
        elif plane in PLANES:
            studies = of_plane(studies, plane, PLANES)
        table, rows = _of_files(studies, module, options), np.arange(len(studies.frame))
        lost, paths = studies.missing, studies.frame["path"].tolist()
    found, logits, views, by_image, skipped = predict_rows(module, table, rows, *_how(config, options), options.workers)
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
    return Predicted(predictions, [*lost, *skipped], synthetic, [place[row] for row in found.tolist()], images)


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
        return list(dict.fromkeys(label for member in found[1] for label in run_labels(_model(run, member))))
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


def _config(run: Path) -> DictConfig | None:
    """The run's configuration, as evaluation takes it; None: a checkpoint on its own."""
    home = home_of(run)
    if home is None:
        return None
    config = read_config(home)
    with open_dict(config):
        if "first" in config.loss:
            config.loss.first = None  # for training only
        config.dataset.on_error = "skip"  # what is skipped is named
    return config


def _own(
    run: Path, config: DictConfig | None, split: str, module: StudyModule, options: Options
) -> tuple[StudyTable, list[Skipped]]:
    """The run's own data, and what is missing of a split since it was trained."""
    if config is None:
        raise UserError(f"input={split}: {run} has no config.yaml that names its data. Give the run's directory, or files.")
    if options.root is not None:
        config.dataset.root = options.root
    found = resolved_again(config)
    settings, path = check_config(found.config), found.data()
    log.info("reading %s", path)
    table = split_table(found.reader, path, settings, build(found.config.loss, "loss").held_back)
    if not len(table.part(split)):
        there = [name for name in SPLITS if len(table.part(name))]
        raise UserError(f"input={split}: this run has no such split; it has {listed(there)}.")
    if table.split_digest() == module.split_digest:
        return table, []
    return table, _missing(run, split, table)


def _missing(run: Path, split: str, table: StudyTable) -> list[Skipped]:
    """Studies of a split that were there when the run was trained.

    Raises:
        UserError: others came into the split, so that some could have been trained on.
    """
    file = (home_of(run) or run) / "predictions" / f"{split}.csv"
    then = PredictionTable.read(file).frame["id"].tolist() if file.is_file() else []
    now = set(table.part(split)["id"])
    if not now <= set(then):
        raise UserError(
            f"input={split}: the data has other studies, or other splits, than when {run} was trained, so some of these could "
            "have been trained on. Give the data of then (root=<folder>), or the folder of images as input=<folder>."
        )
    why = {name: kind for kind, names in table.problems.items() for name in names}

    def reason(study: str) -> str:
        return next((kind for name, kind in why.items() if study in name), "no longer in the data, or not readable")

    return [Skipped(study, "", reason(study), LEFT_OUT) for study in then if study not in now]


def _of_files(files: Files, module: StudyModule, options: Options) -> StudyTable:
    unknown = dict.fromkeys(module.labels, np.float32(np.nan))
    bits = options.bits if options.bits is not None else module.images["bits"]
    views = bool(module.images["views"])
    source = AnyFileSource(module.images["channels"] == 3, bits, volumes=module.images.get("volumes", not views))
    _warn_of_series(files, views)
    frame = files.frame.assign(split="", **unknown)
    return StudyTable(frame, module.labels, source, files.name, synthetic=files.synthetic, views=views, parts=module.net.parts)


def _warn_of_series(files: Files, views: bool) -> None:
    """Log what is done with studies that look like series of slices, a DICOM file each."""
    several = {
        s: [i for i in images if is_dicom(Path(i))] for s, images in zip(files.frame["id"], files.frame["images"], strict=True)
    }
    paths = [Path(image) for images in several.values() if len(images) > 1 for image in images]
    if not paths:
        return
    slices = {str(path) for path, (_, of_series) in zip(paths, dicom_layouts(paths), strict=True) if of_series}
    if series := [study for study, images in several.items() if len(slices.intersection(images)) > 1]:
        stacked = "slices are stacked in the order of their names, not of their places"
        done = "each slice is predicted as a view" if views else stacked
        log.warning("%d studies look like series of slices (CT, MR or PET): %s: %s", len(series), done, listed(series))


def _combined(run: Path, combination: Combination, members: list[Path], studies: str | Files, options: Options) -> Predicted:
    """Each member predicts; what they say is joined as ``combination.json`` says."""
    if options.checkpoint != "best":
        raise UserError(
            f"checkpoint={options.checkpoint}: {run} is a combination, of its members' best checkpoints. Leave it out."
        )
    if studies == combination.fit_on:
        raise UserError(
            f"input={studies}: {run} was fitted on that split; {run / 'predictions' / f'{studies}.csv'} has its studies as they "
            "were judged. Give another split, or files."
        )
    done = [predict(_model(run, member), studies, options) for member in members]
    if combination.method == "union":
        tables, skipped = [d.table for d in done], list(dict.fromkeys(s for d in done for s in d.skipped))
    else:
        tables, skipped = _shared(done)
    table = combination.join(tables)
    views = [d.images for d in done if d.images is not None]
    images = None
    if len(views) == len(done):
        try:
            images = combination.join(_same_images(views))
        except UserError as error:  # as of a stack, or where models are chosen by another group than an image's
            log.info("there is no table by image: %s.", error)
    paths = {i: path for d in reversed(done) for i, path in zip(d.table["id"], d.paths, strict=True)}
    return Predicted(table, skipped, any(d.synthetic for d in done), [paths[i] for i in table["id"]], images)


def _same_images(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Tables by image, of the images that are in all of them, in one order."""
    indexed = [table.set_index(["id", "image"], drop=False).rename_axis([None, None]) for table in tables]
    shared = indexed[0].index[np.all([indexed[0].index.isin(table.index) for table in indexed], axis=0)]
    return [table.loc[shared].reset_index(drop=True) for table in indexed]


def _model(run: Path, member: Path) -> Path:
    if member.is_dir():
        return member
    raise UserError(f"{run}: its member {member.resolve()} is a table of predictions, of a model that is not here.")


def predict_all(runs: Sequence[Path], studies: str | Files, options: Options | None = None) -> Predicted:
    """Predict studies with several runs, each of other labels, as one table.

    Raises:
        UserError: as of :func:`predict`; or two runs predict one label.
    """
    options = options or Options()
    if len(runs) == 1:
        return predict(runs[0], studies, options)
    of: dict[str, Path] = {}
    for run in runs:
        for label in run_labels(run, options.checkpoint):
            if label in of:
                raise UserError(f"run: {of[label]} and {run} both predict {label}. Combine them first: python -m xraylab.combine")
            of[label] = run
    done = [predict(run, studies, options) for run in runs]
    tables, skipped = _shared(done)
    names = short_names(runs)
    joined, views = _side_by_side(tables, names), [d.images for d in done if d.images is not None]
    paths = dict(zip(done[0].table["id"], done[0].paths, strict=True))
    images = _side_by_side(_same_images(views), names) if len(views) == len(done) else None
    return Predicted(joined, skipped, any(d.synthetic for d in done), [paths[i] for i in joined["id"]], images)


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
