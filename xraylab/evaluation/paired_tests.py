"""Two prediction tables of the same studies: by finding, the difference of every metric, with intervals and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from xraylab.evaluation.delong import delong_p, mcnemar
from xraylab.evaluation.intervals import Clusters, Interval, average, difference, none
from xraylab.evaluation.metrics import METRICS, intervals_of, point, result, undefined
from xraylab.evaluation.predictions import CERTAIN, THRESHOLD, PredictionTable, Scoring
from xraylab.evaluation.result import Differences, Value

SAME = "both give every study the same"


def compare(
    first: PredictionTable, second: PredictionTable, resamples: int = 1000, scoring: Scoring = CERTAIN,
    thresholds: Mapping[str, tuple[float, float]] | None = None,
) -> Differences:  # fmt: skip
    """What ``first`` is better at than ``second``, finding by finding.

    Intervals are by patient, or by study where patients are not known, see :func:`xraylab.evaluation.intervals.difference`: what
    both find hard cancels. The AUROC has ``delong`` besides: the same bounds, and the p of DeLong's test, by patient too. That
    test and the interval are of two methods, so one may find a difference of 0 just possible where the other does not.
    ``mcnemar`` takes studies as independent, so where patients have several, rather look at the interval of kappa or accuracy.

    Args:
        first, second: of the same studies and raw labels, row by row, as
            :func:`xraylab.evaluation.ensembles.alignment.aligned` makes them.
        resamples: 0: no intervals.
        scoring: what blank and uncertain labels count as.
        thresholds: label to the thresholds of both; 0.5 where not given.

    Returns:
        ``{"labels": {label: {"n", metric: {"value", "low", "high", "n", "reason"}, "mcnemar": {...}}}, "macro": {metric: ...}}``:
        the metric of the first minus that of the second; the macro is over the findings for which it is defined.
    """
    clusters = Clusters(first.clusters, resamples > 0)
    out: dict[str, Any] = {}
    means: dict[str, dict[str, tuple[float, Interval | None]]] = {metric: {} for metric in METRICS}
    scored = np.zeros(len(first), bool)
    for label in first.labels:
        truth, _, rows = first.scored(label, scoring)
        scored[rows] = True
        asked = (thresholds or {}).get(label, (THRESHOLD, THRESHOLD))
        ranks, cuts = zip(*(t.ranked(label, cut) for t, cut in zip((first, second), asked, strict=True)), strict=True)
        a, b = (score[rows] for score in ranks)
        values = [{name: point(m, truth, p, cut) for name, m in METRICS.items()} for p, cut in zip((a, b), cuts, strict=True)]
        intervals = [intervals_of(v, clusters, rows, truth, p >= cut, p) for v, p, cut in zip(values, (a, b), cuts, strict=True)]
        same = np.array_equal(a, b) and cuts[0] == cuts[1]
        found: dict[str, Any] = {"n": len(truth)}
        for metric in METRICS:
            ours, theirs = (v[metric] for v in values)
            value = None if ours is None or theirs is None else ours - theirs
            interval = difference(*(i[metric] for i in intervals)) if metric in intervals[0] else None
            if same and interval is not None:  # in a mean it counts as what it is, a difference of 0
                interval = Interval(0.0, 0.0, 0.0, None, np.zeros(clusters.size))
            shown = none(0.0, SAME) if same and interval is not None else interval
            found[metric] = result(value, len(truth), shown, undefined(METRICS[metric], truth, value))
            if value is not None:
                means[metric][label] = (value, interval)
        p = delong_p(truth, a, b, clusters.of[rows]) if found["auroc"]["low"] is not None else None
        found["auroc"]["delong"] = {**found["auroc"], "p": p}
        found["mcnemar"] = {**mcnemar(truth, a >= cuts[0], b >= cuts[1]), "thresholds": list(asked)}
        out[label] = found
    return {"labels": out, "macro": {metric: _mean(of, int(scored.sum())) for metric, of in means.items()}}


def _mean(of: Mapping[str, tuple[float, Interval | None]], n: int) -> Value:
    """The mean difference of several findings; n is the number of studies with a label that is scored."""
    if not of:
        return result(None, n, None, "undefined for every label")
    intervals = {label: interval for label, (_, interval) in of.items() if interval is not None}
    together = average(intervals) if intervals else None
    together = none(0.0, SAME) if together is not None and together.low == together.high else together
    return result(float(np.mean([value for value, _ in of.values()])), n, together)


def differences(found: Differences, at: str = "0.5") -> pd.DataFrame:
    """A row a finding (and the macro of several) and metric of :func:`compare`: ``label, metric, at, difference, low, high,
    delong_low, delong_high, p, n, reason``. ``at`` says which thresholds; a metric without one has a row only at 0.5.

    ``delong_low`` and ``delong_high`` are the bounds of the AUROC once more. ``p`` is DeLong's for the AUROC and McNemar's exact
    one for the accuracy, which are what each tests; ``reason`` says why there is no value or no interval.
    """
    rows = []
    macro = {"macro": found["macro"]} if len(found["labels"]) > 1 else {}
    for label, of in {**found["labels"], **macro}.items():
        for metric in (name for name, kind in METRICS.items() if at == "0.5" or kind.rate):
            m, delong = of[metric], of[metric].get("delong", {})
            p = {"auroc": delong.get("p"), "accuracy": of.get("mcnemar", {}).get("exact")}.get(metric)
            numbers = (m["value"], m["low"], m["high"], delong.get("low"), delong.get("high"), p, m["n"])
            rows.append((label, metric, at if METRICS[metric].rate else "", *numbers, m["reason"]))
    names = ["label", "metric", "at", "difference", "low", "high", "delong_low", "delong_high", "p", "n", "reason"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(names[3:9], np.float64))
