"""Predicting with a finished run: studies to a table of probabilities, without labels being needed."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xraylab.assemble import hardware, split_table
from xraylab.build import build, find_data, plain
from xraylab.callbacks import RunningLoss, StudyProgress, clock
from xraylab.combination import Combination, read_combination
from xraylab.data.inputs import FROM_THE_REST, LEFT_OUT, AnyFileSource, Files, Skipped
from xraylab.data.loading import Batch, Draw, StepSampler, StudyDataset, prepare
from xraylab.data.module import worker_count
from xraylab.data.mrnet import PLANES
from xraylab.data.table import SYNTHETIC, StudyTable
from xraylab.errors import UserError, listed
from xraylab.evaluation import KEYS, prediction_table, read_table
from xraylab.module import StudyModule, checkpoint_of, load_module, read_checkpoint, require_finite
from xraylab.settings import check_config

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
BATCH = 8  # studies in a batch, where the run does not say
LOG_SECONDS = 10.0


@dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
        checkpoint: ``best``, ``last`` or a file.
        root: where the run's own data is now; None: where the run found it.
        precision, batch_size: None: as in training; without the run's configuration ``auto`` and ``BATCH``.
        bits: of 16-bit PNG and TIFF files; None: as in training.
        workers: processes that read, or ``auto``.
        accelerator: arguments of the Trainer; None: as in training.
        joined: whether tables are joined by id, so that ids are without the plane, which members differ in.
    """

    checkpoint: str = "best"
    root: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    bits: int | None = None
    workers: int | str = "auto"
    accelerator: dict[str, Any] | None = None
    joined: bool = False


@dataclass(frozen=True)
class Predicted:
    """What came of it.

    Attributes:
        table: a prediction table, in the order of the input; it has truths only where those of the run's own data are known.
        skipped: files that could not be read, and what became of their studies.
        synthetic: the model or the images are of the synthetic sample.
        paths: of each study in the table, for the files of challenges.
    """

    table: pd.DataFrame
    skipped: list[Skipped] = field(default_factory=list)
    synthetic: bool = False
    paths: list[str] = field(default_factory=list)


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
        studies = _of_plane(run, studies, options.joined)
        table, rows = _of_files(studies, module, options), np.arange(len(studies.frame))
        lost, paths = studies.missing, studies.frame["path"].tolist()
    found, probabilities, skipped = _run(module, table, rows, config, options)
    if not len(found):
        named = listed((f"{s.file or s.id} ({s.reason})" for s in skipped), 5)
        raise UserError(f"not one of {len(rows)} studies can be read: {named}.")
    split = studies if isinstance(studies, str) else ""
    predictions = prediction_table(table.frame, table.labels, split, found, probabilities)
    if not isinstance(studies, str):
        predictions = predictions.drop(columns=[f"y_{label}" for label in table.labels])
    place = dict(zip(rows.tolist(), paths, strict=True))
    synthetic = module.data == SYNTHETIC or table.synthetic
    return Predicted(predictions, [*lost, *skipped], synthetic, [place[row] for row in found.tolist()])


def run_labels(run: Path, checkpoint: str = "best") -> list[str]:
    """The labels that a run predicts.

    Raises:
        UserError: there is no such checkpoint.
    """
    if found := read_combination(run) if run.is_dir() else None:
        return list(dict.fromkeys(label for member in found[1] for label in run_labels(_model(run, member))))
    return list(read_checkpoint(checkpoint_named(run, checkpoint))["xraylab"]["labels"])


def checkpoint_named(run: Path, name: str) -> Path:
    """A run's ``best`` or ``last`` checkpoint, or the file that ``name`` is; ``run`` may be a checkpoint itself.

    Raises:
        UserError: there is none.
    """
    if name == "best":
        return checkpoint_of(run)
    if name == "last" and run.is_file():
        raise UserError(f"checkpoint=last: {run} is a checkpoint itself. Leave it out, or give the run's directory.")
    return checkpoint_of(run / "checkpoints" / "last.ckpt" if name == "last" else Path(name))


def home_of(run: Path) -> Path | None:
    """The run directory, of itself or of a checkpoint in it; None: a checkpoint on its own."""
    return next((p for p in (run, *run.absolute().parents[:2]) if (p / "config.yaml").is_file()), None)


def _config(run: Path) -> DictConfig | None:
    """The run's configuration, as evaluation takes it; None: a checkpoint on its own."""
    home = home_of(run)
    if home is None:
        return None
    config = OmegaConf.load(home / "config.yaml")
    assert isinstance(config, DictConfig)
    with open_dict(config):
        if "first" in config.loss:
            config.loss.first = None  # for training only
        config.dataset.on_error = "skip"  # what is skipped is named
    return config


def _own(
    run: Path, config: DictConfig | None, split: str, module: StudyModule, options: Options
) -> tuple[StudyTable, list[Skipped]]:  # fmt: skip
    """The run's own data, and what is missing of a split since it was trained."""
    if config is None:
        raise UserError(f"input={split}: {run} has no config.yaml that names its data. Give the run's directory, or files.")
    if options.root is not None:
        config.dataset.root = options.root
    try:
        reader, path, sample = find_data(config, [], fresh=False)
    except UserError as error:
        if "is not there" in str(error):
            raise UserError(f"{error}\nWhere the data was moved, name its new place: root=<folder>.") from error
        raise
    settings = check_config(config)
    path = reader.embedded(sample) if path is None else path
    log.info("reading %s", path)
    table = split_table(reader, path, settings, build(config.loss, "loss").held_back)
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
    then = read_table(file)["id"].tolist() if file.is_file() else []
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
    source = AnyFileSource(module.images["channels"] == 3, bits, volumes=not module.images["views"])
    return StudyTable(
        frame=files.frame.assign(split="", **unknown),
        labels=module.labels,
        source=source,
        name=files.name,
        synthetic=files.synthetic,
        views=bool(module.images["views"]),
    )


# ---- combinations -----------------------------------------------------------------------------------------------------


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
    done = [predict(_model(run, member), studies, replace(options, joined=True)) for member in members]
    if combination.method == "union":
        tables, skipped = [d.table for d in done], list(dict.fromkeys(s for d in done for s in d.skipped))
    else:
        tables, skipped = _shared(done)
    table = combination.join(tables)
    paths = {i: path for d in reversed(done) for i, path in zip(d.table["id"], d.paths, strict=True)}
    return Predicted(table, skipped, any(d.synthetic for d in done), [paths[i] for i in table["id"]])


def _model(run: Path, member: Path) -> Path:
    if member.is_dir():
        return member
    raise UserError(f"{run}: its member {member.resolve()} is a table of predictions, of a model that is not here.")


def _of_plane(run: Path, files: Files, joined: bool) -> Files:
    """Of exams in several planes, which folders name, the images of the plane that a run was trained on.

    Raises:
        UserError: there are images of other planes only.
    """
    home = home_of(run)
    plane = OmegaConf.select(OmegaConf.load(home / "config.yaml"), "plane") if home is not None else None
    planes = [next((part for part in reversed(path.split("/")) if part in PLANES), None) for path in files.frame["path"]]
    if plane not in PLANES or not any(planes):
        return files
    frame = files.frame[[p in (plane, None) for p in planes]].reset_index(drop=True)
    there = listed(sorted({p for p in planes if p}))
    if frame.empty:
        raise UserError(f"{files.name}: these are images of {there}; {run} was trained on plane={plane}.")
    if len(frame) < len(planes):
        log.info("%d of %d studies are of another plane than %s, and left alone", len(planes) - len(frame), len(planes), plane)
    if joined:
        frame["id"] = ["/".join(part for part in i.split("/") if part != plane) for i in frame["id"]]
        frame["group"] = frame["group"].where(frame["group"] != "", plane)
    return replace(files, frame=frame)


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
    done = [predict(run, studies, replace(options, joined=True)) for run in runs]
    tables, skipped = _shared(done)
    values = {c: table[c] for table in tables for c in table.columns if c.startswith(("p_", "y_"))}
    joined = tables[0][KEYS].assign(**dict(sorted(values.items(), key=lambda item: item[0].startswith("y_"))))
    paths = dict(zip(done[0].table["id"], done[0].paths, strict=True))
    return Predicted(joined, skipped, any(d.synthetic for d in done), [paths[i] for i in joined["id"]])


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


# ---- reading what can be read, and predicting it ----------------------------------------------------------------------


class _Read(NamedTuple):
    """What could be read of a draw: a batch of every size of images, and what is missing, by row."""

    batches: tuple[Batch, ...]
    skipped: tuple[tuple[int, str, str, str], ...]
    ids: tuple[str, ...]


class _Tolerant(Dataset[_Read]):
    """A dataset that goes on without what cannot be read, and names it."""

    def __init__(self, studies: StudyDataset) -> None:
        self.studies = studies

    def __getitem__(self, draw: Draw) -> _Read:
        by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
        skipped: list[tuple[int, str, str, str]] = []
        for row in draw.rows:
            bag, faults = self._read(row)
            if bag is not None:
                by_shape[bag.shape[1:]].append((row, bag))
            became = LEFT_OUT if bag is None else FROM_THE_REST
            skipped += [(row, image, reason, became) for image, reason in faults]
        batches = [self.studies.batch([r for r, _ in part], [b for _, b in part], 0.0) for part in by_shape.values()]
        return _Read(tuple(batches), tuple(skipped), tuple(self.studies.ids[draw.rows]))

    def _read(self, row: int) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
        """A study's prepared images, or None; and images with the reason why they are not among them."""
        try:
            return self.studies.read(row), []
        except UserError as error:
            whole = _reason("", error)
        faults, left = [], []
        for image in self.studies.images[row]:
            try:
                self._prepared([image])
                left.append(image)
            except UserError as error:
                faults.append((image, _reason(image, error)))
        if not faults:
            return None, [("", whole)]
        try:
            return (self._prepared(left) if left else None), faults
        except UserError as error:
            return None, [*faults, ("", _reason("", error))]

    def _prepared(self, images: list[str]) -> np.ndarray:
        return prepare(self.studies.source.read(images), self.studies.size, self.studies.rescale)


def _reason(image: str, error: UserError) -> str:
    """An error in a few words, without the file's name."""
    return str(error).splitlines()[0].removeprefix(f"{image}: ").partition(". ")[0].rstrip(".")


class _Predictor(pl.LightningModule):
    """Predicts what was read: rows (B,), probabilities (B,L), and what was not."""

    def __init__(self, module: StudyModule) -> None:
        super().__init__()
        self.module = module

    def predict_step(self, read: _Read, batch_idx: int = 0) -> tuple[list[Tensor], list[Tensor], tuple[Any, ...]]:
        done = [self.module.predict_step(batch)[:2] for batch in read.batches]
        return [rows for rows, _ in done], [p for _, p in done], read.skipped


class _Log(pl.Callback):
    """How far it is, every few seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.start = self.said = time.monotonic()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.done += len(batch.ids)
        now = time.monotonic()
        if now - self.said >= LOG_SECONDS:
            self.said, rate = now, self.done / (now - self.start)
            left = clock((self.total - self.done) / rate)
            log.info("predicting: %s of %s studies, %.1f a second, %s to go", f"{self.done:,}", f"{self.total:,}", rate, left)


def _run(
    module: StudyModule, table: StudyTable, rows: np.ndarray, config: DictConfig | None, options: Options
) -> tuple[np.ndarray, np.ndarray, list[Skipped]]:  # fmt: skip
    """Rows of the table that could be read (N,), in order, their probabilities (N,L), and what could not."""
    settings = check_config(config) if config is not None else None
    batch_size = options.batch_size or (settings.batch_size if settings else BATCH)
    accelerator = options.accelerator or (plain(config.accelerator) if config is not None else {"accelerator": "auto"})
    precision = options.precision or (settings.precision if settings else "auto")
    accelerator, _ = hardware({"devices": 1, **accelerator}, precision)
    static_shapes = bool(accelerator.pop("static_shapes", False))
    dataset = StudyDataset(
        table, module.preprocessing["size"], module.preprocessing["rescale"], static_shapes=static_shapes
    )  # fmt: skip
    loader = DataLoader(
        _Tolerant(dataset),
        sampler=StepSampler(rows, np.zeros(len(rows)), batch_size),
        batch_size=None,  # the sampler draws whole batches and the dataset packs them
        collate_fn=_as_is,
        num_workers=worker_count(options.workers) if len(rows) > 2 * batch_size else 0,
        pin_memory=torch.cuda.is_available(),
    )
    trainer = pl.Trainer(
        **accelerator, logger=False,
        callbacks=[StudyProgress(RunningLoss(1)), _Log(len(rows))],
        enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    outputs: Any = trainer.predict(_Predictor(module), loader) or []
    ids = table.frame["id"].tolist()
    skipped = [Skipped(ids[row], *rest) for o in outputs for row, *rest in o[2]]
    found = [r for o in outputs for r in o[0]]
    if not found:
        return np.zeros(0, np.int64), np.zeros((0, len(table.labels))), skipped
    order = torch.cat(found).cpu().numpy()
    probabilities = torch.cat([p for o in outputs for p in o[1]]).double().cpu().numpy()
    require_finite(probabilities, "input")
    places = np.argsort(order, kind="stable")
    return order[places], probabilities[places], skipped


def _as_is(read: Any) -> Any:
    return read
