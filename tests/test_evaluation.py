"""Prediction tables and their evaluation."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from xraylab.errors import UserError
from xraylab.evaluation import evaluate_split, labels_of, prediction_table, quick_metrics, read_table, write_table
from xraylab.metrics import COUNTS, METRICS


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    n = 60
    frame = pd.DataFrame({"id": [f"{i:04d}" for i in range(n)], "patient": [f"p{i // 2}" for i in range(n)]})
    frame["group"] = np.where(np.arange(n) < 40, "hand", "wrist")
    frame["acl"] = rng.integers(0, 2, n).astype(float)
    frame["other"] = np.where(rng.random(n) < 0.2, -1.0, rng.integers(0, 2, n))
    frame.loc[:4, "other"] = np.nan
    frame["never"] = 0.0
    return prediction_table(frame, ["acl", "other", "never"], "test", np.arange(n), rng.random((n, 3)))


def test_a_table_survives_the_disk_bit_for_bit(table, tmp_path):
    write_table(table, tmp_path / "test.csv")
    text = (tmp_path / "test.csv").read_text().splitlines()
    assert text[0] == "id,patient,group,split,p_acl,p_other,p_never,y_acl,y_other,y_never"
    assert text[1].startswith("0000,p0,hand,test,0.")
    assert text[1].split(",")[8] == "", "not known is empty"
    back = read_table(tmp_path / "test.csv")
    pd.testing.assert_frame_equal(back, table)
    assert labels_of(back) == ["acl", "other", "never"]


def test_every_metric_has_value_interval_n_and_reason(table):
    out = evaluate_split(table, selected_on=False, resamples=200, seed=1)
    json.dumps(out, allow_nan=False)
    assert (out["n"], out["patients"], out["unit"], out["selected_on"]) == (60, 30, "study", False)
    assert out["bootstrap"]["over"] == "patients"
    for metrics in out["labels"].values():
        assert set(metrics) == {*METRICS, *COUNTS}
        for m in metrics.values():
            assert set(m) == {"value", "low", "high", "n", "reason"}
    acl = out["labels"]["acl"]["auroc"]
    assert acl["value"] == pytest.approx(roc_auc_score(table["y_acl"], table["p_acl"]))
    assert acl["low"] < acl["value"] < acl["high"]


def test_uncertain_and_blank_labels_are_not_scored(table):
    out = evaluate_split(table, False, 20)["labels"]["other"]
    certain = table["y_other"].isin([0, 1])
    assert out["auroc"]["n"] == certain.sum() < 60
    assert out["auroc"]["value"] == pytest.approx(roc_auc_score(table["y_other"][certain], table["p_other"][certain]))
    assert out["uncertain"]["value"] == (table["y_other"] == -1).sum()


def test_an_undefined_metric_is_null_with_its_reason_and_left_out_of_the_mean(table):
    out = evaluate_split(table, False, 20)
    assert out["labels"]["never"]["auroc"] == {"value": None, "low": None, "high": None, "n": 60, "reason": "no positive study"}
    macro = out["macro"]["auroc"]
    assert macro["labels"] == ["acl", "other"]
    assert macro["value"] == pytest.approx(np.mean([out["labels"][x]["auroc"]["value"] for x in ("acl", "other")]))


def test_groups_are_evaluated_alone(table):
    out = evaluate_split(table, False, 20)["groups"]
    assert (out["hand"]["n"], out["wrist"]["n"]) == (40, 20)
    part = table[table["group"] == "wrist"]
    assert out["wrist"]["labels"]["acl"]["auroc"]["value"] == pytest.approx(roc_auc_score(part["y_acl"], part["p_acl"]))


def test_studies_are_resampled_where_patients_are_not_known(table):
    table["patient"] = ""
    out = evaluate_split(table, False, 20)
    assert out["patients"] is None
    assert out["bootstrap"]["over"] == "studies"


def test_exclusive_labels_add_the_accuracy_of_the_likeliest():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8]])
    truth = np.eye(3)[[0, 1, 2, 2]]
    frame = pd.DataFrame({"id": list("abcd"), "patient": "", "group": "g", **{f"c{i}": truth[:, i] for i in range(3)}})
    out = evaluate_split(prediction_table(frame, ["c0", "c1", "c2"], "test", np.arange(4), p), False, 50, exclusive=True)
    assert out["exclusive"]["accuracy"]["value"] == 0.75
    assert out["exclusive"]["kappa"]["value"] == pytest.approx(0.6363636)


def test_epoch_metrics_are_those_of_the_evaluation(table):
    names = ["acl", "other", "never"]
    quick = quick_metrics(names, table[[f"p_{n}" for n in names]].to_numpy(), table[[f"y_{n}" for n in names]].to_numpy())
    out = evaluate_split(table, False, 0)
    assert quick["acl/auroc"] == out["labels"]["acl"]["auroc"]["value"]
    assert quick["macro/kappa"] == out["macro"]["kappa"]["value"]
    assert np.isnan(quick["never/auroc"])


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("id,a\n1,2\n")
    with pytest.raises(UserError, match="no column patient"):
        read_table(tmp_path / "x.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "none.csv")
