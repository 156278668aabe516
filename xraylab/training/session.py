"""A session: the time in which a process works in a run's directory. It begins or resumes the run, and explains its errors."""

from __future__ import annotations

import copy
import logging
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from xraylab.config.dataset import resolved
from xraylab.config.resume import resumed_config
from xraylab.config.settings import check_config
from xraylab.errors import Pruned, Stopped, UserError, listed
from xraylab.evaluation.reader_study import read_readings
from xraylab.run import BEGUN, Run, claimed, how_it_went, read_begun, write_begun
from xraylab.system.command_line import command_line, shown, word
from xraylab.system.environment import environment
from xraylab.system.files import CannotWrite, write_json, write_text
from xraylab.system.paths import conf_dir
from xraylab.system.processes import SINGLE_PROCESS, Processes
from xraylab.system.remote import RunUpload
from xraylab.system.signals import END_SIGNALS, raise_on_signals
from xraylab.training.callbacks.finite_loss import Diverged
from xraylab.training.checkpoints import read_checkpoint, require_splits
from xraylab.training.data_checks import check_batches
from xraylab.training.devices import memory_in_words
from xraylab.training.distributed.collectives import agree, gather, in_turn, is_lost
from xraylab.training.distributed.launch import lost_words
from xraylab.training.experiment import Experiment
from xraylab.training.fit import fit, silence_lightning
from xraylab.training.loggers.setup import introduce, make_loggers
from xraylab.training.loggers.wandb import finish
from xraylab.training.xla import log_compiled, on_tpu

log = logging.getLogger(__name__)


@dataclass
class Session:
    """A run while this process holds its directory, from the configuration to the last file; see :func:`session`.

    Attributes:
        config: as composed, or of the run that goes on.
        directory: the run's.
        typed: the overrides that it was begun by.
        checkpoint: to go on from; None: it begins.
        upload: of the directory, where one is asked for.
        loggers: of the configuration, in the first process.
        stopped: the signal that ended its training early, or 0.
    """

    config: DictConfig
    directory: Path
    typed: list[str]
    processes: Processes
    checkpoint: Path | None
    upload: RunUpload | None
    loggers: list[Logger] = field(default_factory=list)
    stopped: int = 0
    started: float = field(default_factory=time.monotonic)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that goes on with it."""
        return command_line("train", [word("resume", self.directory)], self.processes.again)

    @property
    def go_on(self) -> str:
        """The sentence that says how to go on."""
        return f"Go on with:\n  {self.command}"

    def first_model(self) -> tuple[DictConfig, Path] | None:
        """Configuration and directory of a self-trained loss's first model, where it is still to be trained.

        The loss names its run from then on.

        Raises:
            UserError: there is one already, of another command.
        """
        cfg, first = self.config, self.directory / "first"
        if "first" not in cfg.loss or (cfg.loss.first is not None and not (cfg.get("resume") and first.is_dir())):
            return None
        self.config = copy.deepcopy(cfg)
        OmegaConf.set_struct(self.config, False)
        self.config.loss.first = str(first)
        begun = Run(first).checkpoint("last").is_file()
        if first.is_dir() and not begun:
            shutil.rmtree(first)  # of a run that ended before its first epoch
        if begun and not cfg.get("resume"):
            _require_same(first, self.typed)
        if Run(first).finished:
            return None
        what = "resumed" if begun else "trained"
        log.info("loss=selftrained: a first model, which ignores uncertain labels, is %s in %s", what, first)
        if begun:
            return resumed_config(str(first), []), first
        teacher = copy.deepcopy(self.config)
        ignore = OmegaConf.load(conf_dir() / "loss" / "ignore.yaml")
        teacher.loss = OmegaConf.merge(ignore, {k: v for k, v in cfg.loss.items() if k in ignore and k not in ("_target_", "w")})
        teacher.save_train_predictions, teacher.logger, teacher.upload = True, {}, None  # it is copied with this run
        teacher.resume = None
        return teacher, first

    def prepare(self) -> Experiment:
        """Everything that the run is made of, checked before anything of it is written; then what it is, written and logged.

        Raises:
            UserError, Stopped: as of :func:`xraylab.train.train`.
        """
        loggers, experiment = in_turn(
            lambda: (make_loggers(self.config, self.directory), self._checked_experiment()), self.processes.local_rank
        )
        agree("data", {"studies and splits": experiment.digest})
        if self.processes.rank == 0:
            self.record = _write_record(experiment, self.directory, self.typed)
            introduce(loggers, experiment, self.directory, self.checkpoint)
            self.loggers = loggers
        return experiment

    def _checked_experiment(self) -> Experiment:
        fresh = self.checkpoint is None
        experiment = Experiment.from_config(resolved(self.config, self.typed, fresh), fresh, self.processes)
        if experiment.settings.readers is not None:  # before hours of training
            readers = Path(experiment.settings.readers)
            frame = experiment.table.frame[experiment.table.frame["split"].isin(["valid", "test"])]
            read_readings(readers, experiment.table.labels, dict(zip(frame["id"], frame["split"], strict=True)))
            experiment.config.readers = str(readers.absolute())
        if self.checkpoint is not None:
            require_splits(experiment.digest, self.checkpoint, str(self.directory))
        check_batches(experiment, fresh)
        experiment.config.resume = None
        return experiment

    def train(self, experiment: Experiment, callbacks: Sequence[pl.Callback] = ()) -> None:
        """Train until done, stopped early or interrupted.

        Raises:
            UserError: it cannot go on; what to do.
            Stopped: a signal asked for an end at once.
        """
        try:
            self.stopped = fit(experiment, self.directory, self.loggers, self.checkpoint, self.upload, callbacks)
        except UserError as error:
            if isinstance(error, CannotWrite | Diverged) or not Run(self.directory).checkpoint("last").exists():
                raise
            kept = "What was trained before is kept; where that is mended, go on with:"
            raise UserError(f"{error} {kept}\n  {self.command}") from error
        if self.stopped in END_SIGNALS:  # there may be no time to evaluate
            raise Stopped(f"{signal.Signals(self.stopped).name}: stopped before the end; everything is saved. {self.go_on}")

    def write_evaluation(self, evaluation: Mapping[str, Any], experiment: Experiment) -> None:
        """Write ``evaluation.json``, and into ``environment.json`` how long the run took."""
        write_json(Run(self.directory).evaluation_file, evaluation)
        if on_tpu(experiment.accelerator):
            log_compiled()
        self.record["seconds"] = round(time.monotonic() - self.started, 1)
        write_json(Run(self.directory).environment_file, self.record)

    def mark_finished(self) -> None:
        """Record in ``environment.json`` that nothing is missing, unless the run was stopped."""
        self.record["finished"] = not self.stopped
        write_json(Run(self.directory).environment_file, self.record)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close the loggers at the end of what is done inside, and record a run that was given up."""
        try:
            yield
        except Pruned as pruned:
            write_json(Run(self.directory).environment_file, {**self.record, "pruned": str(pruned)})
            raise
        finally:
            finish(self.loggers, sys.exception(), self.stopped)


@contextmanager
def session(
    cfg: DictConfig, directory: Path, typed: Sequence[str], processes: Processes = SINGLE_PROCESS, outer: Session | None = None
) -> Iterator[Session]:
    """Context that holds a run's directory: the run is begun or goes on, and what breaks is said in words.

    Args:
        processes: that have met, see :func:`xraylab.training.distributed.launch.process_group`; only the first writes.
        outer: the run that this one is the first model of.

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
    if outer is not None:
        with _hold(cfg, directory, typed, processes, outer.upload) as held:
            yield held
        return
    asked = cfg.get("upload") and processes.rank == 0
    upload = RunUpload(cfg.upload, directory, fresh=not cfg.get("resume")) if asked else None
    before, logging.raiseExceptions = logging.raiseExceptions, False  # a full disk stops the run by its own words, not its log's
    try:
        with raise_on_signals(), _hold(cfg, directory, typed, processes, upload) as held:
            yield held
    finally:
        logging.raiseExceptions = before
        if upload:
            upload.finish()


@contextmanager
def _hold(
    cfg: DictConfig, directory: Path, typed: Sequence[str], processes: Processes, upload: RunUpload | None
) -> Iterator[Session]:
    silence_lightning()
    first, last = processes.rank == 0, Run(directory).checkpoint("last")
    with claimed(directory) if first else nullcontext():
        checkpoint = _checkpoint_to_resume(cfg, directory) if first else None
        if first and checkpoint is None:
            typed = _begin(cfg, directory, typed)
        checkpoint, typed = gather((checkpoint, typed), patiently=True)[0]
        held = Session(cfg, directory, list(typed), processes, checkpoint, upload)
        try:
            yield held
        except (KeyboardInterrupt, SystemExit) as error:  # Lightning turns the first into the second
            if not last.exists():
                raise Stopped(f"stopped before the first checkpoint; it begins again with:\n  {held.command}") from error
            raise Stopped(f"stopped at once; the last checkpoint is whole. {held.go_on}") from error
        except CannotWrite as error:
            raise UserError(f"{error} Make room, or let it be written there. {held.go_on}") from error
        except UserError:
            if first and not Run(directory).config_file.exists():
                (directory / BEGUN).unlink(missing_ok=True)  # nothing was begun
            raise
        except (MemoryError, RuntimeError) as error:
            there = last.exists()
            if is_lost(error):
                state = "The last checkpoint is whole." if there else "There is no checkpoint yet; it would begin again."
                raise Stopped(f"{lost_words(processes, error)} {state} {held.go_on}") from error
            if (words := memory_in_words(error, check_config(cfg))) is None:
                raise
            more = f" The last checkpoint is whole: where there is more memory, go on with:\n  {held.command}" if there else ""
            raise UserError(f"{words}{more}") from error


def _checkpoint_to_resume(cfg: DictConfig, directory: Path) -> Path | None:
    """The checkpoint that a run goes on from, checked; None for one that begins.

    Raises:
        UserError: it is not whole, or beyond the epochs asked for; or a run that is to begin is there already.
    """
    named = cfg.get("resume")
    if not named:
        if Run(directory).config_file.exists():
            raise UserError(
                f"{directory} holds a run already. Go on with it by {shown('resume', directory)}, or name another hydra.run.dir."
            )
        return None
    if not named.endswith(".ckpt"):
        return None
    checkpoint = Path(named)
    try:
        saved = read_checkpoint(checkpoint)
    except UserError as error:
        whole = [f"  {command_line('train', [word('resume', path)])}   # {what}" for path, what in _whole(checkpoint)]
        if not whole:
            raise UserError(f"{error} No other checkpoint of this run is whole: begin anew.") from error
        raise UserError(f"{error} These are whole; go on from one of them:\n" + "\n".join(whole)) from error
    done = saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if done > cfg.max_epochs:
        raise UserError(
            f"max_epochs={cfg.max_epochs}: {directory} has {done} epochs behind it. Give at least that many, or leave it out."
        )
    return checkpoint


def _begin(cfg: DictConfig, directory: Path, typed: Sequence[str]) -> list[str]:
    """Record what a run is to be, or clear one that ended before its first checkpoint; returns the overrides it was begun by."""
    if not cfg.get("resume"):
        write_begun(directory, OmegaConf.to_container(cfg), typed)  # type: ignore[arg-type]
        return list(typed)
    log.info("%s has no checkpoint yet: it begins again", directory)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    Run(directory).history_file.unlink(missing_ok=True)
    return [*read_begun(directory)["typed"], *typed]


def _write_record(experiment: Experiment, directory: Path, typed: Sequence[str]) -> dict[str, Any]:
    """Write ``config.yaml``, ``environment.json`` and ``model_summary.txt`` before training; returns what the second holds."""
    write_text(Run(directory).config_file, f"# data: {experiment.table.data}\n{OmegaConf.to_yaml(experiment.config)}")
    earlier = how_it_went(directory)
    record = {
        **environment(experiment.settings.seed, list(typed)),
        "device": experiment.accelerator["accelerator"],
        "processes": {"number": experiment.processes.world, "machines": experiment.processes.machines},
        "precision": experiment.precision,
        "data": experiment.table.data,
        "measured": experiment.measured,
        "sessions_before": [*earlier.pop("sessions_before", []), *([earlier] if earlier else [])],
        "finished": False,
    }
    write_json(Run(directory).environment_file, record)
    _write_summary(experiment, directory)
    return record


def _require_same(first: Path, typed: Sequence[str]) -> None:
    """Refuse a first model that is there already and was begun by another command."""
    began = Run(first).words
    if other := {word for words in (began, typed) for word in words if not word.startswith("hydra.")} - (set(began) & set(typed)):
        raise UserError(
            f"{first}: a first model is there already, of a command that differs in {listed(sorted(other))}. Go on with that "
            "command, name another hydra.run.dir, or delete it."
        )


def _whole(broken: Path) -> list[tuple[Path, str]]:
    """The other checkpoints of a run that can be read, the latest first, and where each was written."""
    found = []
    for path in broken.parent.glob("*.ckpt"):
        with suppress(UserError):
            saved = read_checkpoint(path)
            found.append((saved["global_step"], path, f"epoch {saved['epoch'] + 1}, step {saved['global_step']}"))
    return [(path, what) for _, path, what in sorted(found, reverse=True)]


def _write_summary(experiment: Experiment, directory: Path) -> None:
    """Write ``model_summary.txt``: every part of the network with its parameters; their sums are logged."""
    module = experiment.module
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
    text = f"{head}\n{line}\ndata: {experiment.table.data}\n\n" + "\n".join(rows) + "\n"
    write_text(directory / "model_summary.txt", text)
    log.info("model: %s; %s", head, line)
