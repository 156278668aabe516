"""Optuna's memory of a sweep, ``study.db``: what is drawn next, and what became of it."""

from __future__ import annotations

import logging
import math
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xraylab.config.settings import mode_of
from xraylab.errors import UserError
from xraylab.sweeps.record import Journal, SweepJob, history_of
from xraylab.sweeps.search_space import Dimension, distributions, words_of

log = logging.getLogger(__name__)
PATIENCE = 60  # seconds for another process to be done with study.db
REDRAWS = 50  # of a point that is there already


@contextmanager
def stored(folder: Path, go_on: str) -> Iterator[None]:
    """Context for all that reads or writes ``study.db``, whose errors become messages.

    Args:
        go_on: the command that goes on with the sweep.

    Raises:
        UserError: another process holds it, or it is damaged, or cannot be written; what the jobs left is kept.
    """
    try:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:  # which is said where it is needed
        yield
        return
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        path, why = folder / "study.db", str(cause).splitlines()[0]
        if "locked" in why:
            mend = f"another process holds it, as a dashboard or a backup, for more than {PATIENCE} s. Let it end."
        elif any(word in why for word in ("readonly", "unable to open", "disk", "full")):
            mend = "Make room, or let it be written there."
        else:
            mend = "It is damaged. Delete it: what the jobs have shown is in sweep.json, from which it is written anew."
        raise UserError(f"{path}: {why}. {mend} No job is lost. Go on with:\n  {go_on}") from None


class Study:
    """Optuna's study of a sweep, one trial a job.

    Each draw is seeded by its job's number, so a sweep that was cut off draws as one that was not.

    Args:
        folder: of the sweep; ``study.db`` lies in it.
        method: random or tpe.
        space: what can vary.
        objectives: metrics; those that end in loss are minimised.
        seed: of every draw.
        parallel: whether several are drawn before any of them is known.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(
        self, folder: Path, method: str, space: Mapping[str, Dimension], objectives: Sequence[str], seed: int, parallel: bool
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError(f"sweep.method={method} needs Optuna ({error}): pip install 'xraylab[sweeps]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.method, self.space, self.objectives = optuna, method, space, list(objectives)
        self.seed, self.parallel = seed, parallel
        self.distributions = distributions(space)
        folder.mkdir(parents=True, exist_ok=True)
        # the path in no URL, which would end at a question mark
        database = partial(sqlite3.connect, (folder / "study.db").absolute(), timeout=PATIENCE, check_same_thread=False)
        storage = optuna.storages.RDBStorage("sqlite:///study.db", {"creator": database})
        self.study = optuna.create_study(
            storage=storage, study_name="sweep", load_if_exists=True,
            directions=["maximize" if mode_of(o) == "max" else "minimize" for o in objectives],
        )  # fmt: skip
        self.trials: dict[int, Any] = {}  # by job

    def catch_up(self, journal: Journal) -> None:
        """Bring the study up to date after a sweep was cut off: nothing runs any more, and what was finished meanwhile counts."""
        state = self.optuna.trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            self.study.tell(trial.number, state=state.FAIL)
        known = {t.user_attrs.get("job") for t in self.study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED))}
        for job in journal.jobs:
            if job.state in ("finished", "pruned") and None not in job.scores and job.number not in known:
                self.ask_again(job)
                self.tell(job, journal.folder)

    def ask(self, jobs: Sequence[SweepJob]) -> SweepJob | None:
        """The next job: a point that no other has; None where there seems to be none left."""
        number = len(jobs)
        for k in range(REDRAWS):
            self.study.sampler = self._sampler(number, k)
            trial = self.study.ask(self.distributions)
            if all(job.params != trial.params for job in jobs):
                return self._keep(trial, SweepJob(number, words_of(self.space, trial.params), trial.params))
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
        log.warning("every point that was drawn has been run already: the sweep ends after %d jobs", number)
        return None

    def ask_again(self, job: SweepJob) -> None:
        """Make a trial for a job that is repeated, or was not told of."""
        if job.number not in self.trials:
            self.study.enqueue_trial(job.params)
            self._keep(self.study.ask(self.distributions), job)

    def tell(self, job: SweepJob, folder: Path) -> None:
        """Record what became of a job: its scores, and its course where there is one objective."""
        trial, state = self.trials.pop(job.number), self.optuna.trial.TrialState
        if len(self.objectives) == 1 and self.objectives[0].startswith("valid/"):
            course = history_of(folder / str(job.number) / "history.csv", self.objectives[0])
            for epoch, value in course.items():
                if math.isfinite(value):
                    trial.report(value, int(epoch))
        if job.reason:
            trial.set_user_attr("reason", job.reason)
        if job.state == "pruned":
            self.study.tell(trial, state=state.PRUNED)
        elif job.state == "finished" and None not in job.scores:
            self.study.tell(trial, [score for score in job.scores if score is not None])
        else:
            self.study.tell(trial, state=state.FAIL)

    def _keep(self, trial: Any, job: SweepJob) -> SweepJob:
        trial.set_user_attr("job", job.number)
        self.trials[job.number] = trial
        return job

    def _sampler(self, number: int, redraw: int) -> Any:
        seed = int(np.random.SeedSequence([self.seed, number, redraw]).generate_state(1)[0])
        samplers = self.optuna.samplers
        if self.method == "random":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)  # constant_liar, in Optuna 4
            return samplers.TPESampler(seed=seed, constant_liar=self.parallel)
