"""The page of several runs: what they were asked for, their metrics by finding, group and seed, and their differences."""

from __future__ import annotations

import html
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from omegaconf import OmegaConf

from xraylab.evaluation.ensembles.combination import Combination
from xraylab.evaluation.intervals import HOW
from xraylab.evaluation.metrics import ABSENT, METRICS, number, numbers, without_interval
from xraylab.evaluation.paired_comparison import Pair, Result, own_words
from xraylab.evaluation.result import all_selected_on, by_unit, choices, last_split, with_macro
from xraylab.reporting.figures.overlay import overlaid, trainings
from xraylab.reporting.frame import Quiet, framed, render, table
from xraylab.reporting.summary import scoring, tie_notes
from xraylab.run import Run
from xraylab.system.command_line import command_line, word

if TYPE_CHECKING:
    from xraylab.evaluation.result import Evaluation, SplitResult, Value, Values

NOT_SETTINGS = ("name", "resume", "upload", "num_workers", "log_every", "sweep")  # of these, results do not depend


def page(
    folder: Path, title: tuple[str, str], results: Sequence[Result], synthetic: bool, missing: Sequence[str],
    published: Mapping[str, Any], pairs: Mapping[tuple[str, str], Pair], ended: bool,
) -> str:  # fmt: skip
    """The page, HTML; where ``ended``, its figures are written into ``folder`` besides.

    Args:
        title: the heading, and what is smaller beside it.
        missing: sentences of what is not there.
        published: AUROCs to show beside, see :class:`xraylab.sweeps.comparison.Comparison`.
        pairs: differences by job and split.
    """
    jobs = [r for r in results if "members" not in r.evaluation]
    shared = set.intersection(*({*r.overrides.split(" ")} for r in jobs)) if len(jobs) > 1 else set()
    joined = len(results) - len(jobs)
    count = f"{len(jobs)} run{'s' * (len(jobs) != 1)}" + f" and {joined} combination{'s' * (joined != 1)}" * (joined > 0)
    again = "" if ended else command_line("report", [word("runs", folder)])
    notes, runs = _notes(results), _runs(folder, results, shared)
    head = render("comparison.html", again=again, shared=sorted(shared), missing=missing, notes=notes, results=results, runs=runs)
    parts = [head, configurations(results)]
    shown = "test" if any("test" in r.evaluation["splits"] for r in results) else "valid"
    for split, unit in dict.fromkeys((s, x["unit"]) for r in results for s, x in by_unit(r.evaluation)):
        of = [(r, x) for r in results for s, x in by_unit(r.evaluation) if (s, x["unit"]) == (split, unit)]
        note = choices(all_selected_on(x["selected_on"] for _, x in of))
        parts.append(f"<h2>{split}, by {unit} <small>{note}; 95% intervals</small></h2>")
        references = {job: pair.reference for (job, s), pair in pairs.items() if s == split}
        same = not ended or (len(set(references.values())) == 1 and all(r.job in references for r, _ in of))
        parts.append(_pivot(of, shared, published if (split, unit) == (shown, "study") else {**published, "rows": {}}, same))
        metrics = _metrics(of, shared)
        many = any(len(x["labels"]) > 1 for _, x in of)
        parts.append(f"<details><summary>every metric</summary>{metrics}</details>" if many else metrics)
        if unit == "study":
            parts.append(_differences(of, shared, {job: pair for (job, s), pair in pairs.items() if s == split}))
        parts += [_calibration(of, shared), _over_seeds(of, shared), _groups(of, shared)]
        if ended:
            parts.append(overlaid(folder, split, of, shared, synthetic))
    if ended:
        parts.append(trainings(folder, jobs, shared, synthetic))
    name = "xraylab comparison"
    return framed(title[0], f"{title[1]}, {count}", "\n".join(parts), synthetic, name, best_of(jobs, pairs) if ended else "")


def best_of(jobs: Sequence[Result], pairs: Mapping[tuple[str, str], Pair]) -> str:
    """The sentence that the page opens with: how far runs lie apart in the AUROC that counts most, where they can be compared.

    Args:
        pairs: differences by job and split; runs that all have one reference are of the same studies, labels and scoring.
    """
    of = [(r, *last_split(r.evaluation)) for r in jobs]
    found = [(x["macro"]["auroc"]["value"], r.job, split, x["n"]) for r, split, x in of]
    known = sorted((f for f in found if f[0] is not None), reverse=True)
    if len(known) < 2:
        return ""
    references = {pairs[job, split].reference if (job, split) in pairs else None for _, job, split, _ in known}
    if len({split for _, _, split, _ in known}) > 1 or len(references) > 1 or None in references:
        return f"{len(known)} runs, not all of the same studies, labels and scoring, so none of them is called the best."
    (high, best, split, n), (low, worst, *_) = known[0], known[-1]
    return (
        f"{len(known)} runs: mean AUROC from {low:.3f} (run {worst}) to {high:.3f} (run {best}) in {n} studies of {split}. "
        "The best of several looks better than it is; what differs beyond chance is under the differences."
    )


def _notes(results: Sequence[Result]) -> dict[str, list[str]]:
    """What results say of their scoring and making, each sentence once, with the jobs that say it."""
    notes: dict[str, list[str]] = {}
    for r in results:
        ties = [f"{split}, by {x['unit']}, {note}" for split, x in by_unit(r.evaluation) for note in tie_notes(x)]
        left = [f"no {file}, for {reason}" for file, reason in r.evaluation.get("left_out", {}).items()]
        for line in [*left, *scoring(r.evaluation), *_joined(r.evaluation), *ties]:
            notes.setdefault(line, []).append(r.job)
    return notes


def _runs(folder: Path, results: Sequence[Result], shared: set[str]) -> list[list[object]]:
    """Rows of what each result is: its words, data, the chosen epoch, how long it took, and where it lies."""
    rows: list[list[object]] = []
    for r in results:
        environment = Run(r.directory).environment
        seconds = sum(s.get("seconds", 0) for s in (*environment.get("sessions_before", []), environment))
        epoch = r.evaluation["checkpoint"]["epoch"] + 1 if "checkpoint" in r.evaluation else ""
        place = os.path.relpath(r.directory.absolute(), folder.absolute())
        link = Markup("<a href='{0}/report.html'>{0}</a>").format(place)
        took = f"{seconds:.0f} s" if seconds else ""
        rows.append([r.job, own_words(r.overrides, shared), r.evaluation["data"], epoch, took, link])
    return rows


def configurations(results: Sequence[Result]) -> str:
    """A table of the settings that differ between runs that were trained; empty where fewer than two were."""
    flat = {}
    for r in results:
        if "checkpoint" in r.evaluation and Run(r.directory).config_file.is_file():
            config = OmegaConf.to_container(OmegaConf.load(Run(r.directory).config_file))
            assert isinstance(config, dict)
            flat[r.job] = {key: value for key, value in _flat(config) if key not in NOT_SETTINGS}
    if len(flat) < 2:
        return ""
    keys = [k for k in dict.fromkeys(k for of in flat.values() for k in of) if len({of.get(k, "-") for of in flat.values()}) > 1]
    title = "<h2>What differs in their settings</h2>"
    if not keys:
        return f"{title}<p>Nothing.</p>"
    rows = [[k, *(of.get(k, "-") for of in flat.values())] for k in keys]
    return f"{title}<div class=settings>{table(['', *flat], rows)}</div>"


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values in words of a configuration."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flat(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), "null" if node is None else str(node)


def _metrics(of: list[tuple[Result, SplitResult]], shared: set[str]) -> str:
    rows = []
    for r, result in of:
        own = own_words(r.overrides, shared)
        rows += [[r.job, own, label, m["auroc"]["n"], *numbers(m)] for label, m in with_macro(result).items()]
    lacking = dict.fromkeys(line for _, x in of for line in without_interval({**x["labels"], "macro": x["macro"]}))
    note = f"<p class=n>{html.escape('; '.join(lacking))}.</p>" if lacking else ""
    return table(["job", "overrides", "label", "n", *_titles()], rows, "metrics") + note


def _joined(evaluation: Evaluation) -> list[str]:
    """How an ensemble's members are joined, where that is not one way for every study and finding."""
    lines = Combination.of_record(evaluation["combination"]).said() if "combination" in evaluation else []
    if chosen := evaluation.get("combination", {}).get("chosen"):
        undefined = " (undefined in valid, so by the lowest validation loss)"
        names = [
            f"{x} by {c['member']}" + (undefined if c["auroc"] is None else f" ({c['auroc']:.3f})") for x, c in chosen.items()
        ]
        lines.append(f"each finding by the member of highest AUROC in valid: {', '.join(names)}")
    for split, counts in evaluation.get("members_of_studies", {}).items():
        lines.append(f"{split}: " + ", ".join(f"{n} studies of {k} member{'s' * (k != '1')}" for k, n in counts.items()))
    return lines


def _pivot(of: list[tuple[Result, SplitResult]], shared: set[str], published: Mapping[str, Any], same: bool) -> str:
    """AUROC by run and finding, the best of each finding bold; nothing where there is one finding."""
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
    # else the runs are of other studies, and none is the best
    alike = (same or len(found) == 1) and not any("," in count for count in counts)
    rows: list[list[object]] = [["n", "", *map(Quiet, counts)]]
    for r, aurocs in found:
        cells: list[str] = []
        for label in columns:
            m = aurocs.get(label)
            how_many = "" if alike or m is None else Markup(" <span class=n>n {}</span>").format(m["n"])
            text = Markup("{}{}").format(number(m) if m is not None else "", how_many)
            marked = alike and m is not None and m["value"] is not None and m["value"] == best[label]
            cells.append(Markup("<b>{}</b>").format(text) if marked else text)
        rows.append([r.job, own_words(r.overrides, shared), *cells])
        for row in beside(r.overrides, published, r.evaluation["data"], aurocs["macro"]["n"]):
            rows.append([Markup("<span class=n>published</span>"), "", *_published(row, columns)])
    if len(rows) == 1 + len(found):
        for key, row in published["rows"].items():
            rows.append([Markup("<span class=n>published of other data</span>"), key, *_published(row, columns)])
    note = f" <small>published: {html.escape(published['note'])}</small>" if published["rows"] else ""
    pivot = table(["job", "overrides", *columns], rows, "pivot")
    what = "the best of ours bold" if alike else "runs of other studies, so none is the best"
    return f"<h3>AUROC by finding, {what}{note}</h3>{pivot}"


def _published(row: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    """Cells of published numbers, blank where there is none."""
    return [Quiet(f"{row[label]:.3f}") if label in row else "" for label in columns]


def _differences(of: list[tuple[Result, SplitResult]], shared: set[str], pairs: Mapping[str, Pair]) -> str:
    """Each run minus the one it is compared with, paired: the macro AUROC, and by finding what is tested; empty of one run."""
    if len(pairs) < 2:
        return ""
    macros, aurocs, calls = [], [], []
    for r, _ in of:
        if (pair := pairs.get(r.job)) is None:
            continue
        who, m = [r.job, own_words(r.overrides, shared), pair.reference], pair.macro()
        text = (m["reason"] or "") if m["value"] is None or pair.found is None else _signed(m)
        macros.append([*who, m["n"], text])
        for at, found in pair.at():
            for label, d in found["labels"].items():
                if at == "0.5":
                    aurocs.append([*who, label, d["n"], _signed(d["auroc"]), _p(d["auroc"]["delong"]["p"])])
                values = (_signed(d["kappa"]), _signed(d["accuracy"]), _p(d["mcnemar"]["exact"]))
                calls.append([*who, label, at if at == "0.5" else f"chosen: {at}", d["n"], *values])
    b = of[0][1]["bootstrap"]
    return render(
        "differences.html",
        how=f"95% paired intervals over {b['over']}, {HOW}" if b["resamples"] else "no intervals were asked for",
        head=["job", "overrides", "compared with"], macros=macros, aurocs=aurocs, calls=calls,
        picked=any(pair.picked for pair in pairs.values()), several_findings=any(len(x["labels"]) > 1 for _, x in of),
    )  # fmt: skip


def _signed(difference: Value) -> str:
    """A difference and its interval in words, or why it has none; a dash where it is undefined."""
    value, low, high = (difference[k] for k in ("value", "low", "high"))
    if value is None:
        return "-"
    bounds = difference["reason"] if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
    return f"{value:+.3f}" + f" ({bounds})" * bool(bounds)


def _p(value: float | None) -> str:
    return "-" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def _calibration(of: list[tuple[Result, SplitResult]], shared: set[str]) -> str:
    """ECE and Brier score by run and finding."""
    rows = [
        [r.job, own_words(r.overrides, shared), label, number(found["ece"]), number(found["brier"]), found["n"]]
        for r, result in of
        for label, found in result.get("calibration", {}).get("labels", {}).items()
    ]
    shown = table(["job", "overrides", "label", "ECE", "Brier", "n"], rows)
    return f"<details><summary>calibration</summary>{shown}</details>" if rows else ""


def _over_seeds(of: list[tuple[Result, SplitResult]], shared: set[str]) -> str:
    """Mean and standard deviation over the runs that differ in their seed alone; nothing where none do."""
    alike: dict[str, dict[str, Values]] = {}
    for r, result in of:
        if "members" not in r.evaluation:
            typed = own_words(r.overrides, shared).split(" ")
            seed = next((o for o in r.overrides.split(" ") if o.startswith("seed=")), "")
            alike.setdefault(" ".join(o for o in typed if o != seed), {}).setdefault(seed, result["macro"])
    rows = []
    for words, by_seed in alike.items():
        results, cells = [*by_seed.values()], []
        for metric in METRICS:
            values = [v for m in results if (v := m.get(metric, ABSENT)["value"]) is not None]
            cells.append(f"{statistics.mean(values):.3f} ({statistics.stdev(values):.3f})" if len(values) > 1 else "-")
        if len(results) > 1:
            rows.append([words or "all", len(results), *cells])
    title = "<h3>mean (standard deviation) over seeds</h3>"
    return f"{title}{table(['', 'runs', *_titles()], rows, 'metrics')}" if rows else ""


def _groups(of: list[tuple[Result, SplitResult]], shared: set[str]) -> str:
    """AUROC and kappa by group, where a result has several and one label."""
    names = sorted({g for _, x in of for g in x["groups"]})
    shares = any(sum(g in x["groups"] for _, x in of) > 1 for g in names)
    if len(names) < 2 or not shares or any(len(x["labels"]) > 1 for _, x in of):
        return ""
    parts, n_of = [], Markup("{} <span class=n>n {}</span>")
    for metric in ("auroc", "kappa"):
        rows = []
        for r, result in of:
            groups = {g: next(iter(part["labels"].values()))[metric] for g, part in result["groups"].items()}
            cells = [n_of.format(number(groups[g]), groups[g]["n"]) if g in groups else "" for g in names]
            rows.append([f"{r.job}: {own_words(r.overrides, shared)}", *cells])
        parts.append(f"<h3>{metric} by group</h3>{table(['job', *names], rows, 'metrics')}")
    return "".join(parts)


def _titles() -> list[str]:
    """Names of metrics as heads of columns."""
    return [name.replace("_", " ") for name in METRICS]


def beside(overrides: str, published: Mapping[str, Any], data: str, n: int) -> list[dict[str, float]]:
    """The published rows that belong to a run of these overrides, on the same data and as many studies."""
    words = set(overrides.split(" "))
    if not data.startswith(published["data"]) or published["n"] not in (None, n):
        return []
    return [row for key, row in published["rows"].items() if set(key.split(" ")) <= words]
