"""A run's report: one HTML file that opens anywhere, made from what lies in the run directory."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.card import OF_LABELS, OF_SPLITS, data_rows, exclusive_note, last_split, write_card
from xraylab.curves import KINDS, confusion, mark, panels, side_by_side
from xraylab.data.study_table import SYNTHETIC
from xraylab.evaluation.ensembles.combination import IN_SAMPLE
from xraylab.evaluation.evaluator import by_unit, choices, in_sample
from xraylab.evaluation.metrics import COUNTS, METRICS, how_intervals, number, without_interval
from xraylab.evaluation.operating_points import trivial
from xraylab.evaluation.predictions import CERTAIN, read_table
from xraylab.reporting.cases import cases_section, listed_section
from xraylab.run import read_record
from xraylab.sections import calibration_table, operating_table, readers_table, reliability, spaced
from xraylab.system.files import beside, write_text

NONE = {"value": 0}
OVERLAID = 3  # findings whose curves share one picture in the report
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#1b1f24}
table{border-collapse:collapse;margin:.6em 0 1.4em}td,th{padding:.25em .7em;border-bottom:1px solid #d8dee4;text-align:right;
white-space:nowrap;font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}small,.n{color:#656d76}
.sample{background:#fff3cd;border:2px solid #d39e00;padding:.7em 1em;font-weight:600}figure{display:inline-block;margin:0}
pre{background:#f6f8fa;padding:1em;overflow:auto}h2{margin-top:1.8em}svg{max-width:100%;height:auto}
.metrics td,.metrics th{padding:.25em .35em;font-size:12px}.metrics th{white-space:normal;vertical-align:bottom}
.case{margin:.2em .5em .6em 0;vertical-align:top}.case figcaption{max-width:192px;font-size:12px;overflow-wrap:anywhere}
.beside{display:flex;flex-wrap:wrap;gap:0 3em;align-items:start}
.scroll,.settings{overflow-x:auto}
.settings td{white-space:normal;overflow-wrap:anywhere;font-size:12px;max-width:18em}
.decisions td,.decisions th{padding:.25em .4em;font-size:12px}
.pivot td,.pivot th{white-space:normal;padding:.25em .3em;font-size:12px;vertical-align:top}.pivot td:nth-child(2){min-width:9em}
"""


def closing_table(evaluation: dict[str, Any], directory: Path, took: str) -> str:
    """The result in a few lines of text, and where everything lies."""
    lines = ["", f"{evaluation['data']}: {_of_what(evaluation)}"]
    lines += [f"  {line}" for line in (*scoring(evaluation), *moved(evaluation))]
    lines += [f"  {IN_SAMPLE}"] if in_sample(evaluation) else []
    for split, result in by_unit(evaluation):
        over = result["bootstrap"]["over"]
        intervals = f"; 95% intervals over {over}" if result["bootstrap"]["resamples"] else ""
        note = {True: "selected on", False: "held out", None: choices(None)}[result["selected_on"]]
        lines.append(f"  {split} ({note}), by {result['unit']}: {result['n']} {units(result)}{intervals}")
        if len(result["labels"]) > 3 and result["unit"] == "image":
            lines[-1] += f": macro AUROC {number(result['macro']['auroc'])}; more in report.html"
            continue
        if "exclusive" in result:
            found = " and ".join(f"{name} {number(m)}" for name, m in result["exclusive"].items())
            lines.append(f"    {found} of the likeliest class; by class, one against the rest:")
        rows: list[tuple[str, ...]] = [
            ("", "AUROC", "average precision", "accuracy", "F1", "kappa", "sensitivity", "specificity")
        ]
        shown = ("auroc", "average_precision", "accuracy", "f1", "kappa", "sensitivity", "specificity")
        labels = result["labels"] if len(result["labels"]) == 1 else {**result["labels"], "macro": result["macro"]}
        for name, metrics in labels.items():
            rows.append((name, *(number(metrics[m]) for m in shown)))
        if len(result["groups"]) > 1 and len(result["labels"]) == 1 and result["unit"] == "study":
            for group, part in result["groups"].items():
                (metrics,) = part["labels"].values()
                rows.append((f"  {group} (n {part['n']})", *(number(metrics[m]) for m in shown)))
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines += [
            "    " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
            for r in rows
        ]
        notes = (*macro_notes(result), *trivial(result), *tie_notes(result), *without_interval(labels))
        lines += [f"    {line}" for line in notes]
    skipped = sum(map(len, evaluation.get("skipped", {}).values()))
    if skipped:
        lines.append(f"  skipped: {skipped} faults, named in evaluation.json")
    lines += [f"  in {took}; everything is in {directory}", f"  read {directory / 'report.html'}"]
    return "\n".join(lines)


def _of_what(evaluation: dict[str, Any]) -> str:
    """What predicted: a checkpoint, a combination of models, or a table that says no more."""
    if "checkpoint" in evaluation:
        of = evaluation["checkpoint"]
        averaged = f", weights {of['weights']}" if "averaged" in of.get("weights", "") else ""
        return f"{of['file']}, epoch {of['epoch'] + 1}{averaged}"
    if "combination" in evaluation:
        return f"{evaluation['combination']['method']} of {', '.join(evaluation['members'])}"
    return evaluation["table"]


def moved(evaluation: dict[str, Any]) -> list[str]:
    """What the loss learned or adapted by the evaluated checkpoint."""
    values = {key: value for key, value in evaluation.get("loss", {}).items() if key != "policy"}
    said = []
    for name, how in (("u", "learned"), ("w", "adapted")):
        found = [f"{key.partition('/')[2]} {v:.3f}" for key, v in values.items() if key.startswith(f"{name}/")]
        said += [f"{name} of uncertain labels, {how}: {', '.join(found)}"] if found else []
    return said


def units(result: dict[str, Any]) -> str:
    """What a result counts: studies or images."""
    return "images" if result["unit"] == "image" else "studies"


def scoring(evaluation: dict[str, Any]) -> list[str]:
    """What labels that are not certain count as, in words; nothing where they are ignored."""
    words = {"blank": "labels that are not mentioned", "uncertain": "uncertain labels"}
    scored = {**CERTAIN, **evaluation.get("scored", {})}
    said = [f"{words[kind]} are scored as {value}" for kind, value in scored.items() if value != CERTAIN[kind]]
    return [" and ".join(said)] if said else []


def macro_notes(result: dict[str, Any]) -> list[str]:
    """Which findings each mean is over, and why others are not; nothing of a single one."""
    labels, macro = result["labels"], result["macro"]
    if len(labels) == 1:
        return []
    alike: dict[tuple[str, ...], list[str]] = {}
    for metric in METRICS:
        alike.setdefault(tuple(macro[metric]["labels"]), []).append(metric)
    notes = []
    for kept, metrics in alike.items():
        which = "" if len(alike) == 1 else f" of {', '.join(m.replace('_', ' ') for m in metrics)}"
        out = [f"{name} ({labels[name][metrics[0]]['reason']})" for name in labels if name not in kept]
        notes.append(f"macro{which} over {len(kept)} of {len(labels)} findings" + f", without {', '.join(out)}" * bool(out))
    return notes


def tie_notes(result: dict[str, Any]) -> list[str]:
    """Where studies of both classes have a probability of exactly 0 or 1, whose order is lost: what that may do to a number."""
    notes = []
    for label, tied in result.get("ties", {}).items():
        found = [f"{tied[v][0]} positive and {tied[v][1]} negative {units(result)} are exactly {v}" for v in "01" if all(tied[v])]
        low, high = tied["auroc"]
        notes.append(
            f"ties: probabilities of {label} of {' and '.join(found)}, and there is no logit_{label}: they rank as equal. AUROC "
            f"{number(result['labels'][label]['auroc'])} would lie from {low:.3f} to {high:.3f} were their order known, and "
            "average precision depends on it too"
        )
    return notes


def write_report(directory: Path) -> Path:
    """Write ``report.html`` and ``MODEL_CARD.md`` of a run directory from its evaluation, tables, history and configuration."""
    evaluation = read_record(directory / "evaluation.json", "data", "selection", "splits")
    environment = read_record(directory / "environment.json", "command")
    config = (directory / "config.yaml").read_text(encoding="utf-8")
    synthetic = evaluation["data"] == SYNTHETIC
    parts = [f"<h1>{_e(directory.absolute().parent.name)} <small>{_e(directory.absolute().name)}</small></h1>"]
    if synthetic:
        parts.append("<p class=sample>Synthetic sample: every number and figure below is about drawings, not patients.</p>")
    summary = directory / "model_summary.txt"  # a combination has none
    model = "; ".join(summary.read_text(encoding="utf-8").splitlines()[:2]) + "." if summary.is_file() else ""
    parts.append(f"<p>Data: <b>{_e(evaluation['data'])}</b>, selection {_e(evaluation['selection'])}. {_e(model)}</p>")
    parts.append(f"<pre>{_e(environment['command'])}</pre>")
    if anew := evaluation.get("evaluated"):
        said = ", ".join(f"{key}={value}" for key, value in anew["options"].items()) or "no other settings than the run's"
        parts.append(f"<p>Evaluated anew, with {_e(said)}:</p><pre>{_e(anew['command'])}</pre>")
    chosen = ""
    if "checkpoint" in evaluation:
        chosen = f", step {evaluation['checkpoint']['step']}, chosen by {evaluation['checkpoint']['monitor']}"
    parts.append(f"<p>Evaluated: {_e(_of_what(evaluation) + chosen)}.</p>")
    if "combination" in evaluation:
        parts += _combination(evaluation)
    if policy := evaluation.get("loss", {}).get("policy"):
        parts.append(f"<p>Loss: {_e(policy)}.</p>")
    parts += [f"<p><b>{_e(line[0].upper() + line[1:])}.</b></p>" for line in (*scoring(evaluation), *moved(evaluation))]
    rows, counts = data_rows(evaluation)
    parts += ["<h2>Data</h2><div class=beside>", _plain(OF_SPLITS, rows), _plain(OF_LABELS, counts), "</div>"]
    for split, result in by_unit(evaluation):
        parts += _split(directory, split, result, synthetic, {**CERTAIN, **evaluation.get("scored", {})})
    parts.append(cases_section(directory) if "checkpoint" in evaluation else _listed_cases(directory, evaluation))
    if evaluation.get("skipped"):
        parts.append("<h2>Skipped</h2><ul>")
        parts += [f"<li>{len(v)} {_e(k)}: {_e(', '.join(v[:50]))}</li>" for k, v in evaluation["skipped"].items()]
        parts.append("</ul>")
    if (directory / "history.csv").is_file():
        parts.append("<h2>Training</h2>" + _curves(directory, pd.read_csv(directory / "history.csv"), synthetic))
    parts.append(f"<h2>Configuration</h2><pre>{_e(config)}</pre>")
    parts.append(f"<h2>Environment</h2><pre>{_e(json.dumps(environment, indent=2))}</pre>")
    title = "xraylab report" + (" (synthetic sample)" if synthetic else "")
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>" + "\n".join(parts)
    write_text(directory / "report.html", page + "</html>\n")
    write_card(directory)
    return directory / "report.html"


def _combination(evaluation: dict[str, Any]) -> list[str]:
    """How a combination was made, and the coefficients of a stack."""
    from xraylab.evaluation.ensembles.combination import Combination

    combination = Combination.of_record(evaluation["combination"])
    style = " class=sample" if combination.in_sample else ""
    parts = [f"<p{style}>{_e(line[0].upper() + line[1:])}.</p>" for line in combination.said()]
    parts += [f"<p>No {_e(file)}, for {_e(reason)}.</p>" for file, reason in evaluation.get("left_out", {}).items()]
    fitted = {label: v for label, v in (combination.labels or {}).items() if v["coefficients"] is not None}
    if fitted:
        head = "".join(f"<th>{_e(c)}</th>" for c in ["", *evaluation["members"], "intercept", "n", "positives"])
        rows = ""
        for label, v in fitted.items():
            numbers = "".join(f"<td>{x:.3f}</td>" for x in [*v["coefficients"].values(), v["intercept"]])
            rows += f"<tr><td>{_e(label)}</td>{numbers}<td>{v['n']}</td><td>{v['positives']}</td></tr>"
        parts.append(f"<h3>Coefficients of the members' logits</h3><table><tr>{head}</tr>{rows}</table>")
    return parts


def _listed_cases(directory: Path, evaluation: dict[str, Any]) -> str:
    """The cases of a table or a combination, whose images are not at hand."""
    split, _ = last_split(evaluation)
    path = directory / "predictions" / f"{split}.csv"
    if not path.is_file():
        return ""
    return listed_section(read_table(path), split, evaluation["data"], **{**CERTAIN, **evaluation.get("scored", {})})


def _split(directory: Path, split: str, result: dict[str, Any], synthetic: bool, scored: dict[str, str]) -> list[str]:
    chosen, intervals = choices(result["selected_on"]), how_intervals(result)
    patients = "patients not known" if result["patients"] is None else f"{result['patients']} patients"
    called = f"called positive at or above (>=) {result['threshold']}"
    parts = [
        f"<h2>{split}, by {result['unit']} <small>{result['n']} {units(result)}, {patients}; {chosen}</small></h2>",
        f"<p class=n>By {result['unit']}; {called}. {intervals[0].upper() + intervals[1:]}.</p>",
        _table(result["labels"] if len(result["labels"]) == 1 else {**result["labels"], "macro": result["macro"]}),
    ]
    parts += [f"<p class=n>{_e(note[0].upper() + note[1:])}.</p>" for note in macro_notes(result)]
    if lacking := without_interval({**result["labels"], "macro": result["macro"]}):
        parts.append(f"<p class=n>{_e('; '.join(lacking))}.</p>")
    parts += [f"<p>{_e(note)}.</p>" for note in tie_notes(result)]
    if "exclusive" in result:
        parts.append(f"<p>{_e(exclusive_note(result))}.</p>")
    if len(result["groups"]) > 1 and len(result["labels"]) == 1:
        parts.append("<h3>by group</h3>" + _table({g: next(iter(p["labels"].values())) for g, p in result["groups"].items()}))
    elif len(result["groups"]) > 1:
        for name, group in result["groups"].items():
            parts.append(f"<h3>{_e(name)} <small>{group['n']} {units(result)}</small></h3>{_table(group['labels'])}")
    undefined: dict[tuple[str, str], list[str]] = {}
    for name, metrics in result["labels"].items():
        for metric, m in metrics.items():
            if m["value"] is None:
                undefined.setdefault((name, m["reason"]), []).append(metric.replace("_", " "))
    if undefined:
        said = [f"{name} {', '.join(metrics)}: {reason}" for (name, reason), metrics in undefined.items()]
        parts.append(f"<p>Undefined: {_e('; '.join(said))}.</p>")
    path = directory / "predictions" / f"{split}{'_images' * (result['unit'] == 'image')}.csv"
    if path.is_file():
        parts.append(_figures(directory, read_table(path), split, result, synthetic, scored))
    if "operating_points" in result:
        parts.append(operating_table(split, result["operating_points"]))
    if "readers" in result:
        parts.append(readers_table(split, result["readers"]))
    if "calibration" in result:
        figure = reliability(result["calibration"], f"{split} by {result['unit']}")
        parts += [calibration_table(split, result["calibration"]), svg(figure, synthetic)]
        save_figure(figure, directory / "figures" / f"{split}_calibration.png", synthetic)
    return parts


def _plain(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["".join(f"<td>{_e(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _table(labels: dict[str, Any]) -> str:
    told = [c for c in COUNTS if c in ("positives", "negatives") or any(m.get(c, NONE)["value"] for m in labels.values())]
    columns = [*METRICS, *told]
    head = "".join(f"<th>{c.replace('_', ' ')}</th>" for c in ["", *columns, "n"])
    rows = []
    for name, metrics in labels.items():
        cells = "".join(f"<td>{number(metrics[c]) if c in metrics else ''}</td>" for c in columns)
        rows.append(f"<tr><td>{_e(name)}</td>{cells}<td>{metrics['auroc']['n']}</td></tr>")
    return f"<table class=metrics><tr>{head}</tr>{''.join(rows)}</table>"


def _figures(
    directory: Path, table: pd.DataFrame, split: str, result: dict[str, Any], synthetic: bool, scored: dict[str, str]
) -> str:  # fmt: skip
    """Write ``figures/<split>_roc.png``, ``_pr.png`` and ``_confusion.png``, and return the curves for the page."""
    where = f"{split} by {result['unit']}"
    drawn = []
    for kind in KINDS:
        figure = panels(kind, table, result, where, **scored)
        drawn.append(svg(figure, synthetic) if len(result["labels"]) > OVERLAID else "")
        if synthetic and not drawn[-1]:
            mark(figure)
        save_figure(figure, directory / "figures" / f"{split}_{kind}{'_images' * (result['unit'] == 'image')}.png", synthetic)
    figure = confusion(table, result, where, **scored)
    if synthetic:
        mark(figure)
    save_figure(figure, directory / "figures" / f"{split}_confusion{'_images' * (result['unit'] == 'image')}.png", synthetic)
    return "".join(drawn) or svg(side_by_side(table, result, where, **scored), synthetic)


def save_figure(figure: Any, path: Path, synthetic: bool) -> None:
    """Write a figure as PNG; one of synthetic data must be marked before, see :func:`svg`."""
    with beside(path) as partial:
        figure.savefig(partial, format="png", metadata={"Description": SYNTHETIC if synthetic else ""})


def _curves(directory: Path, history: pd.DataFrame, synthetic: bool) -> str:
    from matplotlib.figure import Figure

    if history.empty:
        return "<p>No epoch was finished.</p>"
    figure = Figure(figsize=(10.5, 3.6))
    loss, score = spaced(figure, 1, 2, 0.65, 0.1, 0.55, 0.7, 0.75)
    epochs = history["epoch"] + 1
    for column in ("train/loss", "valid/loss"):
        loss.plot(epochs, history[column], marker=".", label=column)
    aurocs = [c for c in history.columns if c.endswith("/auroc")]
    for column in aurocs if len(aurocs) > 2 else aurocs[:1]:
        score.plot(epochs, history[column], marker=".", label=column)
    loss.set(xlabel="epoch", title="Loss")
    score.set(xlabel="epoch", title="Validation AUROC")
    for axes in (loss, score):
        axes.legend(fontsize=8)
    drawn = svg(figure, synthetic)
    save_figure(figure, directory / "figures" / "training.png", synthetic)
    return drawn


def svg(figure: Any, synthetic: bool) -> str:
    """A matplotlib figure as an HTML element of its own."""
    if synthetic:
        mark(figure)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    markup = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.S)
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.S)
    # ids are unique within a figure only
    unique = f"f{np.random.default_rng().integers(1 << 40):x}"
    markup = re.sub(r'\bid="', f'id="{unique}', markup)
    markup = re.sub(r'(href="|url\()#', rf"\1#{unique}", markup)
    return f"<figure>{markup}</figure>"


def _e(text: object) -> str:
    return html.escape(str(text))
