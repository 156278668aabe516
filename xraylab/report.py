"""``python -m xraylab.report runs=…``: one HTML file of a run, or of several runs together."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from xraylab.config.launch import importing, launch
from xraylab.errors import UserError, did_you_mean, listed
from xraylab.run import Run, new_run_dir, read_config, read_record, run_of, short_names
from xraylab.system.command_line import command_line, word
from xraylab.system.files import new_folder

if TYPE_CHECKING:
    from xraylab.evaluation.paired_comparison import Result

log = logging.getLogger(__name__)

USAGE = """
xraylab.report: one HTML file that opens anywhere, of a run or of several, from what lies in their directories.

  python -m xraylab.report runs=outputs/mrnet/<date_time>                        write a run's report.html and figures/ anew
  python -m xraylab.report runs=outputs/mrnet/<date_time> explain=true           the same, with maps of its cases
  python -m xraylab.report runs=[outputs/mrnet/<a>,outputs/mrnet/<b>]            what differs, one table, curves, differences
  python -m xraylab.report runs=[outputs/mrnet/<a>,outputs/combine/<b>] reference=outputs/mrnet/<a>
  python -m xraylab.report runs=outputs/mrnet/multirun/<date_time>               a sweep's comparison, also one that was cut off

Several runs leave report.html, comparison.csv, differences.csv and figures/ in a folder of their own. Runs are compared on
the studies of a split where they have the same ones. A table of predictions of another tool becomes a run by
python -m xraylab.evaluate table=….
"""


def job(cfg: DictConfig) -> None:
    """Report."""
    from xraylab.reporting.comparison import NOTHING, text_table, write_results
    from xraylab.reporting.run_report import write_report

    started = time.monotonic()
    if OmegaConf.is_missing(cfg, "runs"):
        raise UserError("runs must be given: runs=…  (--help explains it)")
    given = [cfg.runs] if isinstance(cfg.runs, str) else list(map(str, cfg.runs)) if isinstance(cfg.runs, Sequence) else []
    if not given:
        raise UserError(f"runs={cfg.runs}: name a run, or several: runs=[<a>,<b>].")
    if not isinstance(cfg.explain, bool):
        raise UserError(f"explain={cfg.explain}: it is true or false.")
    if tables := [p for p in given if p.lower().endswith(".csv")]:
        make = command_line("evaluate", [word("table", tables[0])])
        raise UserError(f"runs: {tables[0]} is a table. Make it a run first:\n  {make}")
    if len(given) == 1 and not _holds_runs(Path(given[0])):
        if cfg.reference is not None or cfg.output is not None:
            key = "reference" if cfg.reference is not None else "output"
            raise UserError(f"{key}={cfg[key]}: it is for several runs; a run's report is written into the run.")
        run = run_of(given[0])
        _require_whole(run)
        if cfg.explain:
            _explain(run)
        log.info("read %s", write_report(run))
        return
    if cfg.explain:
        raise UserError("explain=true: it is for one run, whose cases it draws maps of.")
    results, waiting = read_results([Path(p) for p in given])
    reference = None if cfg.reference is None else _reference(str(cfg.reference), results)
    if len(given) == 1 and cfg.output is None and _is_multirun(Path(given[0])):
        folder, title, published = _of_multirun(Path(given[0]), results, waiting)
    else:
        folder = Path(new_run_dir("report")) if cfg.output is None else new_folder(cfg.output)
        title, published = ("report", folder.name), NOTHING
    write_results(folder, title, results, waiting, published, reference=reference)
    log.info("%s", text_table(folder))
    for line in waiting:
        log.warning("%s.", line)
    log.info("  in %.0f s; everything is in %s\n  read %s", time.monotonic() - started, folder, folder / "report.html")


def _explain(run: Path) -> None:
    """Draw maps of a run's cases, which its report then shows."""
    with importing():
        from xraylab.explanation.case_maps import explain_cases
        from xraylab.training.fit import silence_lightning

    started = time.monotonic()
    silence_lightning()
    log.info("maps of %d cases in %.0f s", explain_cases(run), time.monotonic() - started)


def read_results(paths: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """The results of run directories and of folders of runs, ensembles too; and what is said of those that are not whole.

    Raises:
        UserError: one is neither, has no evaluation, or is there twice.
    """
    from xraylab.reporting.comparison import finished, read_result

    places: list[Path] = []
    waiting: list[str] = []
    for path in paths:
        if _holds_runs(path):
            for run in path.glob("*/evaluation.json"):
                _require_whole(run.parent)
            runs, others = finished(path)
            places += [*runs, *sorted(p.parent for p in path.glob("ensembles/*/evaluation.json"))]
            waiting += others if len(paths) == 1 else [f"{path}: {line}" for line in others]
        else:
            places.append(run_of(path))
    for place in places:
        _require_whole(place)
    full = [p.resolve() for p in places]
    if twice := sorted({str(p) for p, q in zip(places, full, strict=True) if full.count(q) > 1}):
        raise UserError(f"runs: {listed(twice)} is there twice. Name each run once.")
    if not places:
        raise UserError(f"runs: no run in {listed(map(str, paths))} was finished.")
    waiting += [f"{place} was stopped before its end; it is shown as it is" for place in places if not Run(place).finished]
    names = [n.replace("_", " ") if p.parent.name == "ensembles" else n for p, n in zip(places, short_names(places), strict=True)]
    return [read_result(place, name) for place, name in zip(places, names, strict=True)], waiting


def _holds_runs(path: Path) -> bool:
    return not Run(path).config_file.is_file() and any(path.glob("*/evaluation.json"))


def _is_multirun(path: Path) -> bool:
    from xraylab.reporting.comparison import GIVEN

    return any((path / name).is_file() for name in (GIVEN, "multirun.yaml", "sweep.json"))


def _require_whole(run: Path) -> None:
    """Refuse a run that was not evaluated, or whose records are damaged."""
    read_record(Run(run).evaluation_file, "data", "splits")
    read_record(Run(run).environment_file, "overrides", "finished")
    if Run(run).config_file.is_file():
        read_config(run)


def _reference(asked: str, results: Sequence[Result]) -> str:
    """The name of the result that was asked for by its name or path."""
    found = [r.job for r in results if asked == r.job or Path(asked).resolve() == r.directory.resolve()]
    if not found:
        names = [r.job for r in results]
        raise UserError(f"reference={asked}: it is none of runs.{did_you_mean(asked, names)} There are: {listed(names)}.")
    return found[0]


def _of_multirun(folder: Path, results: Sequence[Result], waiting: list[str]) -> tuple[Path, tuple[str, str], dict[str, Any]]:
    """Where a multirun's comparison is, its title and published numbers, as its end would have them."""
    from xraylab.reporting.comparison import GIVEN, check_published
    from xraylab.reporting.run_report import write_report
    from xraylab.sweeps.comparison import not_comparable

    given = json.loads((folder / GIVEN).read_text(encoding="utf-8")) if (folder / GIVEN).is_file() else {}
    made = {r.job for r in results}
    lacking = (name.replace("_", " ") for name in given.get("ensembles", {}))
    waiting += [f"{name} is not made" for name in lacking if name not in made]
    waiting += not_comparable(folder)
    for r in results:
        if "members" in r.evaluation and not (r.directory / "report.html").is_file():
            write_report(r.directory)
    return folder, (folder.absolute().parent.parent.name, folder.name), check_published(given.get("published"))


def main() -> None:
    """The entry point."""
    launch("report", job, USAGE)


if __name__ == "__main__":
    main()
