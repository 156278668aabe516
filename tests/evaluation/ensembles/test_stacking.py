"""Stacks, fitted and applied: what is in sample, what cannot be fitted, and members that are all but certain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from test_combine import table

from xraylab.evaluation.ensembles.alignment import mean_table, union_table, vote_table
from xraylab.evaluation.ensembles.combination import Combination
from xraylab.evaluation.ensembles.combine import stacked
from xraylab.evaluation.ensembles.members import Member
from xraylab.evaluation.ensembles.stacking import fit_stack, stacked_table
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.probabilities import sigmoid


def test_noise_members_look_good_in_sample_and_are_nothing_out_of_fold():
    """Forty members that know nothing: what coefficients fitted and judged on the same studies would claim."""
    tables = [table("valid", k, 0.0, n=120) for k in range(40)]
    names = [str(k) for k in range(40)]
    record, out = fit_stack(tables, names, Scoring())
    inside = stacked_table(tables, names, record)
    y = out["y_acl"]
    assert roc_auc_score(y, inside["p_acl"]) > 0.75
    assert roc_auc_score(y, out["p_acl"]) < 0.6


def test_a_label_that_cannot_be_fitted_stays_the_mean_and_it_is_said():
    a, b = (table("valid", k, 0.3, n=40, labels=("acl", "tear")) for k in range(2))
    for t in (a, b):
        t["y_tear"] = np.where(np.arange(40) == 3, 1.0, 0.0)
    record, out = fit_stack([a, b], ["a", "b"], Scoring())
    assert record["acl"]["coefficients"] is not None
    assert record["tear"]["coefficients"] is None
    assert record["tear"]["reason"] == "no positive study outside a fold: the mean of the members"
    np.testing.assert_allclose(out["p_tear"], (a["p_tear"] + b["p_tear"]) / 2)
    np.testing.assert_allclose(stacked_table([a, b], ["a", "b"], record)["p_tear"], out["p_tear"])


def test_uncertain_and_blank_labels_are_not_fitted_but_predicted():
    a, b = (table("valid", k, 0.3) for k in range(2))
    for t in (a, b):
        t.loc[:9, "y_acl"], t.loc[10:19, "y_acl"] = np.nan, -1.0
    record, out = fit_stack([a, b], ["a", "b"], Scoring())
    assert record["acl"]["n"] == 180
    assert out["p_acl"].between(0, 1).all()
    negative, _ = fit_stack([a, b], ["a", "b"], Scoring("negative", "positive"))
    assert negative["acl"]["n"] == 200


@pytest.mark.parametrize("side", [1, -1], ids=["near 0", "near 1"])
@pytest.mark.parametrize("known", ["neither", "one", "both"])
def test_members_that_are_all_but_certain_are_stacked_by_their_logits(side, known):
    """Members of AUROC .98 and .93 whose probabilities are all beyond 1e-6, as tables with logits and as those without."""
    tables, names = [], ["a", "b"]
    for seed in (1, 2):
        rng, parts = np.random.default_rng(seed), {}
        for split in ("valid", "test"):
            y = (np.arange(160) % 4 == 0).astype(float)
            z = side * -22 + 4 * y + rng.normal(0, 2, 160)
            frame = pd.DataFrame({"id": np.arange(160).astype(str), "patient": "", "group": "all", "x": y})
            logits = z[:, None] if known == "both" or (known == "one" and seed == 1) else None
            parts[split] = PredictionTable.of_studies(frame, ["x"], split, np.arange(160), sigmoid(z[:, None]), logits).frame
        tables.append(parts)
    record, out_of_fold = fit_stack([t["valid"] for t in tables], names, Scoring())
    stacked = stacked_table([t["test"] for t in tables], names, record)
    alone = [roc_auc_score(t["test"]["y_x"], PredictionTable(t["test"]).scores("x")) for t in tables]
    for joined in (stacked, out_of_fold):
        np.testing.assert_allclose(joined["p_x"], sigmoid(joined["logit_x"].to_numpy()))
        assert roc_auc_score(joined["y_x"], joined["logit_x"]) > 0.95
    assert roc_auc_score(stacked["y_x"], stacked["p_x"]) >= max(alone) - 0.01
    mean = mean_table([t["test"] for t in tables], names)
    assert ("logit_x" in mean) == (known == "both")
    np.testing.assert_array_equal(mean["p_x"], (tables[0]["test"]["p_x"] + tables[1]["test"]["p_x"]) / 2)
    if known == "both":
        np.testing.assert_allclose(sigmoid(mean["logit_x"].to_numpy()), mean["p_x"], rtol=1e-12)
        union = union_table([t["test"] for t in tables], names)
        np.testing.assert_allclose(union["logit_x"], mean["logit_x"], rtol=1e-12)
    assert "logit_x" not in vote_table([t["test"] for t in tables], names)


def test_probabilities_of_exactly_0_and_1_are_counted_where_a_stack_has_no_logits_of_them():
    y = (np.arange(80) % 2).astype(float)
    rng = np.random.default_rng(0)
    z = 40 * (y - 0.5) + rng.normal(0, 20, 80)
    frame = pd.DataFrame({"id": np.arange(80).astype(str), "patient": "", "group": "all", "x": y})
    p = 1 / (1 + np.exp(-z.astype(np.float32)))
    table = PredictionTable.of_studies(frame, ["x"], "valid", np.arange(80), p[:, None]).frame
    stack = stacked([Member(name, Path(name), {"valid.csv": table}, None, None) for name in "ab"], Scoring(), 0)
    count = int((p == 1).sum() + (p == 0).sum())
    assert count > 5
    assert f"x: {count} probabilities of a are exactly 0 or 1, and it has no logits: they count as its farthest" in stack.said()
    assert roc_auc_score(y, stack.out_of_fold["logit_x"]) > 0.8


def test_a_stack_of_before_keeps_the_inputs_that_its_coefficients_are_of():
    frame = pd.DataFrame({"id": ["a", "b"], "patient": "", "group": "all", "x": [0.0, 1.0]})
    table = PredictionTable.of_studies(
        frame, ["x"], "test", np.arange(2), sigmoid(np.array([[-40.0], [3.0]])), np.array([[-40.0], [3.0]])
    ).frame
    fitted = {"x": {"intercept": 0.5, "coefficients": {"a": 1.0, "b": 0.0}, "n": 2, "positives": 1, "reason": None}}
    record = {"method": "stack", "names": ["a", "b"], "fit_on": "valid", "folds": 5, "labels": fitted}
    old = Combination.of_record({**record, "inputs": "logits of probabilities, clipped to [1e-06, 1 - 1e-06]"})
    assert old.join([table, table])["logit_x"].tolist() == pytest.approx([0.5 - np.log(1e6 - 1), 3.5], rel=1e-6)
    assert Combination.of_record(old.record()) == old
    assert Combination.of_record(record).join([table, table])["logit_x"].tolist() == pytest.approx([-39.5, 3.5])
