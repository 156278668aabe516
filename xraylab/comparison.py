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

OPTIONS = {"members", "best", "without", "only", "own", "best_by", "union", "stack"}
DIFFERENCE = "auroc_minus_best"  # of the macro, against the best run, paired
WIDTH = 130  # of the printed table
BOUNDS = ("value", "low", "high")
COLUMNS = ["job", "overrides", "split", "unit", "label", "metric", "value", "low", "high", "n"]


class Result(NamedTuple):
    """A job, or an ensemble of jobs, the content of its ``evaluation.json``, and where it lies."""

    job: str
    overrides: str
    evaluation: dict[str, Any]
    directory: Path


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
        folder = Path(config.hydra.sweep.dir)
        if (folder / "comparison.csv").is_file():
            print(f"\n{_table(folder, self.published)}\n  everything is in {folder}")


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


def _beside(overrides: str, published: Mapping[str, Any], data: str, n: int) -> list[dict[str, float]]:
    """The published rows that belong to a run of these overrides, on the same data and as many studies."""
    words = set(overrides.split(" "))
    if not data.startswith(published["data"]) or published["n"] not in (None, n):
        return []
    return [row for key, row in published["rows"].items() if set(key.split(" ")) <= words]


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
        for row in _beside(overrides, published, macro.get("data", published["data"]), int(macro["n"])):
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
    write_text(folder / "report.html", _page(folder, results, synthetic, waiting + left_out, _published(published), differences))


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


def _page(
    folder: Path, results: list[Result], synthetic: bool, waiting: list[str], published: dict[str, Any],
    differences: dict[tuple[str, str], dict[str, Any]],
) -> str:  # fmt: skip
    from xraylab.evaluation import by_unit
    from xraylab.report import STYLE, scoring

    jobs = [r for r in results if "members" not in r.evaluation]
    shared = set.intersection(*({*r.overrides.split(" ")} for r in jobs)) if len(jobs) > 1 else set()
    sweep = html.escape(folder.absolute().parents[1].name)
    parts = [f"<h1>{sweep} <small>{html.escape(folder.name)}, {len(jobs)} runs</small></h1>"]
    if synthetic:
        parts.append("<p class=sample>Synthetic sample: every number below is about drawings, not patients.</p>")
    if shared:
        parts.append(f"<p>All with {html.escape(' '.join(sorted(shared)))}.</p>")
    parts += [f"<p>{html.escape(line[0].upper() + line[1:])}.</p>" for line in waiting]
    said: dict[str, list[str]] = {}
    for r in results:
        left = [f"no {file}, for {reason}" for file, reason in r.evaluation.get("left_out", {}).items()]
        for line in [*left, *scoring(r.evaluation), *_joined(r.evaluation)]:
            said.setdefault(line, []).append(r.job)
    for line, of_jobs in said.items():
        whose = "all" if len(of_jobs) == len(results) else ", ".join(of_jobs)
        parts.append(f"<p>{html.escape(whose)}: {html.escape(line)}.</p>")
    shown = "test" if any("test" in r.evaluation["splits"] for r in results) else "valid"
    nothing = _published(None)
    for split, unit in dict.fromkeys((s, x["unit"]) for r in results for s, x in by_unit(r.evaluation)):
        of = [(r, x) for r in results for s, x in by_unit(r.evaluation) if (s, x["unit"]) == (split, unit)]
        chosen = any(x["selected_on"] for _, x in of)
        note = "choices were made on these studies" if chosen else "held out from all choices"
        parts.append(f"<h2>{split}, by {unit} <small>{note}; 95% intervals</small></h2>")
        parts.append(_pivot(of, shared, published if (split, unit) == (shown, "study") else nothing))
        metrics = _metrics(of, shared)
        many = any(len(x["labels"]) > 1 for _, x in of)
        parts.append(f"<details><summary>every metric</summary>{metrics}</details>" if many else metrics)
        if unit == "study":
            parts.append(_from_the_best(of, shared, {job: m for (job, s), m in differences.items() if s == split}))
        parts += [_over_seeds(of, shared), _groups(of, shared)]
    title = "xraylab comparison" + (" (synthetic sample)" if synthetic else "")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _metrics(of: list[tuple[Result, dict[str, Any]]], shared: set[str]) -> str:
    from xraylab.metrics import METRICS, number

    rows = []
    for r, result in of:
        own = html.escape(_own(r, shared))
        labels = result["labels"] if len(result["labels"]) == 1 else {**result["labels"], "macro": result["macro"]}
        for label, metrics in labels.items():
            cells = "".join(f"<td>{number(metrics[m])}</td>" for m in METRICS)
            rows.append([r.job, own, html.escape(label), metrics["auroc"]["n"], cells])
    return _rows(["job", "overrides", "label", "n", *METRICS], rows)


def _joined(evaluation: dict[str, Any]) -> list[str]:
    """How an ensemble's members are joined, where that is not one way for every study and finding."""
    from xraylab.combination import Combination

    said = Combination.of_record(evaluation["combination"]).said() if "combination" in evaluation else []
    if chosen := evaluation.get("combination", {}).get("chosen"):
        undefined = " (undefined in valid, so by the lowest validation loss)"
        names = [
            f"{x} by {c['member']}" + (undefined if c["auroc"] is None else f" ({c['auroc']:.3f})") for x, c in chosen.items()
        ]
        said.append(f"each finding by the member of highest AUROC in valid: {', '.join(names)}")
    for split, counts in evaluation.get("members_of_studies", {}).items():
        said.append(f"{split}: " + ", ".join(f"{n} studies of {k} member{'s' * (k != '1')}" for k, n in counts.items()))
    return said


def _pivot(of: list[tuple[Result, dict[str, Any]]], shared: set[str], published: dict[str, Any]) -> str:
    """AUROC by run and finding, the best of each finding bold; nothing where there is one finding."""
    from xraylab.metrics import number

    labels = list(dict.fromkeys(label for _, x in of for label in x["labels"]))
    if len(labels) < 2:
        return ""
    found = [(r, {la: m["auroc"] for la, m in {**x["labels"], "macro": x["macro"]}.items()}) for r, x in of]
    columns = [*labels, "macro"]
    best, counts = {}, []
    for label in columns:
        there = [aurocs[label] for _, aurocs in found if label in aurocs]
        best[label] = max((m["value"] for m in there if m["value"] is not None), default=None)
        counts.append(", ".join(dict.fromkeys(str(m["n"]) for m in there)))
    alike = not any("," in count for count in counts)  # else the runs are of other studies, and none is the best
    rows: list[list[Any]] = [["n", "", "".join(f"<td class=n>{c}</td>" for c in counts)]]
    for r, aurocs in found:
        cells = ""
        for label in columns:
            text = number(aurocs[label]) if label in aurocs else ""
            text += "" if alike or label not in aurocs else f" <span class=n>n {aurocs[label]['n']}</span>"
            marked = alike and label in aurocs and aurocs[label]["value"] is not None and aurocs[label]["value"] == best[label]
            cells += f"<td><b>{text}</b></td>" if marked else f"<td>{text}</td>"
        rows.append([html.escape(r.job), html.escape(_own(r, shared)), cells])
        for row in _beside(r.overrides, published, r.evaluation["data"], aurocs["macro"]["n"]):
            cells = "".join(f"<td class=n>{row[la]:.3f}</td>" if la in row else "<td></td>" for la in columns)
            rows.append(["<span class=n>published</span>", "", cells])
    if len(rows) == 1 + len(found):
        for key, row in published["rows"].items():
            cells = "".join(f"<td class=n>{row[la]:.3f}</td>" if la in row else "<td></td>" for la in columns)
            rows.append(["<span class=n>published of other data</span>", html.escape(key), cells])
    note = f" <small>published: {html.escape(published['note'])}</small>" if published["rows"] else ""
    pivot = _rows(["job", "overrides", *columns], rows).replace("<table>", "<table class=pivot>", 1)
    what = "the best of ours bold" if alike else "runs of other studies, so none is the best"
    return f"<h3>AUROC by finding, {what}{note}</h3>{pivot}"


def _from_the_best(of: list[tuple[Result, dict[str, Any]]], shared: set[str], differences: dict[str, dict[str, Any]]) -> str:
    """Macro AUROC of each run minus that of the best, paired; nothing where there is one run."""
    rows = []
    for r, result in of:
        m = differences.get(r.job)
        if m is not None:
            bounds = "" if m["low"] is None else f" ({m['low']:+.3f} to {m['high']:+.3f})"
            text = m["reason"] if m["value"] is None or m["reason"] == "the best run" else f"{m['value']:+.3f}{bounds}"
            over = result["bootstrap"]["over"]
            rows.append([html.escape(r.job), html.escape(_own(r, shared)), m["n"], f"<td>{html.escape(text)}</td>"])
    if len(rows) < 2:
        return ""
    title = f"<h3>difference of macro AUROC from the best run <small>95% paired bootstrap interval over {over}</small></h3>"
    return title + _rows(["job", "overrides", "n", "difference"], rows)


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
    from xraylab.metrics import number

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
