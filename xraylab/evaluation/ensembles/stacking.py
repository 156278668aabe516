"""Stacking: a logistic regression a label on the members' logits, fitted where the members were not.

Fitted on the validation split, it is judged there out of fold: each part of that split by coefficients of the other
parts. Fitted on predictions of studies that the members were trained on, it believes the member that has learnt them by
heart (Wolpert 1992, Neural Networks 5:241-259).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from xraylab.data.splits import in_parts
from xraylab.data.study_table import patients_of
from xraylab.errors import UserError
from xraylab.evaluation.ensembles.alignment import alike, mean_of
from xraylab.evaluation.predictions import PredictionTable, Scoring, scored_labels, with_logits
from xraylab.evaluation.probabilities import sigmoid
from xraylab.evaluation.result import StackFit

PENALTY = 1.0  # scikit-learn's C, its default
FOLDS = 5


def fit_stack(
    tables: Sequence[pd.DataFrame], names: Sequence[str], scoring: Scoring, seed: int = 0, folds: int = FOLDS
) -> tuple[dict[str, StackFit], pd.DataFrame]:  # fmt: skip
    """Coefficients by label, and the probabilities of the same studies out of fold.

    A label with one class only, in all or in a fold's complement, cannot be fitted: it stays the mean of the members.

    Args:
        tables: of the same studies, one a member.
        scoring: what blank and uncertain labels count as.
        seed: of the folds, which are parts by patient, or by study where patients are not known, of like labels.
        folds: parts, no more than there are patients.

    Returns:
        ``{label: {"intercept", "coefficients": {name: number}, "n", "positives", "reason", "certain": {name: number}}}``,
        intercept and coefficients None with a reason where the mean is used; ``certain``: of members without logits, studies
        whose probability is exactly 0 or 1; and the table, its rows as in the first.

    Raises:
        UserError: the members' studies or labels differ, or there are fewer than two folds, or more than patients.
    """
    if folds < 2:
        raise UserError(f"folds={folds}: there are at least 2.")
    same = alike(tables, names)
    first = same[0]
    labels = PredictionTable(first).labels
    if folds > (count := patients_of(first).nunique()):
        said = f"a part has a patient at least, and there are {count} to fit on"
        raise UserError(f"folds={folds}: {said}. Give folds={count} or fewer.")
    fold = in_parts(first, [f"y_{label}" for label in labels], [1 / folds] * folds, seed)
    out = first.copy()
    logits: dict[str, np.ndarray | None] = {}
    record: dict[str, StackFit] = {}
    for label in labels:
        z = np.stack([PredictionTable(t).log_odds(label) for t in same], axis=1)
        truth = scored_labels(first[f"y_{label}"].to_numpy(np.float64), scoring)
        certain = (truth == 0) | (truth == 1)
        found = np.full(len(first), np.nan)
        reason = _one_class(truth[certain])
        for k in range(folds):
            there, here = certain & (fold != k), fold == k
            reason = reason or _one_class(truth[there], " outside a fold")
            if reason is None and here.any():
                intercept, coefficients = _fit(z[there], truth[there])
                found[here] = z[here] @ coefficients + intercept
        exactly = {name: n for name, t in zip(names, same, strict=True) if (n := _exactly(t, label))}
        record[label] = {
            "intercept": None, "coefficients": None, "n": int(certain.sum()), "positives": int((truth == 1).sum()),
            "certain": exactly, "reason": None if reason is None else f"{reason}: the mean of the members",
        }  # fmt: skip
        if reason is None:
            intercept, coefficients = _fit(z[certain], truth[certain])
            record[label]["intercept"] = float(intercept)
            record[label]["coefficients"] = dict(zip(names, map(float, coefficients), strict=True))
        out[f"p_{label}"], logits[label] = (sigmoid(found), found) if reason is None else mean_of(same, label)
    return record, with_logits(out, logits)


def stacked_table(
    tables: Sequence[pd.DataFrame], names: Sequence[str], record: Mapping[str, StackFit], farthest: float = np.inf
) -> pd.DataFrame:  # fmt: skip
    """The members' tables by coefficients that are known.

    Args:
        record: of :func:`fit_stack`.
        farthest: logits are clipped to this distance from 0, as they were where the coefficients were fitted so.

    Raises:
        UserError: the members' studies or labels differ, or they have a label that was not fitted.
    """
    same = alike(tables, names)
    out = same[0].copy()
    logits: dict[str, np.ndarray | None] = {}
    for label in PredictionTable(out).predicted:
        if label not in record:
            raise UserError(f"{label} has no coefficients in this stack; there are those of {', '.join(record)}")
        fitted = record[label]
        if fitted["coefficients"] is None:
            out[f"p_{label}"], logits[label] = mean_of(same, label)
        else:
            coefficients = np.array([fitted["coefficients"][name] for name in names])
            z = np.stack([PredictionTable(t).log_odds(label) for t in same], axis=1).clip(-farthest, farthest)
            logits[label] = found = z @ coefficients + fitted["intercept"]
            out[f"p_{label}"] = sigmoid(found)
    return with_logits(out, logits)


def _fit(z: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """Intercept and coefficients (M,) of logits (N,M) and truth 0/1 (N,)."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=PENALTY, max_iter=1000, tol=1e-8).fit(z, truth.astype(int))
    return float(model.intercept_[0]), model.coef_[0]


def _exactly(table: pd.DataFrame, label: str) -> int:
    """Rows whose probability is exactly 0 or 1, of a table without logits."""
    return 0 if f"logit_{label}" in table else int(table[f"p_{label}"].isin([0.0, 1.0]).sum())


def _one_class(truth: np.ndarray, where: str = "") -> str | None:
    classes = set(truth.tolist())
    if {0.0, 1.0} <= classes:
        return None
    return f"no {'negative' if 1.0 in classes else 'positive'} study{where}" if classes else f"no study with a label{where}"
