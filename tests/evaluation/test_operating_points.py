"""Thresholds chosen on validation, and what they are worth elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from xraylab.evaluation.calibration import scaled
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.intervals import Clusters
from xraylab.evaluation.operating_points import (
    CELLS,
    FIXED,
    RATES,
    Rules,
    at_threshold,
    candidates,
    choose,
    judge,
    threshold_text,
    trivial,
)
from xraylab.evaluation.predictions import PredictionTable
from xraylab.evaluation.probabilities import logit
from xraylab.reporting.decisions import operating_table
from xraylab.reporting.model_card import write_card
from xraylab.reporting.summary import closing_table


def made(seed, n=120, digits=2):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return y, np.round(np.clip(rng.normal(0.35 + 0.2 * y, 0.2), 0, 1), digits)


def test_candidates_are_all_ways_to_cut():
    y, p = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.8, 1.0])
    threshold, tp, fp = candidates(y, p)
    assert threshold.tolist() == [np.nextafter(1.0, 2), 0.9, pytest.approx(0.6), 0.25, 0.05]
    assert [(int(((p >= t) & (y == 1)).sum()), int(((p >= t) & (y == 0)).sum())) for t in threshold] == list(
        zip(tp.tolist(), fp.tolist(), strict=True)
    )
    near = np.array([0.3, np.nextafter(0.3, 1)])
    threshold, tp, _ = candidates(np.array([0, 1]), near)
    assert (near >= threshold[1]).tolist() == [False, True], "neighbouring floats are told apart"


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_each_rule_finds_the_best_threshold_there_is(digits):
    rules = Rules(sensitivity=0.85, specificity=0.8)
    for seed in range(8):
        y, p = made(seed, digits=digits)
        found = {name: t["value"] for name, t in choose(y, p, rules).items()}
        every = np.unique(np.r_[p, p.max() + 0.01])
        se = {t: (p[y == 1] >= t).mean() for t in every}
        sp = {t: (p[y == 0] < t).mean() for t in every}
        kappa = max(sk.cohen_kappa_score(y, p >= t) for t in every)

        def rates(name, y=y, p=p, found=found):
            called = p >= found[name]
            return sk.recall_score(y, called), sk.recall_score(y, called, pos_label=0)

        assert sum(rates("youden")) == pytest.approx(max(se[t] + sp[t] for t in every))
        assert sk.cohen_kappa_score(y, p >= found["kappa"]) == pytest.approx(kappa)
        assert rates("sensitivity_0.85")[0] >= 0.85
        assert rates("sensitivity_0.85")[1] == pytest.approx(max(sp[t] for t in every if se[t] >= 0.85))
        assert rates("specificity_0.8")[1] >= 0.8
        assert rates("specificity_0.8")[0] == pytest.approx(max(se[t] for t in every if sp[t] >= 0.8))


def test_an_unreachable_specificity_calls_nobody_positive():
    y, p = np.array([1, 1, 0]), np.array([0.2, 0.3, 0.9])
    t = choose(y, p, Rules(specificity=1.0))["specificity_1"]["value"]
    assert 0.9 < t <= 1
    out = at_threshold(y, p, {"value": t, "reason": None})
    assert out["confusion"] == {"tp": 0, "fp": 0, "fn": 2, "tn": 1}
    assert (out["ppv"]["value"], out["ppv"]["reason"]) == (None, "no study is called positive")
    assert out["npv"]["value"] == pytest.approx(1 / 3)


def test_one_class_has_no_threshold_and_says_why():
    found = choose(np.zeros(4, int), np.linspace(0, 1, 4), Rules())
    assert found["youden"] == {"value": None, "reason": "no positive study in validation"}
    out = at_threshold(np.array([0, 1]), np.array([0.1, 0.9]), found["youden"])
    assert out["kappa"]["reason"] == "no threshold: no positive study in validation"
    assert out["confusion"] is None


def test_rates_are_those_of_sklearn_and_vary_as_its_do():
    y, p = made(3, 400)
    rows, t = np.arange(len(y)), {"value": 0.43, "reason": None}
    clusters = np.arange(len(y)) // 3
    out = at_threshold(y, p, t, rows, Clusters(clusters))
    called = p >= 0.43
    reference = {
        "sensitivity": lambda w: sk.recall_score(y, called, sample_weight=w),
        "specificity": lambda w: sk.recall_score(y, called, pos_label=0, sample_weight=w),
        "ppv": lambda w: sk.precision_score(y, called, sample_weight=w),
        "npv": lambda w: sk.precision_score(y, called, pos_label=0, sample_weight=w),
        "accuracy": lambda w: sk.accuracy_score(y, called, sample_weight=w),
        "f1": lambda w: sk.f1_score(y, called, sample_weight=w),
        "kappa": lambda w: sk.cohen_kappa_score(y, called, sample_weight=w),
    }
    size = clusters.max() + 1
    weights = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), 80)[:, clusters].astype(float)  # a bootstrap
    assert set(reference) == set(RATES)
    for metric, of in reference.items():
        assert out[metric]["value"] == pytest.approx(of(None), abs=1e-12)
        low, high = np.quantile([of(w) for w in weights], [0.025, 0.975])
        assert (out[metric]["low"], out[metric]["high"]) == (pytest.approx(low, abs=0.035), pytest.approx(high, abs=0.035))
    tn, fp, fn, tp = sk.confusion_matrix(y, called).ravel().tolist()
    assert out["confusion"] == dict(zip(CELLS, (tp, fp, fn, tn), strict=True))


@pytest.fixture
def tables():
    out = {}
    for seed, (split, n) in enumerate({"valid": 300, "test": 400}.items()):
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame({"id": [f"{split}{i}" for i in range(n)], "patient": [f"p{i // 2}" for i in range(n)], "group": "g"})
        frame["acl"] = rng.integers(0, 2, n).astype(float)
        frame["other"] = np.where(rng.random(n) < 0.2, -1.0, rng.integers(0, 2, n))
        frame["never"] = 0.0 if split == "valid" else rng.integers(0, 2, n)
        z = rng.normal((np.abs(frame[["acl", "other", "never"]].to_numpy()) * 2 - 1) * 0.75, 1.0) * 3  # thrice too sure
        out[split] = PredictionTable.of_studies(frame, ["acl", "other", "never"], split, np.arange(n), 1 / (1 + np.exp(-z))).frame
    return out


def test_validation_chooses_and_test_is_judged(tables):
    splits = {split: evaluate_split(PredictionTable(t), split == "valid", 100) for split, t in tables.items()}
    before = json.loads(json.dumps(splits))
    chosen = judge(splits, {k: PredictionTable(t) for k, t in tables.items()}, Rules())
    json.dumps(splits, allow_nan=False)
    assert chosen["chosen_on"] == "valid"
    assert list(chosen["rules"]) == ["youden", "sensitivity_0.9", "specificity_0.9", "kappa"]
    points = splits["test"]["operating_points"]
    assert list(points) == [FIXED, *chosen["rules"]]
    for name, point in points.items():
        label = point["labels"]["acl"]
        assert point["chosen_on"] == (None if name == FIXED else "valid")
        expected = 0.5 if name == FIXED else chosen["labels"]["acl"]["thresholds"][name]["value"]
        assert label["threshold"] == expected
        called = tables["test"]["p_acl"] >= expected
        assert label["kappa"]["value"] == pytest.approx(sk.cohen_kappa_score(tables["test"]["y_acl"] == 1, called))
        assert label["kappa"]["low"] < label["kappa"]["value"] < label["kappa"]["high"]
        assert label["kappa"]["n"] == 400
    fixed, acl = points[FIXED]["labels"]["acl"], before["test"]["labels"]["acl"]
    for metric in ("accuracy", "f1", "kappa", "sensitivity", "specificity"):
        for key in ("value", "low", "high"):
            assert fixed[metric][key] == pytest.approx(acl[metric][key], abs=1e-12), "0.5 is what was there before"
    assert splits["valid"]["operating_points"]["sensitivity_0.9"]["labels"]["acl"]["sensitivity"]["value"] >= 0.9
    other = points["youden"]["labels"]["other"]
    assert other["kappa"]["n"] == (tables["test"]["y_other"] >= 0).sum() < 400, "uncertain labels are not scored"
    assert points["youden"]["labels"]["never"]["threshold"] is None
    assert points["youden"]["labels"]["never"]["reason"] == "no positive study in validation"
    for split, evaluated in splits.items():
        assert {k: evaluated[k] for k in before[split]} == before[split], "what was there stays"


def test_the_temperature_of_validation_calibrates_test(tables):
    splits = {split: evaluate_split(PredictionTable(t), split == "valid", 100) for split, t in tables.items()}
    chosen = judge(splits, {k: PredictionTable(t) for k, t in tables.items()})
    block = splits["test"]["calibration"]
    acl = block["labels"]["acl"]
    assert (block["bins"], block["chosen_on"]) == (15, "valid")
    # logits 3 z with z ~ N(+-0.75, 1): the likelihood ratio is exp(1.5 z), so T is 2
    assert acl["temperature"]["value"] == pytest.approx(2.0, rel=0.2)
    assert acl["temperature"] == chosen["labels"]["acl"]["temperature"]
    assert acl["after"]["ece"]["value"] < acl["ece"]["value"]
    assert acl["after"]["brier"]["value"] < acl["brier"]["value"]
    p = scaled(logit(tables["test"]["p_acl"].to_numpy()), acl["temperature"]["value"])
    assert acl["after"]["brier"]["value"] == pytest.approx(sk.brier_score_loss(tables["test"]["y_acl"], p))
    assert acl["brier"]["low"] < acl["brier"]["value"] < acl["brier"]["high"]
    never = block["labels"]["never"]
    assert (never["temperature"]["value"], never["after"]) == (None, None)
    assert never["temperature"]["reason"] == "validation has one class only"


def test_without_validation_nothing_is_chosen(tables):
    splits = {"test": evaluate_split(PredictionTable(tables["test"]), False, 0)}
    chosen = judge(splits, {"test": PredictionTable(tables["test"])})
    assert chosen["chosen_on"] is None
    youden = splits["test"]["operating_points"]["youden"]["labels"]["acl"]
    assert youden["reason"] == "there is no validation split"
    fixed = splits["test"]["operating_points"][FIXED]["labels"]["acl"]["kappa"]
    assert fixed["value"] is not None
    assert fixed["low"] is None


def test_a_target_that_only_calling_everybody_or_nobody_reaches_is_named(tmp_path):
    y = np.r_[np.ones(10), np.zeros(30)].astype(int)
    p = np.r_[np.linspace(0.6, 0.9, 8), 0.02, 0.01, np.linspace(0.05, 0.5, 30)]  # the least probable two are positive
    found = choose(y, p, Rules(sensitivity=1.0, specificity=0.9))
    assert (p >= found["sensitivity_1"]["value"]).all()
    assert found["sensitivity_1"]["reason"] == "only calling every study positive does that in validation"
    assert found["youden"]["reason"] is found["specificity_0.9"]["reason"] is None
    other = choose(1 - y, p, Rules(sensitivity=0.9, specificity=1.0))  # the most probable are negative
    assert not (p >= other["specificity_1"]["value"]).any()
    assert other["specificity_1"]["reason"] == "only calling no study positive does that in validation"
    assert choose(y, p, Rules(sensitivity=0.8))["sensitivity_0.8"]["reason"] is None
    table = pd.DataFrame({"id": [f"s{i}" for i in range(40)], "patient": "", "group": "g", "split": "valid", "p_x": p, "y_x": y})
    result = evaluate_split(PredictionTable(table), True, 0)
    judge({"valid": result}, {"valid": PredictionTable(table)}, Rules(sensitivity=1.0))
    line = "sensitivity_1 of x (largest specificity with a sensitivity of at least 1): only calling every study positive"
    assert [line in said for said in trivial(result["operating_points"])] == [True]
    assert line in operating_table("valid", result["operating_points"])
    assert "at or above (&gt;=) the threshold" in operating_table("valid", result["operating_points"])
    evaluation = {"data": "x", "selection": "holdout", "table": "t.csv", "splits": {"valid": result}}
    assert line in closing_table(evaluation, tmp_path, "1 s")
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    assert f"Trivial: {line}" in write_card(tmp_path).read_text()


def test_a_rule_that_probabilities_cannot_follow_says_what_logits_would_allow():
    y = np.array([0, 0, 1, 0, 1, 1])
    z = np.array([40.0, 50, 60, 70, 80, 90])
    found = choose(y, 1 / (1 + np.exp(-z)), Rules(), z)["youden"]
    assert found["value"] > 1
    assert "it calls 0 positives and 0 negatives of validation positive" in found["note"]
    assert "a cut by logits would call 3 and 1" in found["note"] or "a cut by logits would call 2 and 0" in found["note"]
    assert found["reason"] is None
    told = choose(y, 1 / (1 + np.exp(-z / 10)), Rules(), z / 10)
    assert not any("note" in of for of in told.values())
    assert threshold_text(3e-12) == "3e-12"
    assert threshold_text(1 - 1e-9) == "1 - 1e-09"
    assert (threshold_text(0.25), threshold_text(None)) == ("0.2500", "-")
