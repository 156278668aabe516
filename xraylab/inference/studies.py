"""A run's model, and the studies that it is to predict: of its own data, as it was then, or of files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from xraylab.config.dataset import resolved_again
from xraylab.config.instantiate import build
from xraylab.config.settings import check_config
from xraylab.data.datasets.mrnet import PLANES
from xraylab.data.images.any_file import AnyFileSource
from xraylab.data.images.dicom import dicom_layouts, is_dicom
from xraylab.data.images.series import Volume
from xraylab.data.images.volumes import VolumeRule
from xraylab.data.study_table import SPLITS, StudyTable
from xraylab.errors import UserError, listed
from xraylab.evaluation.predictions import PredictionTable
from xraylab.inference.inputs import LEFT_OUT, Files, Skipped, of_plane, with_parts
from xraylab.inference.series_studies import with_series
from xraylab.run import home_of, read_config
from xraylab.training.checkpoints import checkpoint_named
from xraylab.training.experiment import split_table
from xraylab.training.study_module import StudyModule, load_module

log = logging.getLogger(__name__)


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
        load: what makes a model of a checkpoint; one that keeps models serves several predictions.
    """

    checkpoint: str = "best"
    root: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    bits: int | None = None
    workers: int | str = "auto"
    accelerator: dict[str, Any] | None = None
    load: Callable[[Path], StudyModule] = load_module


class Opened(NamedTuple):
    """A run's model, and the studies that it is to predict."""

    module: StudyModule
    table: StudyTable
    rows: np.ndarray  # (N,), of the studies in the table
    paths: list[str]  # of these studies
    lost: list[Skipped]  # what the input names and is not there
    config: DictConfig | None  # of the run; None: a checkpoint on its own


def open_studies(run: Path, studies: str | Files, options: Options) -> Opened:
    """Load the model of a run, which is no combination, and find the studies that it is to predict.

    Args:
        run, studies: as of :func:`xraylab.inference.predictor.predict`.

    Raises:
        UserError: as there.
    """
    module = options.load(checkpoint_named(run, options.checkpoint))
    config = _config(run)
    if isinstance(studies, str):
        table, lost = _own(run, config, studies, module, options)
        rows = table.part(studies).index.to_numpy()
        return Opened(module, table, rows, [f"{table.name}/{i}" for i in table.frame.loc[rows, "id"]], lost, config)
    plane = OmegaConf.select(config, "plane") if config is not None else None
    rule = VolumeRule(**module.images["rule"]) if "rule" in module.images else None
    series: dict[str, Volume] = {}
    if rule is not None and not module.images["views"] and module.images.get("volumes", True):
        studies, series = with_series(studies, rule)
    elif module.net.parts:
        studies = with_parts(studies, module.net.parts)
    elif plane in PLANES:
        studies = of_plane(studies, plane, PLANES)
    table, rows = _of_files(studies, module, options, rule, series), np.arange(len(studies.frame))
    return Opened(module, table, rows, studies.frame["path"].tolist(), studies.missing, config)


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


def _of_files(
    files: Files, module: StudyModule, options: Options, rule: VolumeRule | None, series: dict[str, Volume]
) -> StudyTable:
    unknown = dict.fromkeys(module.labels, np.float32(np.nan))
    bits = options.bits if options.bits is not None else module.images["bits"]
    views = bool(module.images["views"])
    volumes = module.images.get("volumes", not views)
    source = AnyFileSource(module.images["channels"] == 3, bits, volumes, rule=rule, series=series)
    _warn_of_series(files, views, series)
    frame = files.frame.assign(split="", **unknown)
    return StudyTable(frame, module.labels, source, files.name, synthetic=files.synthetic, views=views, parts=module.net.parts)


def _warn_of_series(files: Files, views: bool, series_of: dict[str, Volume]) -> None:
    """Log what is done with studies that look like series of slices, a DICOM file each, and are not read as such."""
    several = {
        s: [i for i in images if i not in series_of and is_dicom(Path(i))]
        for s, images in zip(files.frame["id"], files.frame["images"], strict=True)
    }
    paths = [Path(image) for images in several.values() if len(images) > 1 for image in images]
    if not paths:
        return
    slices = {str(path) for path, (_, of_series) in zip(paths, dicom_layouts(paths), strict=True) if of_series}
    if series := [study for study, images in several.items() if len(slices.intersection(images)) > 1]:
        stacked = "slices are stacked in the order of their names, not of their places"
        done = "each slice is predicted as a view" if views else stacked
        log.warning("%d studies look like series of slices (CT, MR or PET): %s: %s", len(series), done, listed(series))
