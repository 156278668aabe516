"""Two prediction tables of the same studies: by finding, the difference of every metric, with intervals and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xraylab.evaluation import THRESHOLD, clusters_of, labels_of, ranked
from xraylab.metrics import METRICS, RANKED, THRESHOLDED, Resamples, point, result, undefined
from xraylab.operating import scored_rows
from xraylab.statistics import delong_difference, mcnemar


def compare(
    first: pd.DataFrame, second: pd.DataFrame, resamples: int = 1000, seed: int = 0, blank: str = "ignore",
    uncertain: str = "ignore", thresholds: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What ``first`` is better at than ``second``, finding by finding.

    Intervals are of a paired bootstrap by patient, or by study where patients are not known: both tables are resampled by the
    same draws. The AUROC has ``delong`` besides, by patient too; ``mcnemar`` takes studies as independent, so where patients
    have several, rather look at the interval of kappa or accuracy.

    Args:
        first, second: prediction tables of the same studies and raw labels, row by row, as
            :func:`xraylab.joining.aligned` makes them.
        resamples, seed: of the bootstrap.
        blank, uncertain: what such labels count as, see :func:`xraylab.evaluation.scored_labels`.
        thresholds: label to the thresholds of both; 0.5 where not given.

    Returns:
        ``{"labels": {label: {"n", metric: {"value", "low", "high", "n", "reason"}, "mcnemar": {...}}}, "macro": {metric: ...}}``:
        the metric of the first minus that of the second; the macro is over the findings for which it is defined.
    """
    draws = Resamples(clusters_of(first), resamples, seed)
    out: dict[str, Any] = {}
    means: dict[str, list[tuple[float, np.ndarray]]] = {metric: [] for metric in METRICS}
    scored = np.zeros(len(first), bool)
    for label in labels_of(first):
        truth, _, rows = scored_rows(first, label, blank, uncertain)
        scored[rows] = True
        asked = (thresholds or {}).get(label, (THRESHOLD, THRESHOLD))
        ranks, cuts = zip(*(ranked(t, label, cut) for t, cut in zip((first, second), asked, strict=True)), strict=True)
        a, b = (score[rows] for score in ranks)
        samples = [draws.replicates(rows, truth, p, cut) for p, cut in zip((a, b), cuts, strict=True)]
        found: dict[str, Any] = {"n": len(truth)}
        for metric in METRICS:
            reason = undefined(metric, truth)
            ours, theirs = (point(metric, truth, p, cut) for p, cut in zip((a, b), cuts, strict=True))
            value = None if ours is None or theirs is None else ours - theirs
            replicates = samples[0][metric] - samples[1][metric]
            found[metric] = result(value, len(truth), replicates, reason)
            if value is not None:
                means[metric].append((value, replicates))
        found["auroc"]["delong"] = delong_difference(truth, a, b, draws.clusters[rows])
        found["mcnemar"] = {**mcnemar(truth, a >= cuts[0], b >= cuts[1]), "thresholds": list(asked)}
        out[label] = found
    return {"labels": out, "macro": {metric: _mean(of, int(scored.sum())) for metric, of in means.items()}}


def _mean(of: Sequence[tuple[float, np.ndarray]], n: int) -> dict[str, Any]:
    """The mean difference of several findings; n is the number of studies with a label that is scored."""
    if not of:
        return result(None, n, None, "undefined for every label")
    values, replicates = zip(*of, strict=True)
    return result(float(np.mean(values)), n, np.mean(replicates, axis=0))


def differences(found: Mapping[str, Any], at: str = "0.5") -> pd.DataFrame:
    """A row a finding (and the macro of several) and metric of :func:`compare`: ``label, metric, at, difference, low, high,
    delong_low, delong_high, p, n``. ``at`` says which thresholds; a metric without one has a row only at 0.5.

    ``p`` is DeLong's for the AUROC and McNemar's exact one for the accuracy, which are what each tests.
    """
    rows = []
    macro = {"macro": found["macro"]} if len(found["labels"]) > 1 else {}
    for label, of in {**found["labels"], **macro}.items():
        for metric in METRICS if at == "0.5" else THRESHOLDED:
            m, delong = of[metric], of[metric].get("delong", {})
            tests = {"auroc": delong.get("p"), "accuracy": of.get("mcnemar", {}).get("exact")}
            of_auroc = (delong.get("low"), delong.get("high"))
            rows.append(
                (
                    label,
                    metric,
                    "" if metric in RANKED else at,
                    m["value"],
                    m["low"],
                    m["high"],
                    *of_auroc,
                    tests.get(metric),
                    m["n"],
                )
            )
    names = ["label", "metric", "at", "difference", "low", "high", "delong_low", "delong_high", "p", "n"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(names[3:9], np.float64))
