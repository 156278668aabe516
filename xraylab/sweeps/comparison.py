"""The comparison of a sweep's jobs and ensembles, which Hydra asks for after each job and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from xraylab.config.instantiate import plain
from xraylab.data.study_table import SYNTHETIC
from xraylab.errors import UserError
from xraylab.evaluation.ensembles.combination import read_combination
from xraylab.evaluation.ensembles.ensemble import Ensemble, write_ensemble
from xraylab.evaluation.paired_comparison import Result
from xraylab.reporting.comparison import GIVEN, check_published, finished, joined_words, read_result, text_table, write_results
from xraylab.reporting.log_results import record_made
from xraylab.reporting.run_report import write_report
from xraylab.run import Run
from xraylab.sweeps.record import JOURNAL, Journal
from xraylab.system.files import write_json

OPTIONS = {"members", "best", "without", "only", "own", "best_by", "union", "stack"}


class Comparison(Callback):
    """Hydra's callback that compares a sweep's jobs: after each, failed or not, so that one that is cut off is compared too.

    Args:
        ensembles: name -> arguments of :class:`xraylab.evaluation.ensembles.ensemble.Ensemble`; each is made as soon as its
            members are there.
        published: AUROCs to show beside those of runs, ``{"note": whose, "data": the beginning of the data's name, "n": studies,
            "rows": {overrides: {finding: value}}}``; a row belongs to the runs that have all these overrides, as ``loss=ignore``.
            Where data or n are others, they are shown below, and said to be of other data.
    """

    def __init__(
        self, ensembles: Mapping[str, Mapping[str, Any]] | None = None, published: Mapping[str, Any] | None = None
    ) -> None:
        self.ensembles = dict(ensembles or {})
        self.published = dict(published or {})
        check_published(published)
        for name, options in self.ensembles.items():
            if wrong := set(options) - OPTIONS:
                raise UserError(f"ensembles.{name}.{min(wrong)}: there is no such key. There are: {', '.join(sorted(OPTIONS))}.")
            joins = [key for key in ("own", "best_by", "union", "stack") if options.get(key)]
            if len(joins) > 1:
                raise UserError(f"ensembles.{name}: {' and '.join(joins)} are two ways to join members. Give one.")
            if options.get("best_by") not in (None, "label"):
                raise UserError(f"ensembles.{name}.best_by={options['best_by']}: it is label, or null.")
            if "members" not in options:
                raise UserError(f"ensembles.{name}.members: it must say how many runs it takes.")

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Compare the jobs so far, in a multirun."""
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            write_comparison(Path(hydra.sweep.dir), self.ensembles, self.published, ended=False)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Write the whole comparison, and print it; then the best job, and what did not come to an end."""
        folder = Path(config.hydra.sweep.dir)
        waiting = write_comparison(folder, self.ensembles, self.published)
        if (folder / "comparison.csv").is_file():
            _record_ensembles(folder, self.ensembles)
            missing = "".join(f"\n  {line}" for line in waiting if " is not made: " in line)
            print(f"\n{text_table(folder)}{missing}\n  everything is in {folder}\n  read {folder / 'report.html'}")
        if (folder / JOURNAL).is_file():
            print(f"\n{Journal.read(folder).closing()}")


def _record_ensembles(folder: Path, ensembles: Mapping[str, Mapping[str, Any]]) -> None:
    """Log a multirun's ensembles where its runs were logged."""
    for name, options in ensembles.items():
        directory = folder / "ensembles" / name
        if (made := read_combination(directory)) is not None:
            evaluation = Run(directory).evaluation
            record_made(directory, evaluation, {"ensemble": dict(options)}, made[1], "ensemble")


def write_comparison(
    folder: Path, ensembles: Mapping[str, Mapping[str, Any]] | None = None, published: Mapping[str, Any] | None = None,
    ended: bool = True, reference: str | None = None,
) -> list[str]:  # fmt: skip
    """Write the comparison of the finished runs that lie in a folder, and of their ensembles; nothing where there is none.

    Returns:
        What is said of results that are not there.

    Args:
        ensembles, published: as of :class:`Comparison`.
        ended, reference: as of :func:`write_results`.
    """
    runs, waiting = finished(folder)
    if not runs:
        return waiting
    results = [read_result(run, run.name) for run in runs]
    for name, options in (ensembles or {}).items():
        ensemble, called = Ensemble(**options), name.replace("_", " ")
        try:
            made = write_ensemble(ensemble, name, runs, folder)
        except UserError as error:
            waiting.append(f"{called} is not made: {error}")
            continue
        if made is None:
            waiting.append(f"{called} is not made: {len(ensemble.eligible(runs))} of {ensemble.members} runs are there")
        else:
            results.append(Result(called, joined_words(made[1]), made[1], folder / "ensembles" / name))
            if ended and made[1]["splits"]:
                write_report(folder / "ensembles" / name)
    waiting += not_comparable(folder)
    data = SYNTHETIC if any(r.evaluation["data"] == SYNTHETIC for r in results) else results[0].evaluation["data"]
    write_json(folder / GIVEN, {"data": data, "ensembles": plain(ensembles or {}), "published": plain(published or {})})
    title = (folder.absolute().parent.parent.name, folder.name)
    write_results(folder, title, results, waiting, check_published(published), ended, reference)
    return waiting


def not_comparable(folder: Path) -> list[str]:
    """What is said where the objective of a sweep cannot choose among its jobs."""
    why = Journal.read(folder).incomparable() if (folder / JOURNAL).is_file() else None
    return [f"no job is the best of all: {why}"] if why else []
