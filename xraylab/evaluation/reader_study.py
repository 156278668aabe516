"""What people read, beside the model: a CSV of readings, judged as calls at a threshold are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from xraylab.errors import UserError, did_you_mean, listed, refusing
from xraylab.evaluation.intervals import Clusters
from xraylab.evaluation.operating_points import at_threshold
from xraylab.evaluation.predictions import CERTAIN, PredictionTable, Scoring
from xraylab.evaluation.result import Choice, Reading, SplitResult

CALL: Choice = {"value": 0.5, "reason": None}  # a reading is 0 or 1


def read_readings(path: Path, labels: Sequence[str], ids: Mapping[str, str]) -> pd.DataFrame:
    """A CSV of readings: a row a study and reader, columns ``id, reader`` and any of the labels, 0, 1 or blank.

    Args:
        labels: that the model knows.
        ids: split of every study that could be read; those of a split that is not evaluated are refused too.

    Returns:
        ``id, reader`` as text, a float column a label (NaN: not read).

    Raises:
        UserError: no such file or columns, a label, id or value that is not known, or a study read twice by one reader.
    """
    with refusing(f"readers={path}: cannot be read", OSError, ValueError, end=""):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [c for c in ("id", "reader") if c not in table.columns]
    if missing:
        raise UserError(f"readers={path}: no column {listed(missing)}. It wants id, reader, and a column a finding with 0 or 1.")
    found = [c for c in table.columns if c not in ("id", "reader")]
    unknown = [c for c in found if c not in labels]
    if unknown or not found:
        hint = did_you_mean(unknown[0], labels) if unknown else ""
        said = f"not findings of the model: {listed(unknown)}" if unknown else "no column of a finding"
        raise UserError(f"readers={path}: {said}.{hint} There are: {listed(labels, 30)}.")
    problems = []
    for label in found:
        wrong = table.index[~table[label].str.strip().isin(["0", "1", "0.0", "1.0", ""])]
        if len(wrong):
            problems.append(f"{label} is not 0, 1 or blank: {listed(_row(table, k, label) for k in wrong)}")
    twice = table.index[table.duplicated(["id", "reader"])]
    if len(twice):
        problems.append(f"read twice by one reader: {listed(_row(table, k) for k in twice)}")
    strange = [i for i in dict.fromkeys(table["id"]) if i not in ids]
    if strange:
        there = f"There they are as {listed(ids, 3)}."
        padded = {study.lstrip("0"): study for study in ids}
        if lost := [padded[study] for study in strange if study in padded]:
            there = f"There they have zeros before them, which spreadsheets drop, as {listed(lost, 3)}."
        where = listed(sorted(set(ids.values())))
        problems.append(f"ids of no study of {where}: {listed(strange)} ({len(strange)} in all). {there}")
    if problems:
        raise UserError(f"readers={path}: " + "\n       ".join(problems))
    return table.assign(**{c: pd.to_numeric(table[c].str.strip(), errors="coerce").astype(float) for c in found})


def judge_readers(
    splits: Mapping[str, SplitResult], tables: Mapping[str, PredictionTable], path: Path, scoring: Scoring = CERTAIN,
) -> None:  # fmt: skip
    """Add ``readers`` to the result of each split that was read.

    ``{"file", "readers": {reader: {"n", "labels": {label: ...}}}}``; a label's block is that of
    :func:`xraylab.evaluation.operating_points.at_threshold`, over the studies that the reader read.

    Args:
        splits, tables: results and prediction tables by study, as :func:`xraylab.evaluation.operating_points.judge` takes them.
        path: see :func:`read_readings`.
        scoring: what blank and uncertain labels of the truth count as, as in the results.

    Raises:
        UserError: as of :func:`read_readings`.
    """
    labels = next(iter(tables.values())).labels
    readings = read_readings(path, labels, {i: split for split, t in tables.items() for i in t.frame["id"]})
    for split, table in tables.items():
        here = readings[readings["id"].isin(table.frame["id"])]
        if here.empty:
            continue
        clusters = Clusters(table.clusters, splits[split]["bootstrap"]["resamples"] > 0)
        block: dict[str, Reading] = {}
        for reader, part in here.groupby("reader"):
            of_reader = part.set_index("id").reindex(table.frame["id"])
            block[str(reader)] = {"n": len(part), "labels": {}}
            for label in (c for c in labels if c in part.columns):
                truth, _, rows = table.scored(label, scoring)
                called = of_reader[label].to_numpy(float)[rows]
                known = ~np.isnan(called)
                truth, called, rows = truth[known], called[known], rows[known]
                judged = at_threshold(truth, called, CALL, rows, clusters)
                block[str(reader)]["labels"][label] = {k: v for k, v in judged.items() if k not in ("threshold", "reason")}
        splits[split]["readers"] = {"file": path.name, "readers": block}


def _row(table: pd.DataFrame, k: int, label: str | None = None) -> str:
    value = f" {table.loc[k, label]!r}" if label else ""
    study, reader = (str(table.loc[k, c]) for c in ("id", "reader"))
    return f"line {k + 2} (id {study}, reader {reader}){value}"
