"""``sweep.json``: what a sweep was asked to do, what became of each job, which is the best, and how to go on."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xraylab.config.settings import mode_of
from xraylab.errors import UserError, listed
from xraylab.evaluation.objective import of_objective, reason
from xraylab.run import Run, how_it_went, read_record
from xraylab.sweeps.comparable import deciding_keys
from xraylab.system.command_line import alone, command_line, flags, value_of, word
from xraylab.system.files import write_json

JOURNAL = "sweep.json"
SETTLED = ("finished", "pruned")
CHANGEABLE = ("sweep.trials", "fail_fast", "hydra/launcher", "hydra.launcher.*", "hydra.sweeper.max_batch_size")


@dataclass
class SweepJob:
    """One job of a sweep, which lives in the folder of its number."""

    number: int
    overrides: list[str]
    params: dict[str, Any] = field(default_factory=dict)  # as drawn; of a grid, none
    state: str = "waiting"  # running, finished, pruned, failed, stopped
    scores: list[float | None] = field(default_factory=list)  # of the objectives
    measured: list[str | None] = field(default_factory=list)  # what each is measured on, see xraylab.evaluation.objective
    reason: str | None = None  # of a failure, or of a value that is not there


@dataclass
class Journal:
    """The record of a sweep, which is the content of ``sweep.json``."""

    folder: Path
    words: list[str]  # the command's, the flags of Hydra that bring configuration among them
    method: str
    objectives: list[str]
    jobs: list[SweepJob] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Journal:
        """The journal of a multirun directory.

        Raises:
            UserError: it has none, or a damaged one.
        """
        if not (folder / JOURNAL).is_file():
            raise UserError(f"sweep.resume={folder}: it is not the directory of a sweep: it has no {JOURNAL}.")
        then = "Its jobs are whole runs, which xraylab.report compares; begin the sweep anew in another directory."
        content = read_record(folder / JOURNAL, "words", "method", "objectives", "jobs", then=then)
        jobs = [SweepJob(**{k: v for k, v in job.items() if k != "best"}) for job in content["jobs"]]
        return cls(folder, content["words"], content["method"], content["objectives"], jobs)

    def write(self) -> None:
        """Write it as a whole."""
        best = [job.number for job in self.best()]
        jobs = [{**asdict(job), "best": job.number in best} for job in self.jobs]
        write_json(self.folder / JOURNAL, {**asdict(self), "folder": str(self.folder), "jobs": jobs})

    def settle(self, job: SweepJob, error: BaseException | None = None) -> None:
        """Set what became of a job, by the files it left."""
        run = self.folder / str(job.number)
        record = how_it_went(run)
        job.scores, job.measured, job.reason = [], [], None
        if record.get("finished"):
            try:
                found = [objective_of(run, objective) for objective in self.objectives]
            except UserError as wrong:
                job.state, job.reason = "failed", str(wrong)
                return
            job.state = "finished"
            job.scores = [value for value, _ in found]
            job.measured = [of_objective(record, objective) for objective in self.objectives]
            job.reason = "; ".join(reason for _, reason in found if reason) or None
        elif record.get("pruned"):
            job.state, job.reason = "pruned", record["pruned"]
        elif error is not None:
            words = str(error).strip() or type(error).__name__
            job.state, job.reason = "failed", words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"
        else:
            job.state = "stopped"

    def comparable_parts(self) -> list[list[SweepJob]]:
        """The jobs that have every objective, by what these are measured on: only within such a part they can be compared."""
        parts: dict[tuple[str | None, ...], list[SweepJob]] = {}
        for job in self.jobs:
            if job.state == "finished" and job.scores and None not in job.scores:
                parts.setdefault(tuple(job.measured), []).append(job)
        return list(parts.values())

    def incomparable(self) -> str | None:
        """Why the objective chooses no job, in a sentence without a full stop; None where it can."""
        parts = self.comparable_parts()
        if len(parts) < 2:
            return None
        of = [(dict(word.partition("=")[::2] for word in job.overrides), k) for k, part in enumerate(parts) for job in part]
        keys = deciding_keys([words for words, _ in of], [k for _, k in of])
        one, other = ([*part[0].measured, *[None] * len(self.objectives)] for part in parts[:2])
        which = next(k for k in range(len(self.objectives)) if one[k] != other[k] or one[k] is None)
        differ = f"jobs differ in {listed(keys)}, so " if keys else "as "
        return f"{self.objectives[which]} is not comparable: {differ}{reason(one[which], other[which])}"

    def best(self) -> list[SweepJob]:
        """The best job; of several objectives, all that no other beats in each. None where jobs cannot be compared."""
        parts = self.comparable_parts()
        return self._best(parts[0]) if len(parts) == 1 else []

    def _best(self, known: Sequence[SweepJob]) -> list[SweepJob]:
        signs = [-1.0 if mode_of(o) == "max" else 1.0 for o in self.objectives]

        def cost(job: SweepJob) -> list[float]:
            return [s * v for s, v in zip(signs, job.scores, strict=True) if v is not None]

        front = [job for job in known if not any(_dominates(cost(other), cost(job)) for other in known)]
        return front[:1] if len(signs) == 1 else front

    def command(self, job: SweepJob) -> str:
        """The command that repeats a job on its own."""
        return command_line("train", [*(w for w in self.words if w.startswith("--config-dir=")), *alone(job.overrides)])

    @property
    def go_on(self) -> str:
        """The command that goes on with the sweep."""
        return command_line("train", [word("sweep.resume", self.folder)])

    def closing(self) -> str:
        """What to say at the end: the best by the objective, with its command; and what did not come to an end."""
        lines = []
        parts = self.comparable_parts()
        on_test = " (chosen on test: its results there are too good)" * any(o.startswith("test/") for o in self.objectives)
        if (why := self.incomparable()) is not None:
            lines.append(f"no job is the best of all: {why}. Choose by another objective, of the same studies: sweep.objective=…")
        for part in parts:
            if len(part) == 1 < len(parts):
                continue
            of = f" of jobs {listed([j.number for j in part], 10)}, which can be compared" * (len(parts) > 1)
            for job in self._best(part)[:10]:
                values = ", ".join(f"{o} {v:.4f}" for o, v in zip(self.objectives, job.scores, strict=True))
                what = "best" if len(self.objectives) == 1 else "beaten by none in all objectives"
                lines.append(f"{what}{of}: job {job.number}, {values}{on_test}. Repeat it with:\n  {self.command(job)}")
        if not parts:
            lines.append(f"no job has {' and '.join(self.objectives)}, so none is the best")
        lines += [f"job {j.number}: {j.reason}" for j in self.jobs if j.state == "finished" and j.reason]
        if pruned := [j.number for j in self.jobs if j.state == "pruned"]:
            lines.append(f"given up at the median: {listed(pruned, 40)}")
        failed = [j for j in self.jobs if j.state == "failed"]
        lines += [f"job {j.number} failed: {str(j.reason).splitlines()[0]}" for j in failed]
        if waiting := [j.number for j in self.jobs if j.state == "waiting"]:
            lines.append(f"not begun: {listed(waiting, 40)}")
        if failed or any(j.state not in SETTLED for j in self.jobs):
            lines.append(f"{'Repeat what failed' if failed else 'Go on'} with:\n  {self.go_on}")
        return "\n".join(lines)


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def objective_of(run: Path, objective: str) -> tuple[float | None, str | None]:
    """The objective of a finished run's chosen checkpoint, by study, or why it has none.

    Raises:
        UserError: the run's evaluation has no such split or label.
    """
    evaluation = Run(run).evaluation
    split, _, rest = objective.partition("/")
    label, _, metric = rest.rpartition("/")
    if metric == "loss":
        epoch = str(evaluation["checkpoint"]["epoch"])
        value = history_of(Run(run).history_file, objective).get(epoch, math.nan)
        return (value, None) if math.isfinite(value) else (None, f"{objective} is not finite")
    if split not in evaluation["splits"]:
        raise UserError(f"sweep.objective={objective}: {run} has no {split}; it has {', '.join(evaluation['splits'])}.")
    by_label = {**evaluation["splits"][split]["labels"], "macro": evaluation["splits"][split]["macro"]}
    if label not in by_label:
        raise UserError(f"sweep.objective={objective}: there is no label {label}. There are: {', '.join(by_label)}.")
    found = by_label[label][metric]
    return found["value"], None if found["value"] is not None else f"{objective} is undefined: {found['reason']}"


def history_of(path: Path, column: str) -> dict[str, float]:
    """Epoch, as written, -> a column of ``history.csv``; NaN where it is empty."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as file:
        return {row["epoch"]: float(row.get(column) or math.nan) for row in csv.DictReader(file)}


def resumed_words(words: Sequence[str]) -> list[str]:
    """A command line with ``sweep.resume=<multirun directory>`` becomes that sweep's own; others stay as they are.

    Raises:
        UserError: there is no sweep, or something was typed that would make it another one.
    """
    given = [value_of(w) for w in words if w.startswith("sweep.resume=")]
    if not given or given[-1] in ("", None):
        return list(words)
    folder = Path(str(given[-1]))
    journal = Journal.read(folder)
    typed = [w for w in words if not w.startswith("sweep.resume=") and w not in ("-m", "--multirun", *journal.words)]
    for each in typed:
        key = each.partition("=")[0].lstrip("+")
        if not any(key == k or (k.endswith("*") and key.startswith(k[:-1])) for k in CHANGEABLE):
            raise UserError(
                f"sweep.resume={given[-1]}: {key} cannot change in a sweep that goes on. What can: {', '.join(CHANGEABLE)}."
            )
    keys = {w.partition("=")[0].lstrip("+") for w in typed}
    kept = [w for w in journal.words if w.partition("=")[0].lstrip("+") not in keys]
    begun = folder / "multirun.yaml"
    if begun.is_file() and not any(w.startswith("split_version=") for w in kept):  # its jobs share their splits
        kept.append(f"split_version={OmegaConf.to_container(OmegaConf.load(begun)).get('split_version', 1)}")  # type: ignore[union-attr]
    return [*kept, *typed, word("hydra.sweep.dir", folder), word("sweep.resume", folder)]


def words_of_command(config: Mapping[str, Any]) -> list[str]:
    """The words that began a sweep, from its composed configuration."""
    hydra: Any = config["hydra"]
    words = [*hydra.overrides.task, *hydra.overrides.hydra]
    return [*flags(hydra), *(w for w in words if not w.startswith(("hydra.sweep.dir=", "sweep.resume=")))]
