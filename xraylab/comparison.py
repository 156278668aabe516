"""The comparison of a multirun's jobs: ``comparison.csv`` and ``report.html`` in its directory, anew after every job."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from xraylab.comparison_page import Result, beside, page
from xraylab.errors import UserError
from xraylab.run import write_text

OPTIONS = {"members", "best", "without", "only", "own", "best_by", "union", "stack"}
DIFFERENCE = "auroc_minus_best"  # of the macro, against the best run, paired
WIDTH = 130  # of the printed table
BOUNDS = ("value", "low", "high")
COLUMNS = ["job", "overrides", "split", "unit", "label", "metric", "value", "low", "high", "n"]


class Comparison(Callback):
    """Hydra's hook after a job, whether it failed or not, so that a sweep that is cut off is compared as far as it came.

    Args:
        ensembles: name -> arguments of :class:`xraylab.ensemble.Ensemble`; each is made as soon as its members are there.
        published: AUROCs to show beside those of runs, ``{"note": whose, "data": the beginning of the data's name, "n": studies,
            "rows": {overrides: {finding: value}}}``; a row belongs to the runs that have all these overrides, as ``loss=ignore``.
            Where data or n are others, they are shown below, and said to be of other data.
    """

    def __init__(
        self, ensembles: Mapping[str, Mapping[str, Any]] | None = None, published: Mapping[str, Any] | None = None
    ) -> None:  # fmt: skip
        self.ensembles = dict(ensembles or {})
        self.published = _published(published)
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
            write_comparison(Path(hydra.sweep.dir), self.ensembles, self.published)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Print the comparison."""
        from xraylab.journal import JOURNAL, Journal

        folder = Path(config.hydra.sweep.dir)
        if not config.hydra.launcher._target_.endswith(".BasicLauncher"):  # jobs that end together write over each other
            write_comparison(folder, self.ensembles, self.published)
        if (folder / "comparison.csv").is_file():
            print(f"\n{_table(folder, self.published)}\n  everything is in {folder}")
        if (folder / JOURNAL).is_file():
            print(f"\n{Journal.read(folder).closing()}")


def _published(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """``note`` and ``rows`` of published numbers, checked; empty where none are given."""
    if not given:
        return {"note": "", "rows": {}, "data": "", "n": None}
    if wrong := set(given) - {"note", "rows", "data", "n"}:
        raise UserError(f"published.{min(map(str, wrong))}: there is no such key. There are: note, rows, data, n.")
    rows = {str(words): {str(k): v for k, v in row.items()} for words, row in (given.get("rows") or {}).items()}
    for words, row in rows.items():
        for finding, value in row.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"published.rows.{words}.{finding}={value}: it is an AUROC, a number from 0 to 1.")
    return {"note": str(given.get("note") or "published"), "rows": rows, "data": given.get("data", ""), "n": given.get("n")}


def _table(folder: Path, published: Mapping[str, Any]) -> str:
    """The runs and ensembles of a comparison by study, on the test split if there is one, in a few lines of text."""
    rows = list(csv.DictReader((folder / "comparison.csv").open()))
    split = "test" if any(r["split"] == "test" for r in rows) else "valid"
    every = [r for r in rows if (r["split"], r["unit"]) == (split, "study")]
    rows = [r for r in rows if (r["split"], r["unit"], r["label"]) == (split, "study", "macro")]
    jobs = {r["job"]: r["overrides"] for r in rows}
    shared = set.intersection(*(set(o.split(" ")) for j, o in jobs.items() if j.isdigit()))
    found = {(r["job"], r["metric"]): r for r in rows}
    lines = [f"{split}, by study, n {', '.join(dict.fromkeys(r['n'] for r in rows))}; 95% intervals in report.html"]
    for job, overrides in jobs.items():
        own = " ".join(o for o in overrides.split(" ") if o not in shared)
        values = [(m, found[job, m]["value"]) for m in ("auroc", "kappa", "accuracy")]
        numbers = "  ".join(f"{m} {float(v):.3f}" if v else f"{m} -" for m, v in values)
        difference = found.get((job, DIFFERENCE))
        if difference is not None and difference["low"]:
            numbers += "  from the best {:+.3f} ({:+.3f} to {:+.3f})".format(*(float(difference[k]) for k in BOUNDS))
        lines.append(f"  {numbers}  {job}: {own}")
    return "\n".join(lines + _text_pivot(every, jobs, shared, published))


def _text_pivot(rows: list[dict[str, str]], jobs: dict[str, str], shared: set[str], published: Mapping[str, Any]) -> list[str]:
    """AUROC by run and finding, where there are several findings."""
    found = {(r["job"], r["label"]): r for r in rows if r["metric"] == "auroc"}
    labels = list(dict.fromkeys(label for _, label in found))
    if len(labels) < 3:
        return []
    best = {la: max((float(r["value"]) for (_, x), r in found.items() if x == la and r["value"]), default=None) for la in labels}
    table = [["", *labels]]
    numbers = [list(dict.fromkeys(r["n"] for (_, x), r in found.items() if x == la)) for la in labels]
    alike = all(len(of) == 1 for of in numbers)  # else the runs are of other studies, and none is the best
    table.append(["n", *(", ".join(of) for of in numbers)])
    for job, overrides in jobs.items():
        cells = []
        for label in labels:
            r = found.get((job, label))
            value = float(r["value"]) if r is not None and r["value"] else None
            cells.append("- " if value is None else f"{value:.3f}" + ("*" if alike and value == best[label] else " "))
        macro = found[job, "macro"]
        of = "" if alike else f" (n {macro['n']})"
        table.append([f"{job}: " + " ".join(o for o in overrides.split(" ") if o not in shared) + of, *cells])
        for row in beside(overrides, published, macro.get("data", published["data"]), int(macro["n"])):
            table.append(["  published", *(f"{row[la]:.3f} " if la in row else "" for la in labels)])
    if len(table) == 2 + len(jobs):
        for key, row in published["rows"].items():
            table.append([f"published of other data: {key}", *(f"{row[la]:.3f} " if la in row else "" for la in labels)])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    what = ", * the best of each" if alike else "; runs of other studies (n), so none is the best"
    lines = ["", f"  AUROC by finding{what}" + (f"; published: {published['note']}" if published["rows"] else "")]
    start = 1
    while start < len(widths):  # as many columns as fit into a line
        stop = start + 1
        while stop < len(widths) and widths[0] + sum(widths[start : stop + 1]) + 2 * (stop - start + 2) <= WIDTH:
            stop += 1
        for line in table:
            cells = [c.rjust(w) for c, w in zip(line[start:stop], widths[start:stop], strict=True)]
            lines.append(("  " + "  ".join([line[0].ljust(widths[0]), *cells])).rstrip())
        start = stop
    return lines


def write_comparison(
    folder: Path, ensembles: Mapping[str, Mapping[str, Any]] | None = None, published: Mapping[str, Any] | None = None
) -> None:  # fmt: skip
    """Write the comparison of the finished runs that lie in a folder, and of their ensembles; nothing where there is none."""
    from xraylab.data.table import SYNTHETIC
    from xraylab.ensemble import Ensemble, write_ensemble
    from xraylab.evaluation import by_unit

    evaluated = sorted((p.parent for p in folder.glob("*/evaluation.json")), key=lambda p: (len(p.name), p.name))
    runs = [run for run in evaluated if json.loads((run / "environment.json").read_text())["finished"]]
    results = [_read(run) for run in runs]
    if not results:
        return
    waiting = [f"job {run.name} was stopped before its end, and is left out" for run in evaluated if run not in runs]
    waiting += [f"job {p.name} failed: {p / 'xraylab.log'}" for p in sorted(folder.glob("[0-9]*")) if p not in evaluated]
    for name, options in (ensembles or {}).items():
        ensemble = Ensemble(**options)
        try:
            made = write_ensemble(ensemble, name, runs, folder)
        except UserError as error:
            waiting.append(f"{name.replace('_', ' ')} is not made: {error}")
            continue
        if made is None:
            waiting.append(
                f"{name.replace('_', ' ')} is not made: {len(ensemble.eligible(runs))} of {ensemble.members} runs are there"
            )
        else:
            results.append(Result(name.replace("_", " "), f"of {', '.join(made[0])}", made[1], folder / "ensembles" / name))
    synthetic = any(r.evaluation["data"] == SYNTHETIC for r in results)
    differences, left_out = _differences(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(["data"] if synthetic else [])])
    for job, overrides, evaluation, _ in results:
        for split, result in by_unit(evaluation):
            pair = differences.get((job, split)) if result["unit"] == "study" else None
            macro = {**result["macro"], **({DIFFERENCE: pair} if pair else {})}
            for label, metrics in {**result["labels"], "macro": macro}.items():
                for metric, m in metrics.items():
                    cells = ["" if m[k] is None else m[k] for k in ("value", "low", "high", "n")]
                    mark = [evaluation["data"]] if synthetic else []
                    writer.writerow([job, overrides, split, result["unit"], label, metric, *cells, *mark])
    write_text(folder / "comparison.csv", text.getvalue())
    write_text(folder / "report.html", page(folder, results, synthetic, waiting + left_out, _published(published), differences))


def _read(run: Path) -> Result:
    environment = json.loads((run / "environment.json").read_text())
    first = [*environment.get("sessions_before", []), environment][0]  # a resumed run's own words are resume=...
    return Result(run.name, " ".join(first["overrides"]), json.loads((run / "evaluation.json").read_text()), run)


def _differences(results: list[Result]) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """Macro AUROC minus that of the best run on the same studies, paired, by job and split; and which could not be paired.

    Runs are paired where their prediction tables hold the same studies, labels and scoring; by study alone. An ensemble is
    never the best.
    """
    from xraylab.evaluation import CERTAIN, paired_difference, read_table
    from xraylab.joining import aligned

    out: dict[tuple[str, str], dict[str, Any]] = {}
    left_out = []
    for split in dict.fromkeys(s for r in results for s in r.evaluation["splits"]):
        here = [r for r in results if split in r.evaluation["splits"]]
        here = [r for r in here if (r.directory / "predictions" / f"{split}.csv").is_file()]
        value = {r.job: r.evaluation["splits"][split]["macro"]["auroc"]["value"] for r in here}
        here = [r for r in here if value[r.job] is not None]
        leaders: list[tuple[Result, dict[str, str], Any]] = []
        why: dict[str, str] = {}
        for r in sorted(here, key=lambda r: ("members" in r.evaluation, -value[r.job])):
            table, scored = (
                read_table(r.directory / "predictions" / f"{split}.csv"),
                {**CERTAIN, **r.evaluation.get("scored", {})},
            )
            for best, scoring, other in leaders:
                try:
                    if scoring != scored:
                        raise UserError(f"runs {best.job} and {r.job} score labels otherwise")
                    table = aligned(other, table, r.job, best.job)
                except UserError as error:
                    why.setdefault(r.job, str(error))
                    why.setdefault(best.job, str(error))
                    continue
                b = best.evaluation["splits"][split]["bootstrap"]
                out[r.job, split] = paired_difference(table, other, b["resamples"], b["seed"], **scored)
                out[best.job, split] = {"value": 0.0, "low": None, "high": None, "n": len(other), "reason": "the best run"}
                break
            else:
                leaders.append((r, scored, table))
        alone = [r.job for r, _, _ in leaders if (r.job, split) not in out and r.job in why]
        left_out += [f"{split}: {job} is not paired with another run: {why[job]}" for job in alone]
    return out, left_out
