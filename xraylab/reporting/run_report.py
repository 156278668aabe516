"""A run's report: one HTML file that opens anywhere, made from what lies in the run directory."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xraylab.data.study_table import SYNTHETIC
from xraylab.evaluation.evaluator import by_unit, choices
from xraylab.evaluation.metrics import COUNTS, METRICS, how_intervals, number, without_interval
from xraylab.evaluation.predictions import Scoring, read_table
from xraylab.reporting.cases import cases_section, listed_section
from xraylab.reporting.figures.calibration import reliability
from xraylab.reporting.figures.curves import KINDS, confusion, panels, side_by_side
from xraylab.reporting.figures.export import mark, save_figure, svg
from xraylab.reporting.figures.layout import spaced
from xraylab.reporting.model_card import OF_LABELS, OF_SPLITS, data_rows, exclusive_note, last_split, write_card
from xraylab.reporting.sections import calibration_table, operating_table, readers_table
from xraylab.reporting.summary import _of_what, macro_notes, moved, scoring, tie_notes, units
from xraylab.run import read_record
from xraylab.system.files import write_text

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
        parts += _split(directory, split, result, synthetic, Scoring.of(evaluation))
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
    return listed_section(read_table(path), split, evaluation["data"], Scoring.of(evaluation))


def _split(directory: Path, split: str, result: dict[str, Any], synthetic: bool, scored: Scoring) -> list[str]:
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
    directory: Path, table: pd.DataFrame, split: str, result: dict[str, Any], synthetic: bool, scored: Scoring
) -> str:  # fmt: skip
    """Write ``figures/<split>_roc.png``, ``_pr.png`` and ``_confusion.png``, and return the curves for the page."""
    where = f"{split} by {result['unit']}"
    drawn = []
    for kind in KINDS:
        figure = panels(kind, table, result, where, scored)
        drawn.append(svg(figure, synthetic) if len(result["labels"]) > OVERLAID else "")
        if synthetic and not drawn[-1]:
            mark(figure)
        save_figure(figure, directory / "figures" / f"{split}_{kind}{'_images' * (result['unit'] == 'image')}.png", synthetic)
    figure = confusion(table, result, where, scored)
    if synthetic:
        mark(figure)
    save_figure(figure, directory / "figures" / f"{split}_confusion{'_images' * (result['unit'] == 'image')}.png", synthetic)
    return "".join(drawn) or svg(side_by_side(table, result, where, scored), synthetic)


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


def _e(text: object) -> str:
    return html.escape(str(text))
