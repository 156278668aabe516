"""The comparison of a multirun's jobs: in its directory, a table after every job and the whole at the end."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xraylab.data.integrity import aligned_rows
from xraylab.data.study_table import SYNTHETIC
from xraylab.errors import UserError, listed
from xraylab.evaluation.objective import of_run
from xraylab.evaluation.paired_comparison import Result, named, paired
from xraylab.evaluation.paired_tests import differences
from xraylab.evaluation.result import Evaluation, all_selected_on, by_unit, choices, in_sample
from xraylab.reporting.comparison_page import beside, page
from xraylab.run import Run
from xraylab.system.files import read_json, write_text

NOTHING: dict[str, Any] = {"note": "", "rows": {}, "data": "", "n": None}  # published
GIVEN = "comparison.json"  # what a sweep said of its comparison, for it to be repeated
DIFFERENCE = "auroc_minus_reference"  # of the macro, paired
WIDTH = 130  # of the printed table
BOUNDS = ("value", "low", "high")
COLUMNS = ["job", "overrides", "split", "unit", "label", "metric", "value", "low", "high", "n"]
COLUMNS += ["selected_on", "in_sample", "measured", "reason"]
SAID = {True: "true", False: "false", None: "not known"}


def check_published(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """``note`` and ``rows`` of published numbers, checked; empty where none are given."""
    if not given:
        return NOTHING
    if wrong := set(given) - {"note", "rows", "data", "n"}:
        raise UserError(f"published.{min(map(str, wrong))}: there is no such key. There are: note, rows, data, n.")
    rows = {str(words): {str(k): v for k, v in row.items()} for words, row in (given.get("rows") or {}).items()}
    for words, row in rows.items():
        for finding, value in row.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"published.rows.{words}.{finding}={value}: it is an AUROC, a number from 0 to 1.")
    return {"note": str(given.get("note") or "published"), "rows": rows, "data": given.get("data", ""), "n": given.get("n")}


def text_table(folder: Path) -> str:
    """The runs and ensembles of a comparison by study, on the test split if there is one, in a few lines of text."""
    published = check_published((read_json(folder / GIVEN) or {}).get("published"))
    rows = list(csv.DictReader((folder / "comparison.csv").open(encoding="utf-8")))
    split = next((s for s in ("test", "valid") if any(r["split"] == s for r in rows)), rows[0]["split"])
    unit = "study" if any((r["split"], r["unit"]) == (split, "study") for r in rows) else "image"
    others = dict.fromkeys(r["job"] for r in rows)
    every = [r for r in rows if (r["split"], r["unit"]) == (split, unit)]
    rows = [r for r in every if r["label"] == "macro"]
    jobs = {r["job"]: r["overrides"] for r in rows}
    typed = [set(o.split(" ")) for o in jobs.values() if " of " not in f" {o}"]
    shared = set.intersection(*typed) if len(typed) > 1 else set()
    found = {(r["job"], r["metric"]): r for r in rows}
    chosen = all_selected_on({word: key for key, word in SAID.items()}[r["selected_on"]] for r in rows)
    of_data = "".join(f"{data}: " for data in dict.fromkeys(r["data"] for r in rows if r.get("data")))
    ns = ", ".join(dict.fromkeys(r["n"] for r in rows))
    lines = [f"{of_data}{split}, by {unit}, n {ns}; {choices(chosen)}; 95% intervals in report.html"]
    of = csv.DictReader((folder / "differences.csv").open(encoding="utf-8")) if (folder / "differences.csv").is_file() else []
    references = {r["job"]: r["reference"] for r in of if r["split"] == split}
    if len(set(references.values())) == 1:
        lines[0] += f"; differences from {next(iter(references.values()))}, paired"
    for job, overrides in jobs.items():
        values = [(m, found[job, m]["value"]) for m in ("auroc", "kappa", "accuracy")]
        numbers = "  ".join(f"{m} {float(v):.3f}" if v else f"{m} -" for m, v in values)
        difference = found.get((job, DIFFERENCE))
        if difference is not None and difference["low"]:
            other = f"  minus {references[job]}" if len(set(references.values())) > 1 else "  difference"
            numbers += other + " {:+.3f} ({:+.3f} to {:+.3f})".format(*(float(difference[k]) for k in BOUNDS))
        mark = "  (fitted in sample)" * (found[job, "auroc"]["in_sample"] == SAID[True])
        lines.append(f"  {numbers}  {named(job, overrides, shared)}{mark}")
    if lacking := [job for job in others if job not in jobs]:
        lines.append(f"  without {split} by {unit}, so in report.html only: {listed(lacking)}")
    same = not references or (len(set(references.values())) == 1 and set(jobs) == {*references, *references.values()})
    return "\n".join(lines + _text_pivot(every, jobs, shared, published, same))


def _text_pivot(
    rows: list[dict[str, str]], jobs: dict[str, str], shared: set[str], published: Mapping[str, Any], same: bool
) -> list[str]:  # fmt: skip
    """AUROC by run and finding, where there are several findings; ``same``: whether all may be of the same studies."""
    found = {(r["job"], r["label"]): r for r in rows if r["metric"] == "auroc"}
    labels = list(dict.fromkeys(label for _, label in found))
    if len(labels) < 3:
        return []
    best = {la: max((float(r["value"]) for (_, x), r in found.items() if x == la and r["value"]), default=None) for la in labels}
    table = [["", *labels]]
    numbers = [list(dict.fromkeys(r["n"] for (_, x), r in found.items() if x == la)) for la in labels]
    alike = same and all(len(of) == 1 for of in numbers)  # else the runs are of other studies, and none is the best
    table.append(["n", *(", ".join(of) for of in numbers)])
    for job, overrides in jobs.items():
        cells = []
        for label in labels:
            r = found.get((job, label))
            value = float(r["value"]) if r is not None and r["value"] else None
            cells.append("- " if value is None else f"{value:.3f}" + ("*" if alike and value == best[label] else " "))
        macro = found[job, "macro"]
        of = "" if alike else f" (n {macro['n']})"
        table.append([f"{named(job, overrides, shared)}{of}", *cells])
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
        lines += [f"  {line}" for line in aligned_rows([[row[0], *row[start:stop]] for row in table], [0])]
        start = stop
    return lines


def finished(folder: Path) -> tuple[list[Path], list[str]]:
    """The finished runs that lie in a multirun's folder, in the order of its jobs; and what is said of the others."""
    evaluated = sorted((p.parent for p in folder.glob("*/evaluation.json")), key=lambda p: (len(p.name), p.name))
    runs = [run for run in evaluated if Run(run).finished]
    others = [f"job {run.name} was stopped before its end, and is left out" for run in evaluated if run not in runs]
    others += [f"job {p.name} {_end(p)}" for p in sorted(folder.glob("[0-9]*")) if p not in evaluated]
    return runs, others


def _end(run: Path) -> str:
    """How a run ended that has no evaluation."""
    record = Run(run).environment
    return f"was {record['pruned']}" if record.get("pruned") else f"failed: {run / 'xraylab.log'}"


def read_result(run: Path, name: str) -> Result:
    """The result of a run directory, under this name."""
    evaluation = Run(run).evaluation
    typed = " ".join(word for word in Run(run).words if not word.startswith(("hydra.", "hydra/", "sweep.", "fail_fast=")))
    return Result(name, joined_words(evaluation) if "members" in evaluation else typed, evaluation, run)


def joined_words(evaluation: Evaluation) -> str:
    """What a combination is called beside runs: ``mean of 0, 1``."""
    return f"{evaluation.get('combination', {}).get('method', '')} of {', '.join(evaluation['members'])}".strip()


def write_results(
    folder: Path, title: tuple[str, str], results: Sequence[Result], waiting: Sequence[str], published: Mapping[str, Any],
    ended: bool = True, reference: str | None = None,
) -> None:  # fmt: skip
    """Write ``comparison.csv`` and ``report.html`` of several results into a folder; at the end ``differences.csv`` and figures.

    Args:
        title: the page's heading, and what is smaller beside it.
        waiting: what is said of results that are not there.
        ended: False: without what takes long, as more results are to come.
        reference: the result with which others are compared; None: in each split the run of highest macro AUROC.
    """
    synthetic = any(r.evaluation["data"] == SYNTHETIC for r in results)
    pairs, left_out = paired(results, reference) if ended else ({}, [])
    mark = {"data": SYNTHETIC} if synthetic else {}
    rows: list[list[Any]] = []
    known = {
        (r.job, split): (result["selected_on"], in_sample(r.evaluation))
        for r in results
        for split, result in r.evaluation["splits"].items()
    }
    for job, overrides, evaluation, directory in results:
        for split, result in by_unit(evaluation):
            pair = pairs.get((job, split)) if result["unit"] == "study" else None
            macro = {**result["macro"], **({DIFFERENCE: pair.macro()} if pair else {})}
            for label, metrics in {**result["labels"], "macro": macro}.items():
                on = of_run(directory, f"{split}/{label}/auroc") if result["unit"] == "study" else None
                for metric, m in metrics.items():
                    cells = [m["value"], m["low"], m["high"], m["n"], *(SAID[of] for of in known[job, split]), on, m["reason"]]
                    rows.append([job, overrides, split, result["unit"], label, metric, *cells])
    frame = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    write_text(folder / "comparison.csv", frame.assign(**mark).to_csv(index=False))
    tables = [
        differences(found, at).assign(
            job=job,
            reference=p.reference,
            split=s,
            selected_on=SAID[all_selected_on((known[job, s][0], known[p.reference, s][0]))],
            in_sample=SAID[known[job, s][1] or known[p.reference, s][1]],
        )
        for (job, s), p in pairs.items()
        for at, found in p.at()
    ]
    if tables:
        of = pd.concat(tables, ignore_index=True).assign(**mark)
        first = ["job", "reference", "split"]
        write_text(folder / "differences.csv", of[[*first, *(c for c in of if c not in first)]].to_csv(index=False))
    write_text(folder / "report.html", page(folder, title, results, synthetic, [*waiting, *left_out], published, pairs, ended))
