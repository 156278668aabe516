"""A run from a configuration to its directory: begun or resumed, trained, evaluated, reported."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from xraylab.config.resume import resumed_config
from xraylab.config.settings import check_config
from xraylab.errors import Pruned, Stopped, UserError, listed
from xraylab.evaluation.reader_study import read_readings
from xraylab.inference.evaluate import evaluate_run
from xraylab.reporting.log_results import send_results
from xraylab.reporting.run_report import write_report
from xraylab.reporting.summary import closing_table
from xraylab.run import BEGUN, claimed, how_it_went, read_begun, write_begun
from xraylab.system.command_line import command_line, shown, word
from xraylab.system.environment import environment
from xraylab.system.files import CannotWrite, write_json, write_text
from xraylab.system.paths import conf_dir
from xraylab.system.processes import ALONE, Processes
from xraylab.system.progress import clock
from xraylab.system.remote import RunUpload
from xraylab.system.signals import ENDING, ending
from xraylab.training.callbacks.finite_loss import Diverged
from xraylab.training.checkpoints import read_checkpoint, require_splits
from xraylab.training.devices import memory_in_words
from xraylab.training.distributed.collectives import agree, gather, in_turn, is_lost
from xraylab.training.distributed.launch import lost_words
from xraylab.training.experiment import Job, assemble, check_batches
from xraylab.training.fit import fit, quiet
from xraylab.training.loggers.setup import introduce, make_loggers
from xraylab.training.loggers.wandb import finish
from xraylab.training.xla import log_compiled, on_tpu

log = logging.getLogger(__name__)


def train(
    cfg: DictConfig, directory: Path, typed: Sequence[str], processes: Processes = ALONE, callbacks: Sequence[pl.Callback] = ()
) -> None:  # fmt: skip
    """One run, from a composed configuration to a finished run directory.

    Args:
        processes: that have met, see :func:`xraylab.training.distributed.launch.joined`; only the first writes.
        callbacks: beside those of the configuration.

    Raises:
        UserError: a mistake in the configuration or the data, or the machine is too small for it.
        Pruned: a callback gave it up.
        Stopped: interrupted, or another process was lost; the directory holds what there is and can be resumed.
    """
    if processes.world > 1 and "first" in cfg.loss and cfg.loss.first is None:
        raise UserError(
            "loss=selftrained with several processes: train the first model on its own (loss=ignore "
            "save_train_predictions=true), and name its run: loss.first=<run>."
        )
    mine = cfg.get("upload") and processes.rank == 0
    upload = RunUpload(cfg.upload, directory, fresh=not cfg.get("resume")) if mine else None
    logging.raiseExceptions = False  # a full disk stops the run by its own words, not by those of its log
    try:
        with ending():
            _train(cfg, directory, typed, upload, processes, callbacks)
    finally:
        if upload:
            upload.finish()


def _train(
    cfg: DictConfig, directory: Path, typed: Sequence[str], upload: RunUpload | None, processes: Processes = ALONE,
    callbacks: Sequence[pl.Callback] = (),
) -> None:  # fmt: skip
    quiet()
    first = processes.rank == 0
    go_on = f"Go on with:\n  {command_line('train', [word('resume', directory)], processes.again)}"
    with claimed(directory) if first else nullcontext():
        checkpoint = _checkpoint_to_resume(cfg, directory) if first else None
        if first and checkpoint is None:
            typed = _begin(cfg, directory, typed)
        checkpoint, typed = gather((checkpoint, typed), patiently=True)[0]
        try:
            _run(cfg, directory, typed, upload, checkpoint, go_on, processes, callbacks)
        except (KeyboardInterrupt, SystemExit) as error:  # Lightning turns the first into the second
            if not (directory / "checkpoints" / "last.ckpt").exists():
                raise Stopped(f"stopped before the first checkpoint; it begins again with:{go_on.partition(':')[2]}") from error
            raise Stopped(f"stopped at once; the last checkpoint is whole. {go_on}") from error
        except CannotWrite as error:
            raise UserError(f"{error} Make room, or let it be written there. {go_on}") from error
        except UserError:
            if first and not (directory / "config.yaml").exists():
                (directory / BEGUN).unlink(missing_ok=True)  # nothing was begun
            raise
        except (MemoryError, RuntimeError) as error:
            there = (directory / "checkpoints" / "last.ckpt").exists()
            if is_lost(error):
                state = "The last checkpoint is whole." if there else "There is no checkpoint yet; it would begin again."
                raise Stopped(f"{lost_words(processes, error)} {state} {go_on}") from error
            if (words := memory_in_words(error, check_config(cfg))) is None:
                raise
            more = f" The last checkpoint is whole: where there is more memory, g{go_on[1:]}" if there else ""
            raise UserError(f"{words}{more}") from error


def _checkpoint_to_resume(cfg: DictConfig, directory: Path) -> Path | None:
    """The checkpoint that a run goes on from, checked; None for one that begins.

    Raises:
        UserError: it is not whole, or beyond the epochs asked for; or a run that is to begin is there already.
    """
    named = cfg.get("resume")
    if not named:
        if (directory / "config.yaml").exists():
            raise UserError(
                f"{directory} holds a run already. Go on with it by {shown('resume', directory)}, or name another hydra.run.dir."
            )
        return None
    if not named.endswith(".ckpt"):
        return None
    _check_resumable(Path(named), directory, int(cfg.max_epochs))
    return Path(named)


def _begin(cfg: DictConfig, directory: Path, typed: Sequence[str]) -> list[str]:
    """Record what a run is to be, or clear one that ended before its first checkpoint; returns the overrides it was begun by."""
    if not cfg.get("resume"):
        write_begun(directory, OmegaConf.to_container(cfg), typed)  # type: ignore[arg-type]
        return list(typed)
    log.info("%s has no checkpoint yet: it begins again", directory)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    (directory / "history.csv").unlink(missing_ok=True)
    return [*read_begun(directory)["typed"], *typed]


def _run(
    cfg: DictConfig, directory: Path, typed: Sequence[str], upload: RunUpload | None, checkpoint: Path | None, go_on: str,
    processes: Processes, callbacks: Sequence[pl.Callback],
) -> None:  # fmt: skip
    started = time.monotonic()
    loggers, job = in_turn(
        lambda: (make_loggers(cfg, directory), _job(cfg, directory, typed, upload, checkpoint, go_on, processes)),
        processes.local_rank,
    )
    agree("data", {"studies and splits": job.digest})
    record: dict[str, Any] = {}
    stopped = 0
    if processes.rank == 0:
        record = _describe(job, directory, typed)
        introduce(loggers, job, directory, checkpoint)
    else:
        loggers = []
    try:
        try:
            stopped = fit(job, directory, loggers, checkpoint, upload, callbacks)
        except UserError as error:
            if isinstance(error, CannotWrite | Diverged) or not (directory / "checkpoints" / "last.ckpt").exists():
                raise
            raise UserError(f"{error} What was trained before is kept; where that is mended, g{go_on[1:]}") from error
        if stopped in ENDING:  # there may be no time to evaluate
            raise Stopped(f"{signal.Signals(stopped).name}: stopped before the end; everything is saved. {go_on}")
        evaluation = evaluate_run(job, directory, directory)
        if not evaluation:  # the first process has it
            if stopped:
                raise Stopped("")
            return
        write_json(directory / "evaluation.json", evaluation)
        if on_tpu(job.accelerator):
            log_compiled()
        seconds = round(time.monotonic() - started, 1)
        write_json(directory / "environment.json", {**record, "seconds": seconds})
        write_report(directory)
        # the last, for now nothing is missing
        write_json(directory / "environment.json", {**record, "seconds": seconds, "finished": not stopped})
        send_results(loggers, evaluation, directory)
    except Pruned as pruned:
        write_json(directory / "environment.json", {**record, "pruned": str(pruned)})
        raise
    finally:
        finish(loggers, sys.exception(), stopped)
    log.info("%s", closing_table(evaluation, directory, clock(seconds)))
    if stopped:
        raise Stopped(f"stopped before the end. {go_on}")


def _job(
    cfg: DictConfig, directory: Path, typed: Sequence[str], upload: RunUpload | None, checkpoint: Path | None, go_on: str,
    processes: Processes,
) -> Job:  # fmt: skip
    """Everything that a run is made of, checked before anything of it is written.

    Raises:
        UserError, Stopped: as of :func:`train`.
    """
    cfg = _with_first(cfg, directory, typed, upload, go_on)
    job = assemble(cfg, typed, fresh=checkpoint is None, processes=processes)
    if job.settings.readers is not None:  # before hours of training
        frame = job.table.frame[job.table.frame["split"].isin(["valid", "test"])]
        read_readings(Path(job.settings.readers), job.table.labels, dict(zip(frame["id"], frame["split"], strict=True)))
        job.config.readers = str(Path(job.settings.readers).absolute())
    if checkpoint is not None:
        require_splits(job.digest, checkpoint, str(directory))
    check_batches(job, fresh=checkpoint is None)
    job.config.resume = None
    return job


def _describe(job: Job, directory: Path, typed: Sequence[str]) -> dict[str, Any]:
    """Write what a run is, before it is trained; the content of ``environment.json``."""
    write_text(directory / "config.yaml", f"# data: {job.table.data}\n{OmegaConf.to_yaml(job.config)}")
    before = directory / "environment.json"
    earlier = how_it_went(directory)
    record = {
        **environment(job.settings.seed, list(typed)),
        "device": job.accelerator["accelerator"],
        "processes": {"number": job.processes.world, "machines": job.processes.machines},
        "precision": job.precision,
        "data": job.table.data,
        "measured": job.measured,
        "sessions_before": [*earlier.pop("sessions_before", []), *([earlier] if earlier else [])],
        "finished": False,
    }
    write_json(before, record)
    _summarise(job, directory)
    return record


def _with_first(
    cfg: DictConfig, directory: Path, typed: Sequence[str], upload: RunUpload | None, go_on: str
) -> DictConfig:  # fmt: skip
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
    teacher.resume = None
    record = first / "environment.json"
    begun = (first / "checkpoints" / "last.ckpt").is_file()
    if first.is_dir() and not begun:
        shutil.rmtree(first)  # of a run that ended before its first epoch
    if begun and not cfg.get("resume"):
        _require_same(first, typed)
    if not (record.is_file() and json.loads(record.read_text(encoding="utf-8"))["finished"]):
        what = "resumed" if begun else "trained"
        log.info("loss=selftrained: a first model, which ignores uncertain labels, is %s in %s", what, first)
        teacher = resumed_config(str(first), []) if begun else teacher
        try:
            _train(teacher, first, typed, upload)
        except Stopped:
            raise Stopped(f"stopped while the first model was trained. {go_on}") from None
        log.info("loss=selftrained: the first model is trained; now the second")
    cfg.loss.first = str(first)
    return cfg


def _require_same(first: Path, typed: Sequence[str]) -> None:
    """Refuse a first model that is there already and was begun by another command."""
    record = json.loads((first / "environment.json").read_text(encoding="utf-8"))
    began = [record, *record.get("sessions_before", [])][-1]["overrides"]
    if other := {word for words in (began, typed) for word in words if not word.startswith("hydra.")} - (set(began) & set(typed)):
        raise UserError(
            f"{first}: a first model is there already, of a command that differs in {listed(sorted(other))}. Go on with that "
            "command, name another hydra.run.dir, or delete it."
        )


def _check_resumable(checkpoint: Path, directory: Path, max_epochs: int) -> None:
    """Before anything of a run is touched: the checkpoint is whole, and not beyond the epochs asked for."""
    try:
        saved = read_checkpoint(checkpoint)
    except UserError as error:
        whole = [f"  {command_line('train', [word('resume', path)])}   # {what}" for path, what in _whole(checkpoint)]
        if not whole:
            raise UserError(f"{error} No other checkpoint of this run is whole: begin anew.") from error
        raise UserError(f"{error} These are whole; go on from one of them:\n" + "\n".join(whole)) from error
    done = saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if done > max_epochs:
        raise UserError(
            f"max_epochs={max_epochs}: {directory} has {done} epochs behind it. Give at least that many, or leave it out."
        )


def _whole(broken: Path) -> list[tuple[Path, str]]:
    """The other checkpoints of a run that can be read, the latest first, and where each was written."""
    found = []
    for path in broken.parent.glob("*.ckpt"):
        with suppress(UserError):
            saved = read_checkpoint(path)
            found.append((saved["global_step"], path, f"epoch {saved['epoch'] + 1}, step {saved['global_step']}"))
    return [(path, what) for _, path, what in sorted(found, reverse=True)]


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
