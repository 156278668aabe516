"""How fast prediction tables are read, checked and evaluated: ``python experiments/speed/tables.py``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.predictions import PredictionTable

PLAIN = 60.0  # seconds without intervals at most
BOOTSTRAPPED = 600.0  # seconds with intervals at most
MEMORY = 4.0  # GB of resident memory at most


def main() -> int:
    """Print a line a job; 1 where a promise is not kept, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--labels", type=int, default=14)
    parser.add_argument("--resamples", type=int, default=1000)
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores, load {os.getloadavg()[0]:.2f}; pandas {pd.__version__}. SYNTHETIC: made-up predictions and labels.")
    print("Each timing is of a process of its own, its imports done, the file in the page cache; peak RSS is of all of it.")
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "table.csv", asked.rows, asked.labels)
        print(f"{asked.rows:,} rows x {asked.labels} labels, {path.stat().st_size / 1e6:.0f} MB, 3.5 studies a patient")
        bare, _ = alone(read_alone, path, 0)
        read, read_peak = alone(read_checked, path, 0)
        print(f"read and checked: {read:.1f} s, {read_peak:.2f} GB; pandas.read_csv alone: {bare:.1f} s; {read / bare:.2f} x")
        scores, _ = alone(scikit_learn, path, 0)
        plain, plain_peak = alone(evaluated, path, 0)
        print(
            f"read and evaluated, no intervals: {plain:.1f} s, {plain_peak:.2f} GB; pandas.read_csv and scikit-learn's AUROC and "
            f"average precision alone: {scores:.1f} s; {plain / scores:.2f} x"
        )
        few = 3
        naive, _ = alone(resampled, path, few)
        naive *= asked.resamples / few
        full, full_peak = alone(evaluated, path, asked.resamples)
        print(
            f"read and evaluated, with intervals: {full:.0f} s, {full_peak:.2f} GB; scikit-learn's AUROC alone of "
            f"rows drawn anew {asked.resamples:,} times, {few} of them scaled to as many: {naive:.0f} s; {full / naive:.3f} x"
        )
    kept = plain <= PLAIN and full <= BOOTSTRAPPED and max(plain_peak, full_peak) <= MEMORY
    print(f"the promise is {PLAIN:.0f} s, {BOOTSTRAPPED:.0f} s and {MEMORY:.0f} GB: {'kept' if kept else 'NOT kept'}")
    return 0 if kept else 1


def write(path: Path, rows: int, labels: int) -> Path:
    """A table of predictions of some skill, with uncertain and blank labels, two groups."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"id": [f"study{i:07d}" for i in range(rows)], "patient": [f"patient{i * 2 // 7:06d}" for i in range(rows)]}
    )
    frame["group"], frame["split"] = np.where(np.arange(rows) % 3 == 0, "lateral", "frontal"), "test"
    for k in range(labels):
        raw = rng.choice([1.0, 0.0, -1.0, np.nan], rows, p=[0.1, 0.6, 0.05, 0.25])
        frame[f"p_finding{k}"] = np.clip(0.2 * (raw == 1) + 0.8 * rng.random(rows), 0, 1).astype(np.float32)
        frame[f"y_finding{k}"] = pd.array(raw, "Int64")
    frame.to_csv(path, index=False)
    return path


def read_alone(path: Path, _: int) -> None:
    """The baseline of reading."""
    pd.read_csv(path)


def read_checked(path: Path, _: int) -> None:
    """Read and check every row."""
    PredictionTable.read(path)


def scikit_learn(path: Path, _: int) -> None:
    """The baseline of an evaluation: two metrics of each label."""
    table = pd.read_csv(path)
    for label in PredictionTable(table).labels:
        known = table[f"y_{label}"].isin([0, 1])
        roc_auc_score(table.loc[known, f"y_{label}"], table.loc[known, f"p_{label}"])
        average_precision_score(table.loc[known, f"y_{label}"], table.loc[known, f"p_{label}"])


def evaluated(path: Path, resamples: int) -> None:
    """Every metric, by label and group; with intervals unless resamples are 0."""
    evaluate_split(PredictionTable.read(path), False, resamples)


def resampled(path: Path, resamples: int) -> None:
    """The baseline of a bootstrap: one metric of each label and group, of patients drawn with replacement."""
    table = PredictionTable.read(path).frame
    rng = np.random.default_rng(0)
    rows = list(table.groupby("patient", sort=False).indices.values())
    for _ in range(resamples):
        drawn = table.iloc[np.concatenate([rows[k] for k in rng.integers(0, len(rows), len(rows))])]
        for part in (drawn, *(g for _, g in drawn.groupby("group"))):
            for label in PredictionTable(table).labels:
                known = part[f"y_{label}"].isin([0, 1])
                roc_auc_score(part.loc[known, f"y_{label}"], part.loc[known, f"p_{label}"])


def alone(job: Callable[[Path, int], None], path: Path, number: int) -> tuple[float, float]:
    """Seconds of a job, and its peak resident memory in GB, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (job, path, number))


def _timed(job: Callable[[Path, int], None], path: Path, number: int) -> tuple[float, float]:
    start = time.perf_counter()
    job(path, number)
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


if __name__ == "__main__":
    sys.exit(main())
