"""Mean and spread of a label's test results over runs: ``python experiments/pneumoniamnist/summary.py <run> [<run> ...]``."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

METRICS = ("auroc", "accuracy", "average_precision", "kappa", "sensitivity", "specificity")


def main(runs: list[str]) -> None:
    """Print a Markdown table, a row a run, then the mean and the standard deviation between runs."""
    rows: list[list[float]] = []
    print("| run | split | n | " + " | ".join(METRICS) + " | minutes |")
    print("|---" * (len(METRICS) + 4) + "|")
    for run in map(Path, runs):
        evaluation = json.loads((run / "evaluation.json").read_text())
        environment = json.loads((run / "environment.json").read_text())
        for split, result in evaluation["splits"].items():
            (metrics,) = result["labels"].values()
            cells = [f"{metrics[m]['value']:.3f} ({metrics[m]['low']:.3f}-{metrics[m]['high']:.3f})" for m in METRICS]
            minutes = f"{environment['seconds'] / 60:.1f}"
            print(f"| seed {environment['seed']} | {split} | {result['n']} | {' | '.join(cells)} | {minutes} |")
            if split == "test":
                rows.append([metrics[m]["value"] for m in METRICS])
    if len(rows) > 1:
        for name, of in (("mean", statistics.mean), ("standard deviation", statistics.stdev)):
            print(f"| {name} | test | {len(rows)} runs | " + " | ".join(f"{of(c):.4f}" for c in zip(*rows, strict=True)) + " | |")


if __name__ == "__main__":
    main(sys.argv[1:])
