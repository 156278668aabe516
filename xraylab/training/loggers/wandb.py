"""The logger of Weights & Biases; what a run sends at its end is in :mod:`xraylab.reporting.log_results`."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from xraylab.config.settings import mode_of
from xraylab.errors import EXIT_RESUMABLE, EXIT_USER, Pruned, Stopped, UserError
from xraylab.system.files import write_json
from xraylab.training.loggers.base import Unfailing, in_a_line
from xraylab.training.loggers.record import RECORD, read_record

log = logging.getLogger(__name__)
STEP = "trainer/global_step"  # Lightning's name of the axis
IDENTITY = ("id", "project", "entity", "group")
PATIENCE = 600.0  # seconds that the end of a run waits for an upload


class Wandb(Unfailing, WandbLogger):
    """Lightning's Weights & Biases logger, which never stops a run, and goes on with one W&B run when a run is resumed.

    Args:
        save_dir: where the folder ``wandb`` is written.
        offline: record on disk, for a later ``wandb sync``; so it is also where there is no key, or W&B is out of reach.
        artifacts: the checkpoint and the tables too.
        tags: of the W&B run.
        options: of ``WandbLogger`` and ``wandb.init``.

    Raises:
        UserError: a value of another type.

    >>> Wandb("outputs", tags=["baseline"]).offline  # recorded under outputs/wandb, for a later wandb sync
    True
    """

    called = "W&B"

    def __init__(
        self, save_dir: str = ".", offline: bool = True, artifacts: bool = True, tags: Sequence[str] = (), **options: Any
    ) -> None:
        for key, value in (("offline", offline), ("artifacts", artifacts)):
            if not isinstance(value, bool):
                raise UserError(f"logger.wandb.{key}={value}: it is true or false.")
        if isinstance(tags, str):
            raise UserError(f"logger.wandb.tags={tags}: it is a list: logger.wandb.tags=[{tags}].")
        settings = {"finish_timeout": PATIENCE, **(options.pop("settings", None) or {})}
        super().__init__(save_dir=save_dir, tags=list(tags), settings=settings, **options)
        del self._wandb_init["anonymous"]  # of which wandb 0.31 warns, though it is None
        self.artifacts = artifacts
        self.artifacts_of: str | None = None  # the W&B run that names them; None: this one
        self.kept_in: Path | None = None  # the file that keeps the W&B run's identity
        asked = os.environ.get("WANDB_MODE")
        self.mode = asked if asked in ("offline", "disabled", "dryrun") else "offline" if offline else "online"
        self._defined: set[str] = set()
        self._last = 0  # a step never goes back
        self._data_dir: str | None = None

    def of_run(self, directory: Path, job_type: str, group: str | None = None, tags: Sequence[str] = ()) -> None:
        """Say which run directory it is of. The W&B run that this has been is gone on with, but by an evaluation.

        Args:
            job_type: ``train``, ``evaluate``, ``combine`` or ``ensemble``.
            group: of the runs that belong together.
            tags: beside those that were asked for.
        """
        init, before = self._wandb_init, read_record(directory)
        again = before is not None and job_type == "evaluate"
        self.artifacts_of = before["id"] if before and again else None
        self.kept_in = None if again else directory / RECORD
        init["id"] = init["id"] or secrets.token_hex(4)
        init["group"] = init.get("group") or group
        if before and not again:
            init |= {k: before[k] for k in IDENTITY if before[k] is not None}
        name = [init["group"] or directory.absolute().parent.name, directory.absolute().name]
        tags = [tag[:64] for tag in (*init["tags"], *tags)]  # W&B takes no longer one
        init |= {"job_type": init.get("job_type") or job_type, "tags": list(dict.fromkeys(tags))}
        init["name"] = init["name"] or "/".join(name)

    @property
    def offline(self) -> bool:
        """Whether it writes to disk only."""
        return self.mode != "online"

    def _opened(self) -> Any:
        if self._experiment is None:
            self._begin()
        return super()._opened()

    def _begin(self) -> None:
        import wandb  # half a second, for those who log elsewhere

        if self.mode == "online":
            try:
                if not wandb.login(prompt=False):  # else it asks at a terminal, and waits
                    raise UserError("there is no key: set WANDB_API_KEY, or wandb login")
                self._start("online")
                return
            except Exception as error:  # no key, a wrong one, no network: several kinds
                self.mode = "offline"
                later = f"wandb sync {shlex.quote(str(self._save_dir))}/wandb/offline-run-*"
                log.warning("W&B: %s. Recorded on disk; to send it later: %s", in_a_line(error), later)
        self._start(self.mode)

    def _start(self, mode: str) -> None:
        if mode != "online":
            self._data_dir = os.environ.get("WANDB_DATA_DIR", "")
            os.environ["WANDB_DATA_DIR"] = self._data_dir or f"{self._save_dir}/wandb"  # else it stages under the home
        self._wandb_init["mode"] = mode
        run = super()._opened()
        if self.kept_in is not None and mode != "disabled":
            # what W&B made of what was asked for: an agent's run, id, project and team go before
            write_json(self.kept_in, {**{k: getattr(run, k) or None for k in IDENTITY}, "offline": self.offline})

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, or media, at an optimiser step, which is W&B's own step as well: a resumed run goes on behind it."""

        def send() -> None:
            run = self.experiment
            for key, value in metrics.items():
                chosen_by = key.startswith("valid/") or key == "train/loss"
                if chosen_by and key not in self._defined and isinstance(value, int | float):
                    self._defined.add(key)
                    run.define_metric(key, step_metric=STEP, step_sync=True, summary=mode_of(key))
            self._last = max(self._last, step or 0)
            run.log({**metrics, STEP: self._last if step is None else step}, step=self._last)

        self.safely(send)

    def use(self, artifact: Any) -> None:
        """Say that the run uses an artifact of another one, given by its content, which W&B knows it by."""
        run = self.experiment
        if self.offline:  # use_artifact refuses, though the record can hold it (wandb 0.31)
            run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)
        else:
            run.use_artifact(artifact)

    def summarise(self, metrics: Mapping[str, Any]) -> None:
        """Set what stands for the whole run, once all else is logged."""

        def send() -> None:
            run = self.experiment
            run.log({}, step=self._last, commit=True)  # else W&B takes the last row into the summary after this
            run.summary.update(dict(metrics))

        self.safely(send)

    def finish(self, exit_code: int = 0, again: bool = False) -> None:
        """End the W&B run, so that the next job of a sweep gets its own.

        Args:
            exit_code: of the process.
            again: it was preempted, and a sweep of W&B is to hand it out again.
        """
        run, self._experiment = self._experiment, None
        if run is not None:
            ends = [*([run.mark_preempting] if again else []), lambda: run.finish(exit_code=exit_code)]
            for end in ends:
                self._broken = False  # even where W&B failed, the next job must not go on in this run
                self.safely(end)
        if self._data_dir is not None:
            os.environ["WANDB_DATA_DIR"] = self._data_dir
            if not self._data_dir:
                del os.environ["WANDB_DATA_DIR"]
            self._data_dir = None


def finish(loggers: Sequence[Logger], error: BaseException | None = None, stopped: int = 0) -> None:
    """Close what Lightning leaves open after its last ``finalize``.

    Args:
        error: what the run failed by, if it did.
        stopped: the signal that ended it before its end, so that it can be resumed; or 0.
    """
    error = None if isinstance(error, Pruned) else error  # of a sweep: an end like another
    code = EXIT_RESUMABLE if stopped or isinstance(error, Stopped | KeyboardInterrupt | SystemExit) else 0
    if error is not None and code == 0:
        code = EXIT_USER if isinstance(error, UserError) else 1
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.finalize("failed" if error is not None else "success")
        elif isinstance(logger, Wandb):
            pruned = stopped == signal.SIGTERM and "WANDB_SWEEP_ID" in os.environ  # as its agent ends what a sweep gives up
            logger.finish(code, again=code == EXIT_RESUMABLE and not pruned)
        elif hasattr(logger, "finish"):
            logger.finish()
