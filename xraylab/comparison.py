"""The comparison of a multirun's jobs: ``comparison.csv`` and ``report.html`` in its directory, anew after every job."""

from __future__ import annotations

import csv
import html
import io
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from xraylab.errors import UserError
from xraylab.run import write_text

OPTIONS = {"members", "best", "without", "own"}
COLUMNS = ["job", "overrides", "split", "unit", "label", "metric", "value", "low", "high", "n"]


class Result(NamedTuple):
    """A job, or an ensemble of jobs, and the content of its ``evaluation.json``."""

    job: str
    overrides: str
    evaluation: dict[str, Any]


class Comparison(Callback):
    """Hydra's hook after a job, whether it failed or not, so that a sweep that is cut off is compared as far as it came.

    Args:
        ensembles: name -> arguments of :class:`xraylab.ensemble.Ensemble`; each is made as soon as its members are there.
    """

    def __init__(self, ensembles: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.ensembles = dict(ensembles or {})
        for name, options in self.ensembles.items():
            if wrong := set(options) - OPTIONS:
                raise UserError(f"ensembles.{name}.{min(wrong)}: there is no such key. There are: {', '.join(sorted(OPTIONS))}.")

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Compare the jobs so far, in a multirun."""
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            write_comparison(Path(hydra.sweep.dir), self.ensembles)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Print the comparison."""
        folder = Path(config.hydra.sweep.dir)
        if (folder / "comparison.csv").is_file():
            print(f"\n{_table(folder)}\n  everything is in {folder}")


def _table(folder: Path) -> str:
    """The runs and ensembles of a comparison by study, on the test split if there is one, in a few lines of text."""
    rows = list(csv.DictReader((folder / "comparison.csv").open()))
    split = "test" if any(r["split"] == "test" for r in rows) else "valid"
    rows = [r for r in rows if (r["split"], r["unit"], r["label"]) == (split, "study", "macro")]
    jobs = {r["job"]: r["overrides"] for r in rows}
    shared = set.intersection(*(set(o.split(" ")) for j, o in jobs.items() if j.isdigit()))
    found = {(r["job"], r["metric"]): r for r in rows}
    lines = [f"{split}, by study, n {', '.join(dict.fromkeys(r['n'] for r in rows))}; 95% intervals in report.html"]
    for job, overrides in jobs.items():
        own = " ".join(o for o in overrides.split(" ") if o not in shared)
        values = [(m, found[job, m]["value"]) for m in ("auroc", "kappa", "accuracy")]
        numbers = "  ".join(f"{m} {float(v):.3f}" if v else f"{m} -" for m, v in values)
        lines.append(f"  {numbers}  {job}: {own}")
    return "\n".join(lines)


def write_comparison(folder: Path, ensembles: Mapping[str, Mapping[str, Any]] | None = None) -> None:
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
        made = write_ensemble(ensemble, name, runs, folder)
        if made is None:
            waiting.append(
                f"{name.replace('_', ' ')} is not made: {len(ensemble.eligible(runs))} of {ensemble.members} runs are there"
            )
        else:
            results.append(Result(name.replace("_", " "), f"of {', '.join(made[0])}", made[1]))
    synthetic = any(r.evaluation["data"] == SYNTHETIC for r in results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(["data"] if synthetic else [])])
    for job, overrides, evaluation in results:
        for split, result in by_unit(evaluation):
            for label, metrics in {**result["labels"], "macro": result["macro"]}.items():
                for metric, m in metrics.items():
                    cells = ["" if m[k] is None else m[k] for k in ("value", "low", "high", "n")]
                    mark = [evaluation["data"]] if synthetic else []
                    writer.writerow([job, overrides, split, result["unit"], label, metric, *cells, *mark])
    write_text(folder / "comparison.csv", text.getvalue())
    write_text(folder / "report.html", _page(folder, results, synthetic, waiting))


def _read(run: Path) -> Result:
    environment = json.loads((run / "environment.json").read_text())
    first = [*environment.get("sessions_before", []), environment][0]  # a resumed run's own words are resume=...
    return Result(run.name, " ".join(first["overrides"]), json.loads((run / "evaluation.json").read_text()))


def _page(folder: Path, results: list[Result], synthetic: bool, waiting: list[str]) -> str:
    from xraylab.evaluation import by_unit
    from xraylab.report import STYLE

    jobs = [r for r in results if "members" not in r.evaluation]
    shared = set.intersection(*({*r.overrides.split(" ")} for r in jobs)) if len(jobs) > 1 else set()
    sweep = html.escape(folder.absolute().parents[1].name)
    parts = [f"<h1>{sweep} <small>{html.escape(folder.name)}, {len(jobs)} runs</small></h1>"]
    if synthetic:
        parts.append("<p class=sample>Synthetic sample: every number below is about drawings, not patients.</p>")
    if shared:
        parts.append(f"<p>All with {html.escape(' '.join(sorted(shared)))}.</p>")
    parts += [f"<p>{html.escape(line[0].upper() + line[1:])}.</p>" for line in waiting]
    for r in results:
        for file, reason in r.evaluation.get("left_out", {}).items():
            parts.append(f"<p>{html.escape(r.job)}: no {html.escape(file)}, for {html.escape(reason)}.</p>")
    for split, unit in dict.fromkeys((s, x["unit"]) for r in results for s, x in by_unit(r.evaluation)):
        of = [(r, x) for r in results for s, x in by_unit(r.evaluation) if (s, x["unit"]) == (split, unit)]
        chosen = any(x["selected_on"] for _, x in of)
        note = "choices were made on these studies" if chosen else "held out from all choices"
        parts.append(f"<h2>{split}, by {unit} <small>{note}; 95% intervals</small></h2>{_metrics(of, shared)}")
        parts += [_over_seeds(of, shared), _groups(of, shared)]
    title = "xraylab comparison" + (" (synthetic sample)" if synthetic else "")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _metrics(of: list[tuple[Result, dict[str, Any]]], shared: set[str]) -> str:
    from xraylab.metrics import METRICS
    from xraylab.report import number

    rows = []
    for r, result in of:
        own = html.escape(_own(r, shared))
        labels = result["labels"] if len(result["labels"]) == 1 else {**result["labels"], "macro": result["macro"]}
        for label, metrics in labels.items():
            cells = "".join(f"<td>{number(metrics[m])}</td>" for m in METRICS)
            rows.append([r.job, own, html.escape(label), metrics["auroc"]["n"], cells])
    return _rows(["job", "overrides", "label", "n", *METRICS], rows)


def _own(r: Result, shared: set[str]) -> str:
    """The overrides that not all jobs have."""
    return " ".join(o for o in r.overrides.split(" ") if o not in shared)


def _over_seeds(of: list[tuple[Result, dict[str, Any]]], shared: set[str]) -> str:
    """Mean and standard deviation over the runs that differ in their seed alone; nothing where none do."""
    from xraylab.metrics import METRICS

    alike: dict[str, list[dict[str, Any]]] = {}
    for r, result in of:
        if "members" not in r.evaluation:
            kept = [o for o in _own(r, shared).split(" ") if not o.startswith("seed=")]
            alike.setdefault(" ".join(kept), []).append(result["macro"])
    rows = []
    for words, results in alike.items():
        cells = ""
        for metric in METRICS:
            values = [m[metric]["value"] for m in results if m[metric]["value"] is not None]
            spread = f"{statistics.mean(values):.3f} ({statistics.stdev(values):.3f})" if len(values) > 1 else "-"
            cells += f"<td>{spread}</td>"
        if len(results) > 1:
            rows.append([html.escape(words or "all"), len(results), cells])
    return "<h3>mean (standard deviation) over seeds</h3>" + _rows(["", "runs", *METRICS], rows) if rows else ""


def _groups(of: list[tuple[Result, dict[str, Any]]], shared: set[str]) -> str:
    """AUROC and kappa by group, where a result has several and one label."""
    from xraylab.report import number

    names = sorted({g for _, x in of for g in x["groups"]})
    if len(names) < 2 or any(len(x["labels"]) > 1 for _, x in of):
        return ""
    parts = []
    for metric in ("auroc", "kappa"):
        rows = []
        for r, result in of:
            groups = {g: next(iter(part["labels"].values()))[metric] for g, part in result["groups"].items()}
            cells = [
                f"<td>{number(groups[g])} <span class=n>n {groups[g]['n']}</span></td>" if g in groups else "<td></td>"
                for g in names
            ]
            rows.append([html.escape(f"{r.job}: {_own(r, shared)}"), "".join(cells)])
        parts.append(f"<h3>{metric} by group</h3>" + _rows(["job", *names], rows))
    return "".join(parts)


def _rows(head: list[str], rows: list[list[Any]]) -> str:
    """A table; the last cell of a row is HTML of its remaining cells."""
    top = "".join(f"<th>{html.escape(h.replace('_', ' '))}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row[:-1]) + row[-1] + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
