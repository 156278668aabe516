"""Digests of what a run is judged on: studies, labels, weights. Numbers of runs whose digests differ are not comparable."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from xraylab.data.study_table import StudyTable
from xraylab.evaluation.predictions import Scoring, scored_labels
from xraylab.models.losses.base import Loss


def measured(table: StudyTable, loss: Loss, scoring: Scoring, unit: str) -> dict[str, Any]:
    """By split and label, the digest of the studies that count and of their truth; and of ``valid/loss``, with its weights.

    Args:
        loss: with its balance counted.
        scoring: what blank and uncertain labels count as.
        unit: what ``valid/loss`` is by, study or image.
    """

    def truth_of(of: StudyTable, rows: np.ndarray) -> np.ndarray:
        truth = scored_labels(of.label_values()[rows], scoring)
        return np.where((truth == 0) | (truth == 1), truth, -1).astype(np.int8)

    out: dict[str, Any] = {}
    for split in ("valid", "test"):
        rows = np.flatnonzero((table.frame["split"] == split).to_numpy())
        ids, truth = table.frame["id"].to_numpy(str)[rows], truth_of(table, rows)
        known = truth >= 0
        if len(rows):
            out[split] = {la: _digest(ids[known[:, i]], truth[known[:, i], i]) for i, la in enumerate(table.labels)}
    units = table.by_image() if unit == "image" else table
    rows = np.flatnonzero((units.frame["split"] == "valid").to_numpy())
    truth = truth_of(units, rows)
    groups = None if loss.exclusive else torch.from_numpy(units.group_numbers()[rows])
    both = np.broadcast_to(loss.class_weights(groups).numpy(), (*truth.shape, 2))
    weight = np.where(truth < 0, 0, np.where(truth == 1, both[..., 1], both[..., 0])).astype(np.float32)
    kind = "softmax" if loss.exclusive else "sigmoid"
    out["loss"] = _digest(units.frame["id"].to_numpy(str)[rows], truth, weight, f"{unit} {kind} {' '.join(table.labels)}")
    return out


def _digest(ids: np.ndarray, *values: np.ndarray | str) -> str:
    """12 hexadecimal digits of ids (N,) and what is known of each (N,...), in any order of rows."""
    order = np.argsort(ids, kind="stable")
    found = hashlib.sha256("\n".join(ids[order]).encode())
    for value in values:
        found.update(value.encode() if isinstance(value, str) else np.ascontiguousarray(value[order]).tobytes())
    return found.hexdigest()[:12]
