"""The comparison of a multirun's jobs: ``comparison.csv`` and ``report.html`` in its directory, anew after every job."""

from __future__ import annotations

import csv
import html
import io
import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from xraylab.run import write_text

COLUMNS = ["job", "overrides", "split", "unit", "label", "metric", "value", "low", "high", "n"]


class Comparison(Callback):
    """Hydra's hook after a job, whether it failed or not, so that a sweep that is cut off is compared as far as it came."""

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Compare the jobs so far, in a multirun."""
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            write_comparison(Path(hydra.sweep.dir))


def write_comparison(folder: Path) -> None:
    """Write the comparison of the finished runs that lie in a folder; nothing where there is none."""
    from xraylab.data.table import SYNTHETIC

    runs = sorted((p.parent for p in folder.glob("*/evaluation.json")), key=lambda p: (len(p.name), p.name))
    results = [(run.name, *_read(run)) for run in runs]
    if not results:
        return
    synthetic = any(evaluation["data"] == SYNTHETIC for _, _, evaluation in results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(["data"] if synthetic else [])])
    for job, overrides, evaluation in results:
        for split, result in evaluation["splits"].items():
            for label, metrics in {**result["labels"], "macro": result["macro"]}.items():
                for metric, m in metrics.items():
                    cells = ["" if m[k] is None else m[k] for k in ("value", "low", "high", "n")]
                    mark = [evaluation["data"]] if synthetic else []
                    writer.writerow([job, overrides, split, result["unit"], label, metric, *cells, *mark])
    write_text(folder / "comparison.csv", text.getvalue())
    write_text(folder / "report.html", _page(folder, results, synthetic))


def _read(run: Path) -> tuple[str, dict[str, Any]]:
    overrides = json.loads((run / "environment.json").read_text())["overrides"]
    return " ".join(overrides), json.loads((run / "evaluation.json").read_text())


def _page(folder: Path, results: list[tuple[str, str, dict[str, Any]]], synthetic: bool) -> str:
    from xraylab.metrics import METRICS
    from xraylab.report import STYLE, number

    shared = set.intersection(*({*overrides.split(" ")} for _, overrides, _ in results)) if len(results) > 1 else set()
    parts = [f"<h1>{html.escape(folder.name)} <small>{len(results)} runs</small></h1>"]
    if synthetic:
        parts.append("<p class=sample>Synthetic sample: every number below is about drawings, not patients.</p>")
    if shared:
        parts.append(f"<p>All with {html.escape(' '.join(sorted(shared)))}.</p>")
    for split in dict.fromkeys(s for _, _, evaluation in results for s in evaluation["splits"]):
        head = "".join(f"<th>{m.replace('_', ' ')}</th>" for m in ("job", "overrides", "label", "n", *METRICS))
        rows = []
        for job, overrides, evaluation in results:
            result = evaluation["splits"].get(split)
            if result is None:
                continue
            own = html.escape(" ".join(o for o in overrides.split(" ") if o not in shared))
            labels = result["labels"] if len(result["labels"]) == 1 else {**result["labels"], "macro": result["macro"]}
            for label, metrics in labels.items():
                cells = "".join(f"<td>{number(metrics[m])}</td>" for m in METRICS)
                n = metrics["auroc"]["n"]
                rows.append(f"<tr><td>{job}</td><td>{own}</td><td>{html.escape(label)}</td><td>{n}</td>{cells}</tr>")
        chosen = any(e["splits"][split]["selected_on"] for _, _, e in results if split in e["splits"])
        note = "choices were made on these studies" if chosen else "held out from all choices"
        parts.append(f"<h2>{split} <small>{note}; 95% intervals</small></h2><table><tr>{head}</tr>{''.join(rows)}</table>")
    title = "xraylab comparison" + (" (synthetic sample)" if synthetic else "")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )
