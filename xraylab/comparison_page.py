"""The page of several runs: what they were asked for, their metrics by finding, group and seed, and their differences."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Result(NamedTuple):
    """A run, or an ensemble of runs, the content of its ``evaluation.json``, and where it lies."""

    job: str
    overrides: str
    evaluation: dict[str, Any]
    directory: Path


def page(
    folder: Path, results: list[Result], synthetic: bool, waiting: list[str], published: dict[str, Any],
    differences: dict[tuple[str, str], dict[str, Any]],
) -> str:  # fmt: skip
    from xraylab.evaluation import by_unit
    from xraylab.page import STYLE, scoring

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
    for split, unit in dict.fromkeys((s, x["unit"]) for r in results for s, x in by_unit(r.evaluation)):
        of = [(r, x) for r in results for s, x in by_unit(r.evaluation) if (s, x["unit"]) == (split, unit)]
        chosen = any(x["selected_on"] for _, x in of)
        note = "choices were made on these studies" if chosen else "held out from all choices"
        parts.append(f"<h2>{split}, by {unit} <small>{note}; 95% intervals</small></h2>")
        parts.append(_pivot(of, shared, published if (split, unit) == (shown, "study") else {**published, "rows": {}}))
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
        for row in beside(r.overrides, published, r.evaluation["data"], aurocs["macro"]["n"]):
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


def beside(overrides: str, published: Mapping[str, Any], data: str, n: int) -> list[dict[str, float]]:
    """The published rows that belong to a run of these overrides, on the same data and as many studies."""
    words = set(overrides.split(" "))
    if not data.startswith(published["data"]) or published["n"] not in (None, n):
        return []
    return [row for key, row in published["rows"].items() if set(key.split(" ")) <= words]
