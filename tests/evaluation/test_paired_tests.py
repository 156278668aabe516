"""Differences between two prediction tables of the same studies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from xraylab.evaluation.delong import delong_p, mcnemar
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.metrics import METRICS
from xraylab.evaluation.paired_tests import compare, differences
from xraylab.evaluation.predictions import PredictionTable


def pair(seed=0, n=200, skill=(1.5, 1.0), per_patient=2):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "patient": [f"p{i // per_patient}" for i in range(n)], "group": "g"})
    frame["acl"] = rng.integers(0, 2, n).astype(float)
    frame["tear"] = np.where(rng.random(n) < 0.2, -1.0, rng.integers(0, 2, n))
    frame["never"] = 0.0
    truth = np.abs(frame[["acl", "tear", "never"]].to_numpy())
    shared = rng.normal(size=truth.shape)
    out = []
    for s in skill:
        z = s * (truth - 0.5) + 0.8 * shared + 0.6 * rng.normal(size=truth.shape)
        out.append(PredictionTable.of_studies(frame, ["acl", "tear", "never"], "test", np.arange(n), 1 / (1 + np.exp(-z))).frame)
    return out


def test_differences_are_those_of_the_evaluations():
    first, second = pair()
    found = compare(PredictionTable(first), PredictionTable(second))["labels"]
    ours, theirs = (evaluate_split(PredictionTable(t), False, 0)["labels"] for t in (first, second))
    for label in ("acl", "tear"):
        for metric in METRICS:
            assert found[label][metric]["value"] == pytest.approx(ours[label][metric]["value"] - theirs[label][metric]["value"])
            assert found[label][metric]["low"] < found[label][metric]["value"] < found[label][metric]["high"]
        assert found[label]["n"] == ours[label]["auroc"]["n"]
    assert found["never"]["auroc"]["reason"] == "no positive study"
    assert found["never"]["auroc"]["delong"]["value"] is None
    assert found["never"]["accuracy"]["value"] is not None
    y, a, b = first["y_acl"].to_numpy(), first["p_acl"].to_numpy(), second["p_acl"].to_numpy()
    delong = found["acl"]["auroc"].pop("delong")
    assert delong == {**found["acl"]["auroc"], "p": delong_p(y, a, b, np.arange(200) // 2)}
    test = found["acl"]["mcnemar"]
    assert {k: test[k] for k in test if k != "thresholds"} == mcnemar(y, a >= 0.5, b >= 0.5)


def test_the_macro_is_the_mean_over_the_findings_that_have_both_classes():
    first, second = pair()
    found = compare(PredictionTable(first), PredictionTable(second))
    without = {la: [c for c in first if c[2:] in {"acl", "tear", "never"} - {la}] for la in ("acl", "tear", "never")}
    alone = [
        compare(PredictionTable(first.drop(columns=out)), PredictionTable(second.drop(columns=out)))["macro"]
        for out in without.values()
    ][:2]
    macro = found["macro"]["auroc"]
    assert macro["value"] == pytest.approx(np.mean([m["auroc"]["value"] for m in alone]))
    assert macro["n"] == 200
    assert macro["low"] < macro["value"] < macro["high"]
    single = compare(PredictionTable(first.drop(columns=without["acl"])), PredictionTable(second.drop(columns=without["acl"])))
    assert all(single["macro"][m] == {k: v for k, v in single["labels"]["acl"][m].items() if k != "delong"} for m in METRICS)
    nothing = compare(
        *map(PredictionTable, (t.drop(columns=[c for c in t if c[2:] in ("acl", "tear")]) for t in (first, second))), 50
    )["macro"]["auroc"]
    assert nothing["value"] is None
    assert nothing["reason"] == "undefined for every label"


def test_the_pair_varies_together_and_at_thresholds_of_its_own():
    first, second = pair()
    alone = [evaluate_split(PredictionTable(t), False, 400)["labels"]["acl"]["kappa"] for t in (first, second)]
    together = compare(PredictionTable(first), PredictionTable(second))["labels"]["acl"]["kappa"]
    spread = [m["high"] - m["low"] for m in (*alone, together)]
    assert spread[2] < 0.95 * np.hypot(*spread[:2]), "what both find hard cancels"
    same = compare(PredictionTable(first), PredictionTable(first), 50, thresholds={"acl": (0.4, 0.4)})["labels"]["acl"]
    assert (same["kappa"]["value"], same["kappa"]["low"]) == (0, None)
    assert same["kappa"]["reason"] == "no interval: both give every study the same"
    other = compare(PredictionTable(first), PredictionTable(first), 50, thresholds={"acl": (0.3, 0.7)})["labels"]["acl"]
    assert other["sensitivity"]["value"] > 0 > other["specificity"]["value"]
    assert other["mcnemar"]["thresholds"] == [0.3, 0.7]


def test_the_interval_of_a_kappa_difference_covers_it_as_often_as_it_says():
    """Two models equally good: the interval holds 0 about 95 times in 100, and is as wide as differences are spread."""
    held, values, widths = 0, [], []
    for seed in range(120):
        first, second = (t[["id", "patient", "group", "split", "p_acl", "y_acl"]] for t in pair(seed, 120, (1.2, 1.2)))
        m = compare(PredictionTable(first), PredictionTable(second))["labels"]["acl"]["kappa"]
        held += m["low"] <= 0 <= m["high"]
        values.append(m["value"])
        widths.append(m["high"] - m["low"])
    assert held / 120 >= 0.92  # exact intervals hold it somewhat more often
    assert 0.8 < np.mean(widths) / (2 * 1.96 * np.std(values)) < 1.3


def test_the_table_names_the_test_behind_each_p():
    first, second = pair()
    found = compare(PredictionTable(first), PredictionTable(second), 50)
    table = differences(found).set_index(["label", "metric"])
    assert len(table) == 4 * len(METRICS), "three findings and their macro"
    assert table.loc[("acl", "auroc"), "p"] == found["labels"]["acl"]["auroc"]["delong"]["p"]
    assert table.loc[("acl", "accuracy"), "p"] == found["labels"]["acl"]["mcnemar"]["exact"]
    assert np.isnan(table.loc[("acl", "kappa"), "p"])
