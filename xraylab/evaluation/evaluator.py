"""The evaluation of one split of a prediction table: every metric by label, as the mean over labels, and by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xraylab.evaluation.intervals import HOW, LEAST, LEVEL, Clusters, Interval, average
from xraylab.evaluation.metrics import COUNTS, METRICS, intervals_of, point, result, undefined
from xraylab.evaluation.predictions import CERTAIN, THRESHOLD, PredictionTable, Scoring
from xraylab.evaluation.result import GroupResult, Results, SplitResult, Ties, Values


def ties(table: PredictionTable, label: str, truth: np.ndarray, auroc: float | None) -> Ties | None:
    """Studies of both classes whose probability is exactly 0, or exactly 1, in a table without logits; None where there are none.

    Args:
        truth: of all rows (N,), as scored.
        auroc: of these.

    Returns:
        ``{"0": [positives, negatives], "1": [...], "auroc": [low, high]}``: where it could lie, were their order known.
    """
    if auroc is None or table.has_logits(label):
        return None
    p = table.probability(label)
    zero, one = ([int(((p == value) & (truth == k)).sum()) for k in (1, 0)] for value in (0.0, 1.0))
    unknown = sum(n * m for n, m in (zero, one)) / ((truth == 1).sum() * (truth == 0).sum()) / 2
    return {"0": zero, "1": one, "auroc": [float(auroc - unknown), float(auroc + unknown)]} if unknown else None


def evaluate_split(
    table: PredictionTable, selected_on: bool | None, resamples: int = 1000, seed: int = 0, exclusive: bool = False,
    scoring: Scoring = CERTAIN,
) -> SplitResult:  # fmt: skip
    """Every metric of one split, by label, as the mean over labels, and by group.

    Args:
        table: by study or by image.
        selected_on: whether choices were made on these studies; None: not known.
        resamples: 0: no intervals. They are by patient; a study whose patient is not known is one of its own.
        seed: of the run, for who makes something of its tables; intervals draw nothing.
        exclusive: exactly one label of a study is true; adds the accuracy and kappa of the likeliest label.
        scoring: what blank and uncertain labels count as; the counts of labels are raw.

    Returns:
        ``n, patients, unit, selected_on, bootstrap, intervals, threshold, labels, macro, groups[, ties][, exclusive]``; every
        metric is ``{"value", "low", "high", "n", "reason"}``: value null with a reason where it is undefined, bounds null with a
        reason where there is no interval. A label's AUROC has ``delong`` besides, ``{"low", "high", "reason"}``, the same bounds.
    """
    known = table.patients != ""
    patients = table.patients.where(known)
    clusters = Clusters(table.clusters, resamples > 0)
    truth = table.truth(scoring)
    everything = _evaluate(table, truth, np.arange(len(table)), clusters)
    groups: dict[str, GroupResult] = {}
    for name in sorted(table.frame["group"].unique()):
        rows = np.flatnonzero((table.frame["group"] == name).to_numpy())
        part = everything if len(rows) == len(table) else _evaluate(table, truth, rows, clusters)
        whose = patients.iloc[rows].nunique() if known.any() else None
        groups[str(name)] = {"n": len(rows), "patients": whose, **part}
    out: SplitResult = {
        "n": len(table),
        "patients": patients.nunique() if known.any() else None,
        "unit": table.unit,
        "selected_on": selected_on,
        "threshold": THRESHOLD,
        "bootstrap": {"over": _over(table), "resamples": resamples, "level": LEVEL, "seed": seed},
        "intervals": {"over": _over(table), "level": LEVEL, "least": LEAST, "how": HOW} if resamples else None,
        "labels": everything["labels"],
        "macro": everything["macro"],
        "groups": groups,
    }
    aurocs = {label: everything["labels"][label]["auroc"]["value"] for label in table.labels}
    tied = {label: ties(table, label, truth[:, i], value) for i, (label, value) in enumerate(aurocs.items())}
    if any(tied.values()):
        out["ties"] = {label: of for label, of in tied.items() if of}
    if exclusive:
        out["exclusive"] = _exclusive(table, clusters)
    return out


def _over(table: PredictionTable) -> str:
    """What intervals take as independent, in words."""
    nameless = table.frame.loc[table.patients == "", "id"].nunique()
    if nameless == table.frame["id"].nunique():
        return "studies"
    return "patients" + f" (unknown for {nameless}: each such study counts as one)" * bool(nameless)


def _evaluate(table: PredictionTable, scored: np.ndarray, rows: np.ndarray, clusters: Clusters) -> Results:
    labels: dict[str, Values] = {}
    intervals: dict[str, dict[str, Interval]] = {m: {} for m in METRICS}
    certain = (scored[rows] == 0) | (scored[rows] == 1)
    for i, label in enumerate(table.labels):
        raw, (score, cut) = table.raw(label)[rows], table.ranked(label)
        known = certain[:, i]
        truth, called = scored[rows[known], i].astype(int), score[rows[known]]
        values = {name: point(metric, truth, called, cut) for name, metric in METRICS.items()}
        found = intervals_of(values, clusters, rows[known], truth, called >= cut, called)
        labels[label] = {m: result(v, len(truth), found.get(m), undefined(METRICS[m], truth, v)) for m, v in values.items()}
        of = labels[label]["auroc"]
        of["delong"] = {"low": of["low"], "high": of["high"], "reason": of["reason"]}
        labels[label] |= {kind: result(count, len(raw)) for kind, count in raw_counts(raw).items()}
        for metric, interval in found.items():
            intervals[metric][label] = interval
    macro: Values = {}
    for metric in METRICS:
        names = [name for name in labels if labels[name][metric]["value"] is not None]
        mean = float(np.mean([labels[name][metric]["value"] for name in names])) if names else None
        together = average(intervals[metric]) if intervals[metric] else None
        reason = None if names else "undefined for every label"
        macro[metric] = {**result(mean, int(certain.any(1).sum()), together, reason), "labels": names}
    return {"labels": labels, "macro": macro}


def _exclusive(table: PredictionTable, clusters: Clusters) -> Values:
    """Accuracy and kappa of the likeliest label, over studies with exactly one true label."""
    from sklearn.metrics import accuracy_score, cohen_kappa_score

    truth = np.stack([table.raw(label) for label in table.labels], axis=1)
    rows = np.flatnonzero((truth == 1).sum(1) == 1)
    actual, called = truth[rows].argmax(1), likeliest(table)[rows]
    nothing = None if len(rows) else "no study has exactly one true label"
    reasons = {"accuracy": nothing, "kappa": nothing or ("all studies are of one class" if len(np.unique(actual)) < 2 else None)}
    of = {"accuracy": accuracy_score, "kappa": cohen_kappa_score}
    values = {m: None if reason else float(of[m](actual, called)) for m, reason in reasons.items()}
    found = clusters.classes(values, rows, actual, called)
    return {m: result(v, len(rows), found.get(m), reasons[m]) for m, v in values.items()}


def likeliest(table: PredictionTable) -> np.ndarray:
    """The place of each row's likeliest label (N,): by logits, which do not tie at 1, where all labels have them."""
    known = all(map(table.has_logits, table.labels))
    return np.stack([table.scores(la) if known else table.probability(la) for la in table.labels], axis=1).argmax(1)


def raw_counts(raw: np.ndarray) -> dict[str, int]:
    """How many of the raw labels (N,) are of each of :data:`xraylab.evaluation.metrics.COUNTS`."""
    kinds = (raw == 1, raw == 0, raw == -1, np.isnan(raw))
    return {kind: int(found.sum()) for kind, found in zip(COUNTS, kinds, strict=True)}


def quick_metrics(
    labels: Sequence[str], scores: np.ndarray, raw: np.ndarray, threshold: float = THRESHOLD
) -> dict[str, float]:  # fmt: skip
    """Point values by label and their means, for the end of an epoch: ``<label>/auroc`` ... ``macro/auroc`` ...

    Args:
        scores: (N,L), probabilities, or logits.
        raw: (N,L); what is neither 0 nor 1 is not scored, see :func:`scored_labels`.
        threshold: of these scores.

    Returns:
        NaN where undefined.
    """
    out: dict[str, float] = {}
    for name, metric in METRICS.items():
        defined = []
        for i, label in enumerate(labels):
            certain = (raw[:, i] == 0) | (raw[:, i] == 1)
            value = point(metric, raw[certain, i].astype(int), scores[certain, i], threshold)
            out[f"{label}/{name}"] = np.nan if value is None else value
            defined += [] if value is None else [value]
        out[f"macro/{name}"] = float(np.mean(defined)) if defined else np.nan
    return out
