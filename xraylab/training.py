"""A run from its objects to its directory: train, evaluate the best, report."""

from __future__ import annotations

import copy
import json
import logging
import shlex
import shutil
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import Logger

from xraylab import conf_dir
from xraylab.assemble import Job, assemble, mode_of, resumed_config
from xraylab.build import build
from xraylab.callbacks import History, Interrupted, RunningLoss, StopOnInterrupt, StudyProgress, clock
from xraylab.cases import write_cases
from xraylab.errors import Stopped, UserError, listed
from xraylab.evaluation import evaluate_split, prediction_table, raw_counts, write_table
from xraylab.loggers import finish, send_results
from xraylab.module import checkpoint_of, read_checkpoint, require_finite, require_splits
from xraylab.operating import CHOSEN, Rules, judge
from xraylab.page import closing_table, write_report
from xraylab.readers import judge_readers, read_readings
from xraylab.remote import RunUpload
from xraylab.run import environment, write_json, write_text
from xraylab.xla import report

log = logging.getLogger(__name__)


class Best(ModelCheckpoint):
    """``best.ckpt``. A class each, for Lightning tells the states of two ModelCheckpoints apart by class."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score back, also where the run's directory was moved, which Lightning takes for another run."""
        here = Path(str(self.dirpath))
        paths = {k: str(here / Path(v).name) for k, v in state_dict.items() if k.endswith("_path") and v}
        best = {str(here / Path(k).name): v for k, v in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class Top(Best):
    """The checkpoints of ``save_top_k``."""


class Last(Best):
    """``last.ckpt``, not by ``save_last``: that leaves an old one after an epoch that is no best (pytorch-lightning 2.6)."""


class Upload(Checkpoint):
    """Copies the run elsewhere after every epoch. A Checkpoint, for Lightning calls those last, in their order."""

    def __init__(self, upload: RunUpload) -> None:
        self.upload = upload

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.upload.sync()


def train(cfg: DictConfig, directory: Path, typed: Sequence[str]) -> None:
    """One run, from a composed configuration to a finished run directory.

    Raises:
        UserError: a mistake in the configuration or the data.
        Stopped: interrupted; the directory holds what there is and can be resumed.
    """
    upload = RunUpload(cfg.upload, directory, fresh=not cfg.get("resume")) if cfg.get("upload") else None
    try:
        _train(cfg, directory, typed, upload)
    finally:
        if upload:
            upload.finish()


def _train(cfg: DictConfig, directory: Path, typed: Sequence[str], upload: RunUpload | None) -> None:
    started = time.monotonic()
    quiet()
    resume = bool(cfg.get("resume"))
    if not resume and (directory / "config.yaml").exists():
        raise UserError(f"{directory} holds a run already. Go on with it by resume={directory}, or name another hydra.run.dir.")
    if resume:
        _check_resumable(directory, int(cfg.max_epochs))
    job = assemble(_with_first(cfg, directory, typed, upload), typed, fresh=not resume)
    if job.settings.readers is not None:  # before hours of training
        frame = job.table.frame[job.table.frame["split"].isin(["valid", "test"])]
        read_readings(Path(job.settings.readers), job.table.labels, dict(zip(frame["id"], frame["split"], strict=True)))
        job.config.readers = str(Path(job.settings.readers).absolute())
    if resume:
        require_splits(job.digest, directory / "checkpoints" / "last.ckpt", str(directory))
    job.config.resume = None
    write_text(directory / "config.yaml", f"# data: {job.table.data}\n{OmegaConf.to_yaml(job.config)}")
    earlier = json.loads((directory / "environment.json").read_text()) if resume else {}
    record = {
        **environment(job.settings.seed, list(typed)),
        "device": job.accelerator["accelerator"],
        "precision": job.precision,
        "data": job.table.data,
        "sessions_before": [*earlier.pop("sessions_before", []), *([earlier] if earlier else [])],
        "finished": False,
    }
    write_json(directory / "environment.json", record)
    _summarise(job, directory)
    go_on = f"Go on with:\n  python -m xraylab.train {shlex.quote(f'resume={directory}')}"
    loggers = make_loggers(job, directory)
    try:
        stopped = fit(job, directory, loggers, resume, upload)
        evaluation = evaluate_run(job, directory, checkpoint_of(directory))
        write_json(directory / "evaluation.json", evaluation)
        if job.accelerator["accelerator"] == "tpu":
            report(directory / "xla_metrics.txt")
        seconds = round(time.monotonic() - started, 1)
        write_json(directory / "environment.json", {**record, "seconds": seconds, "finished": not stopped})
        write_report(directory)
        send_results(loggers, evaluation, directory)
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning turns the first into the second
        if not (directory / "checkpoints" / "last.ckpt").exists():
            raise KeyboardInterrupt from error
        raise Stopped(f"stopped at once; the last checkpoint is whole. {go_on}") from error
    finally:
        finish(loggers)
    log.info("%s", closing_table(evaluation, directory, clock(seconds)))
    if stopped:
        raise Stopped(f"stopped before the end. {go_on}")


def _with_first(cfg: DictConfig, directory: Path, typed: Sequence[str], upload: RunUpload | None) -> DictConfig:
    """The configuration with the first model's run of a self-trained loss, trained here unless another is named.

    Raises:
        UserError, Stopped: as of :func:`train`.
    """
    first = directory / "first"
    if "first" not in cfg.loss or (cfg.loss.first is not None and not (cfg.get("resume") and first.is_dir())):
        return cfg
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    teacher = copy.deepcopy(cfg)
    ignore = OmegaConf.load(conf_dir() / "loss" / "ignore.yaml")
    teacher.loss = OmegaConf.merge(ignore, {k: v for k, v in cfg.loss.items() if k in ignore and k not in ("_target_", "w")})
    teacher.save_train_predictions, teacher.logger, teacher.upload = True, {}, None  # it is copied with this run
    record = first / "environment.json"
    begun = (first / "checkpoints" / "last.ckpt").is_file()
    if first.is_dir() and not begun:
        shutil.rmtree(first)  # of a run that ended before its first epoch
    if begun and not cfg.get("resume"):
        _require_same(first, typed)
    if not (record.is_file() and json.loads(record.read_text())["finished"]):
        what = "resumed" if begun else "trained"
        log.info("loss=selftrained: a first model, which ignores uncertain labels, is %s in %s", what, first)
        teacher = resumed_config(str(first), []) if begun else teacher
        try:
            _train(teacher, first, typed, upload)
        except Stopped:
            words = [word for word in typed if not word.startswith("hydra.run.dir=")]
            command = shlex.join([*words, f"hydra.run.dir={directory}"])
            raise Stopped(
                f"stopped while the first model was trained. Go on with:\n  python -m xraylab.train {command}"
            ) from None
        log.info("loss=selftrained: the first model is trained; now the second")
    cfg.loss.first = str(first)
    return cfg


def _require_same(first: Path, typed: Sequence[str]) -> None:
    """Refuse a first model that is there already and was begun by another command."""
    record = json.loads((first / "environment.json").read_text())
    began = [record, *record.get("sessions_before", [])][-1]["overrides"]
    if other := {word for words in (began, typed) for word in words if not word.startswith("hydra.")} - (set(began) & set(typed)):
        raise UserError(
            f"{first}: a first model is there already, of a command that differs in {listed(sorted(other))}. Go on with that "
            "command, name another hydra.run.dir, or delete it."
        )


def _check_resumable(directory: Path, max_epochs: int) -> None:
    """Before anything of a run is touched: its last checkpoint is whole, and not beyond the epochs asked for."""
    last = directory / "checkpoints" / "last.ckpt"
    done = read_checkpoint(last)["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if done > max_epochs:
        raise UserError(
            f"max_epochs={max_epochs}: {directory} has {done} epochs behind it. Give at least that many, or leave it out."
        )


def make_loggers(job: Job, directory: Path) -> list[Logger]:
    """The loggers of a job's configuration, which write into its directory unless told otherwise."""
    nodes = job.config.logger.items()
    return [build({**node, "save_dir": node.get("save_dir") or str(directory)}, f"logger.{name}") for name, node in nodes]


def fit(
    job: Job, directory: Path, loggers: Sequence[Logger] = (), resume: bool = False, upload: RunUpload | None = None
) -> bool:  # fmt: skip
    """Train until done, stopped early or interrupted; True if interrupted.

    Leaves ``history.csv`` and ``checkpoints/{best,last}.ckpt``.
    """
    s = job.settings
    folder = directory / "checkpoints"
    running = RunningLoss(s.log_every)
    stop = StopOnInterrupt(folder / "last.ckpt")

    def keep(kind: type[ModelCheckpoint], name: str, **options: Any) -> ModelCheckpoint:
        return kind(
            folder, name, save_on_train_epoch_end=True, auto_insert_metric_name=False, enable_version_counter=False, **options
        )  # fmt: skip

    chosen: dict[str, Any] = {"monitor": s.monitor, "mode": mode_of(s.monitor)}
    callbacks: list[pl.Callback] = [
        History(directory / "history.csv", job.module.labels, s.monitor, job.table.synthetic, s.unit),
        running,
        StudyProgress(running, s.unit),
        *job.callbacks,
        stop,  # after those, for the checkpoint that it writes holds what they did in this step
        keep(Best, "best", **chosen),
        *([keep(Top, "epoch{epoch:03d}", save_top_k=s.save_top_k, **chosen)] if s.save_top_k > 1 else []),
        keep(Last, "last"),
        *([Upload(upload)] if upload else []),
    ]
    if s.early_stopping:
        e = s.early_stopping
        early = EarlyStopping(e.monitor, e.min_delta, e.patience, mode=mode_of(e.monitor), check_on_train_epoch_end=False)
        callbacks.append(early)
    for logger in loggers:
        logger.log_hyperparams({"data": job.table.data, **OmegaConf.to_container(job.config)})  # type: ignore[dict-item]
    trainer = make_trainer(job, callbacks=callbacks, logger=list(loggers) or False, max_epochs=s.max_epochs)
    with suppress(Interrupted):
        trainer.fit(job.module, datamodule=job.data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    if trainer.should_stop and not stop.stopped and s.early_stopping:
        log.info("stopped early: no better %s for %d epochs", s.early_stopping.monitor, s.early_stopping.patience)
    return stop.stopped


def make_trainer(job: Job, **options: Any) -> pl.Trainer:
    """A Trainer for the job's device and precision."""
    return pl.Trainer(
        **job.accelerator,
        accumulate_grad_batches=job.settings.accumulate,
        gradient_clip_val=job.settings.gradient_clip,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **options,
    )


def predict_split(job: Job, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the table (N,), probabilities (N,L), and those of single images (I,L), of a split in table order."""
    trainer = make_trainer(job, logger=False, callbacks=[StudyProgress(RunningLoss(1))], enable_checkpointing=False)
    outputs = trainer.predict(job.module, job.data.loader(split, plain=True)) or []
    rows, by_study = (torch.cat([o[i] for o in outputs]) for i in range(2))
    by_image = torch.cat([images[:real] for _, _, images, real in outputs])
    found = by_study.double().cpu().numpy()
    require_finite(found, split)
    return rows.cpu().numpy(), found, by_image.double().cpu().numpy()


def evaluate_run(job: Job, directory: Path, checkpoint: Path) -> dict[str, Any]:
    """Predict with a checkpoint, write the prediction tables, evaluate them, and write what was chosen on validation.

    Returns:
        The content of ``evaluation.json``.
    """
    saved = read_checkpoint(checkpoint)
    require_splits(job.digest, checkpoint)
    try:
        job.module.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint}: of another model than {directory / 'config.yaml'}: {str(error).splitlines()[0]}"
        ) from error
    table, s = job.table, job.settings
    splits: dict[str, Any] = {}
    tables: dict[str, pd.DataFrame] = {}
    for split in ["valid", "test"] + ["train"] * s.save_train_predictions:
        if not len(table.part(split)):
            continue
        rows, probabilities, by_image = predict_split(job, split)
        predictions = prediction_table(table.frame, table.labels, split, rows, probabilities)
        write_table(predictions, directory / "predictions" / f"{split}.csv", table.synthetic)
        options = (split == "valid", s.bootstrap, s.seed, table.exclusive, s.evaluate.blank, s.evaluate.uncertain)
        if split != "train":
            splits[split], tables[split] = evaluate_split(predictions, *options), predictions
            shown = (predictions, rows)
        if table.many_views:
            images = table.by_image()
            predictions = prediction_table(images.frame, table.labels, split, images.part(split).index.to_numpy(), by_image)
            write_table(predictions, directory / "predictions" / f"{split}_images.csv", table.synthetic)
            if split != "train":
                splits[split]["images"] = evaluate_split(predictions, *options)
    counts_as = s.evaluate.model_dump()
    write_cases(directory, table, *shown, s.cases, **counts_as)  # of test, or of valid where there is no test
    train = table.part("train")
    of = {"file": checkpoint.name, "epoch": saved["epoch"], "step": saved["global_step"], "monitor": s.monitor}
    chosen = judge(splits, tables, Rules(**s.operating.model_dump()), **counts_as)
    if s.readers is not None:
        judge_readers(splits, tables, Path(s.readers), **counts_as)
    write_json(directory / CHOSEN, {"data": table.data, "checkpoint": of, "scored": counts_as, **chosen})
    return {
        "data": table.data,
        "selection": s.selection if s.fold is None else f"fold {s.fold}",
        "checkpoint": of,
        "loss": {"policy": job.module.loss.describe(table.labels, job.module.groups), **job.module.loss.state(table.labels)},
        "skipped": table.problems,
        "trained_on": {
            "n": len(train),
            "patients": int(train["patient"].nunique()) if table.patients_known else None,
            "labels": {label: raw_counts(train[label].to_numpy(float)) for label in table.labels},
        },
        "scored": counts_as,
        "splits": splits,
    }


def quiet() -> None:
    """Keep Lightning's remarks that do not concern the user out of the output."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for reason in (
        ".*does not have many workers.*",  # on few cores none is best
        ".*number of training batches.*smaller than the logging interval.*",  # running loss has its own interval
        ".*dataloader is not resumable.*",  # the data module resumes it
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
        ".*module.s. in eval mode at the start of training.*",  # frozen batch statistics
        ".*You are using a CUDA device.*Tensor Cores.*",
        ".*isinstance.treespec, LeafSpec.*",  # inside Lightning, about torch
        ".*LeafSpec.*deprecated.*",
    ):
        warnings.filterwarnings("ignore", reason)


def _summarise(job: Job, directory: Path) -> None:
    """``model_summary.txt``, and its last word in the log."""
    module = job.module
    total = sum(p.numel() for p in module.parameters())
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    line = f"{trainable:,} trainable parameters of {total:,}"
    backbone = module.net.backbone.hparams.get("name", type(module.net.backbone).__name__)
    head = f"backbone {backbone}, pool {type(module.net.pool).__name__}"
    rows = [f"{'parameters':>12}  {'trainable':>12}  module"]
    for name, part in module.named_modules():
        counts = [sum(p.numel() for p in part.parameters() if p.requires_grad or not only) for only in (False, True)]
        if name.count(".") < 6 and counts[0]:
            rows.append(f"{counts[0]:>12,}  {counts[1]:>12,}  {name or 'all'} ({type(part).__name__})")
    text = f"{head}\n{line}\ndata: {job.table.data}\n\n" + "\n".join(rows) + "\n"
    write_text(directory / "model_summary.txt", text)
    log.info("model: %s; %s", head, line)
