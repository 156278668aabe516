"""A run's report: one HTML file that opens anywhere, made from what lies in the run directory."""

from __future__ import annotations

import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.table import SYNTHETIC
from xraylab.evaluation import by_unit, labels_of, read_table
from xraylab.metrics import COUNTS, METRICS
from xraylab.run import write_text

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#1b1f24}
table{border-collapse:collapse;margin:.6em 0 1.4em}td,th{padding:.25em .7em;border-bottom:1px solid #d8dee4;text-align:right;
white-space:nowrap;font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}small,.n{color:#656d76}
.sample{background:#fff3cd;border:2px solid #d39e00;padding:.7em 1em;font-weight:600}figure{display:inline-block;margin:0}
pre{background:#f6f8fa;padding:1em;overflow:auto}h2{margin-top:1.8em}svg{max-width:100%;height:auto}
"""


def closing_table(evaluation: dict[str, Any], directory: Path, took: str) -> str:
    """The result in a few lines of text, and where everything lies."""
    lines = ["", f"{evaluation['data']}: {evaluation['checkpoint']['file']}, epoch {evaluation['checkpoint']['epoch'] + 1}"]
    for split, result in by_unit(evaluation):
        b = result["bootstrap"]
        intervals = f"; 95% intervals by bootstrap over {b['over']}" if b["resamples"] else ""
        note = "selected on" if result["selected_on"] else "held out"
        lines.append(f"  {split} ({note}), by {result['unit']}: {result['n']} {units(result)}{intervals}")
        if "exclusive" in result:
            lines.append(
                f"    accuracy of the likeliest class {number(result['exclusive']['accuracy'])}; by class, one against the rest:"
            )
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
    skipped = sum(map(len, evaluation.get("skipped", {}).values()))
    if skipped:
        lines.append(f"  skipped: {skipped} faults, named in evaluation.json")
    lines += [f"  in {took}; everything is in {directory}", f"  read {directory / 'report.html'}"]
    return "\n".join(lines)


def units(result: dict[str, Any]) -> str:
    """What a result counts: studies or images."""
    return "images" if result["unit"] == "image" else "studies"


def number(metric: dict[str, Any]) -> str:
    """``0.912 (0.871-0.944)``, or a dash where undefined."""
    if metric["value"] is None:
        return "-"
    if isinstance(metric["value"], int):
        return str(metric["value"])
    bounds = "" if metric["low"] is None else f" ({metric['low']:.3f}-{metric['high']:.3f})"
    return f"{metric['value']:.3f}{bounds}"


def write_report(directory: Path) -> Path:
    """Write ``report.html`` of a run directory from its evaluation, tables, history and configuration."""
    evaluation = json.loads((directory / "evaluation.json").read_text())
    environment = json.loads((directory / "environment.json").read_text())
    config = (directory / "config.yaml").read_text()
    synthetic = evaluation["data"] == SYNTHETIC
    parts = [f"<h1>{_e(directory.absolute().parent.name)} <small>{_e(directory.absolute().name)}</small></h1>"]
    if synthetic:
        parts.append("<p class=sample>Synthetic sample: every number and figure below is about drawings, not patients.</p>")
    model = "; ".join((directory / "model_summary.txt").read_text().splitlines()[:2])
    parts.append(f"<p>Data: <b>{_e(evaluation['data'])}</b>, selection {_e(evaluation['selection'])}. {_e(model)}.</p>")
    parts.append(f"<pre>{_e(environment['command'])}</pre>")
    checkpoint = evaluation["checkpoint"]
    parts.append(
        f"<p>Evaluated: {_e(checkpoint['file'])}, epoch {checkpoint['epoch'] + 1}, step {checkpoint['step']}, "
        f"chosen by {_e(checkpoint['monitor'])}.</p>"
    )
    for split, result in by_unit(evaluation):
        parts += _split(directory, split, result, synthetic)
    if evaluation.get("skipped"):
        parts.append("<h2>Skipped</h2><ul>")
        parts += [f"<li>{len(v)} {_e(k)}: {_e(', '.join(v[:50]))}</li>" for k, v in evaluation["skipped"].items()]
        parts.append("</ul>")
    if (directory / "history.csv").is_file():
        parts.append("<h2>Training</h2>" + _curves(pd.read_csv(directory / "history.csv"), synthetic))
    parts.append(f"<h2>Configuration</h2><pre>{_e(config)}</pre>")
    parts.append(f"<h2>Environment</h2><pre>{_e(json.dumps(environment, indent=2))}</pre>")
    title = "xraylab report" + (" (synthetic sample)" if synthetic else "")
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>" + "\n".join(parts)
    write_text(directory / "report.html", page + "</html>\n")
    return directory / "report.html"


def _split(directory: Path, split: str, result: dict[str, Any], synthetic: bool) -> list[str]:
    b = result["bootstrap"]
    chosen = "choices were made on these studies" if result["selected_on"] else "held out from all choices"
    intervals = (
        f"95% intervals: {b['resamples']} bootstrap resamples over {b['over']}"
        if b["resamples"]
        else "No intervals were asked for"
    )
    patients = "patients not known" if result["patients"] is None else f"{result['patients']} patients"
    parts = [
        f"<h2>{split}, by {result['unit']} <small>{result['n']} {units(result)}, {patients}; {chosen}</small></h2>",
        f"<p class=n>By {result['unit']}, threshold {result['threshold']}. {intervals}.</p>",
        _table(result["labels"] if len(result["labels"]) == 1 else {**result["labels"], "macro": result["macro"]}),
    ]
    if "exclusive" in result:
        accuracy = result["exclusive"]["accuracy"]
        parts.append(f"<p>Accuracy of the likeliest class: {number(accuracy)}, n {accuracy['n']}.</p>")
    if len(result["groups"]) > 1 and len(result["labels"]) == 1:
        parts.append("<h3>by group</h3>" + _table({g: next(iter(p["labels"].values())) for g, p in result["groups"].items()}))
    elif len(result["groups"]) > 1:
        for name, group in result["groups"].items():
            parts.append(f"<h3>{_e(name)} <small>{group['n']} {units(result)}</small></h3>{_table(group['labels'])}")
    undefined = [
        f"{name} {m}: {v['reason']}" for name, ms in result["labels"].items() for m, v in ms.items() if v["value"] is None
    ]
    if undefined:
        parts.append(f"<p>Undefined: {_e('; '.join(undefined))}.</p>")
    path = directory / "predictions" / f"{split}{'_images' * (result['unit'] == 'image')}.csv"
    if path.is_file():
        parts.append(_roc_pr(read_table(path), result, split, synthetic))
    return parts


def _table(labels: dict[str, Any]) -> str:
    columns = [*METRICS, *COUNTS]
    head = "".join(f"<th>{c.replace('_', ' ')}</th>" for c in ["", *columns, "n"])
    rows = []
    for name, metrics in labels.items():
        cells = "".join(f"<td>{number(metrics[c]) if c in metrics else ''}</td>" for c in columns)
        rows.append(f"<tr><td>{_e(name)}</td>{cells}<td>{metrics['auroc']['n']}</td></tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _roc_pr(table: pd.DataFrame, result: dict[str, Any], split: str, synthetic: bool) -> str:
    from matplotlib.figure import Figure
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    roc, pr = figure.subplots(1, 2)
    for label in labels_of(table):
        metrics = result["labels"][label]
        certain = table[f"y_{label}"].isin([0, 1]).to_numpy()
        truth, p = table[f"y_{label}"].to_numpy()[certain], table[f"p_{label}"].to_numpy()[certain]
        if metrics["auroc"]["value"] is None:
            continue
        fpr, tpr, _ = roc_curve(truth, p)
        precision, recall, _ = precision_recall_curve(truth, p)
        roc.plot(fpr, tpr, label=f"{label} {number(metrics['auroc'])}, n {len(truth)}")
        pr.step(
            recall, precision, where="post", label=f"{label} {number(metrics['average_precision'])}, {truth.mean():.0%} positive"
        )
    roc.plot([0, 1], [0, 1], ":", color="grey")
    where = f"{split} by {result['unit']}"
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"ROC, {where}, AUROC (95% interval)", aspect="equal")
    pr.set(xlabel="sensitivity (recall)", ylabel="positive predictive value (precision)", ylim=(0, 1.02),
           title=f"Precision-recall, {where}, average precision")  # fmt: skip
    for axes in (roc, pr):
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
    return svg(figure, synthetic)


def _curves(history: pd.DataFrame, synthetic: bool) -> str:
    from matplotlib.figure import Figure

    if history.empty:
        return "<p>No epoch was finished.</p>"
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    loss, score = figure.subplots(1, 2)
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
    return svg(figure, synthetic)


def svg(figure: Any, synthetic: bool) -> str:
    """A matplotlib figure as an HTML element of its own."""
    if synthetic:
        figure.suptitle(SYNTHETIC, color="#b07d00")
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
