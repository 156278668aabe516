"""Several jobs from one command: a grid, random points or Optuna's TPE, through any of Hydra's launchers.

What imports torch is imported where it is used: mistakes in a sweep answer before, and what only hands jobs to a cluster needs
none of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from joblib import effective_n_jobs  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xraylab.config.dataset import reader_of, resolved
from xraylab.config.settings import Sweep, check_config, sweep_of
from xraylab.errors import EXIT_USER, Stopped, UserError
from xraylab.evaluation.objective import objectives_of
from xraylab.run import Run, claimed, holder_of
from xraylab.sweeps.comparable import incomparable_over, of_job
from xraylab.sweeps.optuna_study import Study, stored
from xraylab.sweeps.record import SETTLED, Journal, SweepJob, words_of_command
from xraylab.sweeps.search_space import Dimension, corners, grid, search_space, varied
from xraylab.system.command_line import require_recordable, shown
from xraylab.system.processes import planned, shared_gpus

log = logging.getLogger(__name__)
ELSEWHERE = ("SlurmLauncher", "RayLauncher", "RayAWSLauncher")  # launchers whose jobs run on other machines


class JobSweeper(Sweeper):
    """Runs the jobs of a sweep, records what became of each in ``sweep.json``, and goes on where an earlier one stopped.

    Args:
        max_batch_size: jobs that the launcher gets at once; null: one, or all of them where it runs several at a time.
        params: key -> values, beside those on the command line.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, dict(params or {})
        # of each job that failed, whether by the user's mistake; its error would keep alive what the job had in memory
        self.mistakes: list[bool] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over before :meth:`sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run every job that is not settled yet.

        Args:
            arguments: the overrides of the command line.

        Raises:
            UserError: the sweep cannot be begun, or not resumed.
            Stopped: interrupted; it can be resumed.
            SystemExit: a job failed.
        """
        config = self.config
        rules = sweep_of(OmegaConf.to_container(config.sweep, resolve=True))  # type: ignore[arg-type]
        objectives = objectives_of(rules, str(config.monitor))
        folder = Path(config.hydra.sweep.dir)
        require_recordable(folder)
        own = [word for word in arguments if not word.startswith("sweep.resume=")]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = search_space(parser.parse_overrides([*(f"{k}={v}" for k, v in self.params.items()), *own]))
        size = self._batch_size(rules.method, bool(config.fail_fast))
        if config.resume is not None or "resume" in varied(space):
            raise UserError("resume: a run goes on by a command of its own, without -m; a sweep by sweep.resume=<its directory>.")
        if not varied(space) and (of := [w for w in own if w.startswith("sweep.")]):
            raise UserError(
                f"{of[0]}: nothing varies. Give values, as seed=0,1,2 or, of random and tpe, optimizer.lr=interval(1e-5,1e-3)."
            )
        journal = self._journal(folder, rules, objectives, space)
        ahead = [job.overrides for job in journal.jobs if job.state not in SETTLED] if rules.method == "grid" else corners(space)
        at_once = min(size, len(ahead) if rules.method == "grid" else rules.trials)
        if ahead:
            self._check(ahead, at_once)
        if ahead and rules.method != "grid":
            self._require_comparable(space, objectives, rules.method)
        with contextlib.ExitStack() as around:
            around.enter_context(claimed(folder, "hydra.sweep.dir"))
            study = None
            if rules.method != "grid":
                around.enter_context(stored(folder, journal.go_on))
                study = Study(folder, rules.method, space, objectives, int(config.seed), size > 1)
            OmegaConf.save(config, folder / "multirun.yaml")
            for job in journal.jobs:
                _prepare(journal, job)
            journal.write()
            if study is not None:
                study.catch_up(journal)
            try:
                self._run(journal, study, rules.trials, size)
            except KeyboardInterrupt:
                raise Stopped(self._stopped(journal.go_on)) from None
        if self.mistakes:
            self.hydra_context.callbacks.on_multirun_end(config=config)  # which Hydra leaves out where a sweep fails
            sys.exit(EXIT_USER if all(self.mistakes) else 1)

    @property
    def _launcher_name(self) -> str:
        return str(self.config.hydra.launcher._target_).rpartition(".")[2]

    def _stopped(self, go_on: str) -> str:
        here = self._launcher_name in ("BasicLauncher", "JoblibLauncher")
        others = "" if here else " Jobs that were started go on where they are; wait for their end, or cancel them."
        return f"the sweep is stopped.{others} Go on with:\n  {go_on}"

    def _journal(self, folder: Path, rules: Sweep, objectives: list[str], space: Mapping[str, Dimension]) -> Journal:
        """The record of a sweep that begins, or of the one that goes on, on which no other process works."""
        if rules.resume:
            journal = Journal.read(folder)
        elif (folder / "sweep.json").is_file():
            raise UserError(
                f"{folder} holds a sweep already. Go on with it by {shown('sweep.resume', folder)}, or name another directory."
            )
        else:
            journal = Journal(folder, words_of_command(self.config), rules.method, objectives)
            if rules.method == "grid":
                journal.jobs = [SweepJob(number, words) for number, words in enumerate(grid(space))]
                self.validate_batch_is_legal([job.overrides for job in journal.jobs])
        for job in journal.jobs:
            if job.state not in SETTLED and (holder := holder_of(folder / str(job.number))) is not None:
                raise UserError(f"{folder / str(job.number)}: {holder} still works there. Wait for its end, then resume.")
        return journal

    def _batch_size(self, method: str, fail_fast: bool) -> int:
        """Jobs that the launcher gets at once."""
        if self.max_batch_size is not None:
            return max(1, self.max_batch_size)
        if self._launcher_name == "BasicLauncher":
            return 1  # so that what a job shows is known before the next
        if method == "tpe" or fail_fast:
            key = f"sweep.method={method}" if method == "tpe" else "fail_fast=true"
            raise UserError(
                f"{key}: say how many jobs this launcher runs at a time (hydra.sweeper.max_batch_size=4): what comes next "
                "depends on their results."
            )
        return sys.maxsize

    def _check(self, jobs: Sequence[list[str]], at_once: int) -> None:
        """Refuse what no job could do: a mistake that is in the first and the last job, which differ in all that varies.

        Raises:
            UserError: it is there.
        """
        with _checking_ahead():
            if (error := self._mistake(jobs[0], at_once)) and str(error) == str(self._mistake(jobs[-1], at_once)):
                raise error

    def _require_comparable(self, space: Mapping[str, Dimension], objectives: Sequence[str], method: str) -> None:
        """Refuse ``tpe`` by an objective that is not measured alike over a key; where draws do not follow it, say so.

        Not where the data is that of other machines.

        Raises:
            UserError: it is not measured alike, and ``tpe`` would follow it.
        """
        if self._launcher_name in ELSEWHERE:
            return
        with _checking_ahead():
            found = incomparable_over(space, objectives, self._composed, method)
        for why in found:
            log.warning("%s. No job will be the best of all.", why)

    def _mistake(self, words: list[str], at_once: int) -> UserError | None:
        try:
            self._check_job(words, at_once)
        except UserError as error:
            return error
        except (HydraException, OmegaConfBaseException, Stopped):
            raise
        except Exception:
            return None  # the job meets it again, and it is recorded
        return None

    def _composed(self, words: list[str]) -> DictConfig:
        """The configuration of a job, which is in force from now on."""
        config: DictConfig = self.hydra_context.config_loader.load_sweep_config(self.config, words)
        HydraConfig.instance().set_config(config)
        return config

    def _check_job(self, words: list[str], at_once: int) -> None:
        config, typed = of_job(self._composed(words))
        check_config(config)
        processes = planned(config.accelerator, sweep=True)
        if config.sweep.prune and processes.world > 1:
            raise UserError("sweep.prune: a job of several processes cannot be given up. Leave out one of the two.")
        launcher = self._launcher_name
        if launcher == "SlurmLauncher" and shutil.which("srun") is None:
            raise UserError(
                "hydra/launcher=submitit_slurm: there is no SLURM on this machine (no srun). Start the sweep where there is, or "
                "take hydra/launcher=joblib."
            )
        if launcher == "BasicLauncher":
            from xraylab.training.experiment import Experiment

            Experiment.from_config(resolved(config, typed), processes=processes)
        elif launcher in ELSEWHERE:
            reader_of(config)  # the data and the device are those of other machines
        else:
            if self.config.hydra.launcher.get("n_jobs") == 0:
                raise UserError("hydra.launcher.n_jobs=0: it is how many jobs run at a time, or -1: as many as there are cores.")
            resolved(config, typed)
            self._share_gpus(str(config.accelerator.accelerator), processes.local_world, at_once)

    def _share_gpus(self, kind: str, devices: int, at_once: int) -> None:
        """Say how the GPUs of this machine are shared by the jobs that run at a time, and which there are to share."""
        if kind in ("cpu", "tpu"):
            return
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        options = self.config.hydra.launcher
        if kind != "auto" and not count:
            from xraylab.training.devices import no_gpu

            raise no_gpu(kind)
        if "gpus_per_node" in options:
            if kind != "auto" and not options.gpus_per_node:
                raise UserError(
                    f"accelerator={kind}: this launcher hides all GPUs but hydra.launcher.gpus_per_node={max(count, 1)}."
                )
            return
        if count and "n_jobs" in options:
            print(shared_gpus(count, devices, min(at_once, effective_n_jobs(int(options.n_jobs)))))
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))  # for own_gpus of its workers

    def _run(self, journal: Journal, study: Study | None, trials: int, size: int) -> None:
        while True:
            batch = [job for job in journal.jobs if job.state == "waiting"][:size]
            if study is not None:
                for job in batch:
                    study.ask_again(job)
                while len(batch) < size and len(journal.jobs) < trials and (new := study.ask(journal.jobs)) is not None:
                    journal.jobs.append(new)
                    batch.append(new)
            if not batch:
                return
            self._launch(journal, batch)
            if study is not None:
                for job in batch:
                    study.tell(job, journal.folder)
            if self.config.fail_fast and any(job.state == "failed" for job in batch):
                return

    def _launch(self, journal: Journal, batch: Sequence[SweepJob]) -> None:
        for job in batch:
            job.state = "running"
        journal.write()
        words = [[*job.overrides, f"hydra.sweep.subdir={job.number}"] for job in batch]
        returned: Sequence[Any] = [None] * len(batch)
        lost: Exception | None = None
        try:
            returned = self.launcher.launch(words, initial_job_idx=batch[0].number)
        except KeyboardInterrupt:
            for job in batch:
                journal.settle(job)
            journal.write()
            raise
        except Exception as error:  # of the launcher: a process or a machine is gone, and what it did not finish with it
            lost = error
        stopped = False
        for job, result in zip(batch, returned, strict=True):
            why = lost if result is None else _error_of(result)
            stopped |= isinstance(why, Stopped)
            journal.settle(job, None if isinstance(why, Stopped) else why)
            if job.state == "failed":
                self.mistakes.append(why is None or isinstance(why, UserError))
        journal.write()
        if stopped:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _checking_ahead() -> Iterator[None]:
    """Compose and check jobs ahead, quietly, for each says the rest itself; Hydra's configuration is what it was afterwards."""
    hydra, handlers = HydraConfig.instance(), logging.root.handlers
    composed = hydra.cfg
    for handler in handlers:
        handler.addFilter(_is_progress)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_progress)
        hydra.cfg = composed


def _is_progress(record: logging.LogRecord) -> bool:
    """Whether it is of what takes long and is done once for all jobs, as packing or copying a dataset."""
    return record.levelno > logging.WARNING or (
        record.levelno < logging.WARNING and record.name.startswith(("xraylab.data.", "xraylab.system.remote"))
    )


def _error_of(result: Any) -> Exception | None:
    # result.return_value would print "Error executing job" of jobs that were stopped or given up too
    return result._return_value if result.status is JobStatus.FAILED else None


def _prepare(journal: Journal, job: SweepJob) -> None:
    """Make a job that is not settled ready to run: in place where it was cut off and left a checkpoint, else anew."""
    before = job.state
    if before in ("waiting", *SETTLED):
        return
    journal.settle(job)
    if job.state in SETTLED:
        return
    run = journal.folder / str(job.number)
    begun = any(Run(run / part).checkpoint("last").is_file() for part in ("", "first"))
    if run.is_dir() and (before == "failed" or not begun):
        shutil.rmtree(run)
    job.state, job.reason = "waiting", None
