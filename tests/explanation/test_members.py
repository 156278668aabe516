"""What a combination weighs its members by."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from xraylab.evaluation.ensembles.combination import Combination
from xraylab.evaluation.predictions import PredictionTable
from xraylab.explanation.members import weights_of


def table(seed, ids="abcd", group="knee"):
    z = np.random.default_rng(seed).normal(size=(len(ids), 2))
    columns = {
        f"{kind}_{name}": of
        for kind, all_of in (("p", 1 / (1 + np.exp(-z))), ("logit", z))
        for name, of in zip("xy", all_of.T, strict=True)
    }
    frame = pd.DataFrame({"id": list(ids), "patient": "", "group": group, "split": "test", **columns})
    return frame[["id", "patient", "group", "split", "p_x", "p_y", "logit_x", "logit_y"]]


def test_a_mean_weighs_all_alike_and_is_the_weighed_sum_of_probabilities():
    tables, whole = [table(k) for k in range(3)], Combination("mean", ("a", "b", "c"))
    weights = weights_of(whole, tables)
    joined = PredictionTable(whole.join(tables)).probability("x")
    summed = sum(w["x"].to_numpy() * t["p_x"].to_numpy() for w, t in zip(weights, tables, strict=True))
    assert summed == pytest.approx(joined)
    assert {w.to_numpy().min() for w in weights} == {1 / 3}


def test_a_stack_weighs_logits_by_its_coefficients():
    fitted = {"coefficients": {"a": 0.5, "b": -2.0}, "intercept": 0.25, "reason": None}
    whole = Combination("stack", ("a", "b"), labels={"x": fitted, "y": {**fitted, "coefficients": None}})
    tables = [table(k) for k in range(2)]
    weights = weights_of(whole, tables)
    summed = sum(w["x"].to_numpy() * t["logit_x"].to_numpy() for w, t in zip(weights, tables, strict=True))
    assert summed + 0.25 == pytest.approx(PredictionTable(whole.join(tables)).log_odds("x"))
    assert weights[0]["y"].tolist() == [0.5] * 4, "where none could be fitted it is a mean"


def test_one_member_for_each_group_or_finding_has_all_the_weight():
    mixed = [table(k).assign(group=["knee", "knee", "hip", "hip"]) for k in range(2)]
    hip, knee = weights_of(Combination("own", ("a", "b"), groups=("hip", "knee")), mixed)
    assert hip["x"].tolist() == [0, 0, 1, 1]
    assert knee["x"].tolist() == [1, 1, 0, 0]
    best = Combination("best", ("a", "b"), chosen={"x": {"member": "a"}, "y": {"member": "b"}})
    first, second = weights_of(best, [table(0), table(1)])
    assert first["x"].tolist() == second["y"].tolist() == [1] * 4
    assert first["y"].tolist() == second["x"].tolist() == [0] * 4


def test_a_union_weighs_by_how_many_members_have_a_study():
    first, second = weights_of(Combination("union", ("a", "b")), [table(0, "abc"), table(1, "cd")])
    assert first["x"].to_dict() == {"a": 1, "b": 1, "c": 0.5}
    assert second["x"].to_dict() == {"c": 0.5, "d": 1}
