"""Prediction tables and their evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, run_job, train_run
from sklearn.metrics import accuracy_score, average_precision_score, cohen_kappa_score, log_loss, roc_auc_score

from xraylab.data.splits import in_parts
from xraylab.errors import UserError
from xraylab.evaluation.evaluator import evaluate_split, quick_metrics
from xraylab.evaluation.metrics import COUNTS, METRICS, number
from xraylab.evaluation.paired_tests import compare
from xraylab.evaluation.predictions import PredictionTable, Scoring, scored_labels
from xraylab.inference.cases import choose_cases
from xraylab.reporting.figures.curves import curve, scored
from xraylab.reporting.summary import closing_table, exclusive_note, macro_notes, tie_notes


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
    return PredictionTable.of_studies(frame, ["acl", "other", "never"], "test", np.arange(n), rng.random((n, 3))).frame


def test_a_table_survives_the_disk_bit_for_bit(table, tmp_path):
    PredictionTable(table).write(tmp_path / "test.csv")
    text = (tmp_path / "test.csv").read_text().splitlines()
    assert text[0] == "id,patient,group,split,p_acl,p_other,p_never,y_acl,y_other,y_never"
    assert text[1].startswith("0000,p0,hand,test,0.")
    assert text[1].split(",")[8] == "", "not known is empty"
    back = PredictionTable.read(tmp_path / "test.csv").frame
    pd.testing.assert_frame_equal(back, table)
    assert PredictionTable(back).labels == ["acl", "other", "never"]


def test_every_metric_has_value_interval_n_and_reason(table):
    out = evaluate_split(PredictionTable(table), selected_on=False, resamples=200, seed=1)
    json.dumps(out, allow_nan=False)
    assert (out["n"], out["patients"], out["unit"], out["selected_on"]) == (60, 30, "study", False)
    assert out["bootstrap"]["over"] == out["intervals"]["over"] == "patients"
    for metrics in out["labels"].values():
        assert set(metrics) == {*METRICS, *COUNTS}
        for name, m in metrics.items():
            assert set(m) - ({"delong"} if name == "auroc" else set()) == {"value", "low", "high", "n", "reason"}
    acl = out["labels"]["acl"]["auroc"]
    assert acl["delong"] == {k: acl[k] for k in ("low", "high", "reason")}
    assert out["labels"]["never"]["auroc"]["delong"] == {"low": None, "high": None, "reason": "no positive study"}
    assert acl["value"] == pytest.approx(roc_auc_score(table["y_acl"], table["p_acl"]))
    assert acl["low"] < acl["value"] < acl["high"]


def test_uncertain_and_blank_labels_are_not_scored(table):
    out = evaluate_split(PredictionTable(table), False, 20)["labels"]["other"]
    certain = table["y_other"].isin([0, 1])
    assert out["auroc"]["n"] == certain.sum() < 60
    assert out["auroc"]["value"] == pytest.approx(roc_auc_score(table["y_other"][certain], table["p_other"][certain]))
    assert out["uncertain"]["value"] == (table["y_other"] == -1).sum()
    assert out["blank"]["value"] == 5


def test_what_uncertain_and_blank_labels_count_as():
    raw = np.array([1, 0, -1, np.nan], np.float32)
    np.testing.assert_array_equal(scored_labels(raw), [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(scored_labels(raw, Scoring("negative")), [1, 0, np.nan, 0])
    np.testing.assert_array_equal(scored_labels(raw, Scoring(uncertain="positive")), [1, 0, 1, np.nan])
    np.testing.assert_array_equal(scored_labels(torch.from_numpy(raw), Scoring("negative", "negative")).numpy(), [1, 0, 0, 0])
    np.testing.assert_array_equal(raw, [1, 0, -1, np.nan], "the labels themselves stay")


@pytest.mark.parametrize("uncertain", ["ignore", "negative", "positive"])
@pytest.mark.parametrize("blank", ["ignore", "negative"])
def test_an_evaluation_scores_what_it_is_told_to(table, blank, uncertain):
    values = {"ignore": np.nan, "negative": 0.0, "positive": 1.0}
    truth = table["y_other"].replace(-1, values[uncertain]).where(table["y_other"].notna(), values[blank])
    kept = truth.notna()
    out = evaluate_split(PredictionTable(table), False, 20, scoring=Scoring(blank, uncertain))["labels"]["other"]
    assert out["auroc"]["n"] == kept.sum()
    assert out["auroc"]["value"] == pytest.approx(roc_auc_score(truth[kept], table["p_other"][kept]))
    raw = evaluate_split(PredictionTable(table), False, 0)["labels"]["other"]
    assert all(out[c]["value"] == raw[c]["value"] for c in COUNTS), "labels are counted as they are"


def test_an_undefined_metric_is_null_with_its_reason_and_left_out_of_the_mean(table):
    out = evaluate_split(PredictionTable(table), False, 20)
    never = out["labels"]["never"]["auroc"]
    never.pop("delong")
    assert never == {"value": None, "low": None, "high": None, "n": 60, "reason": "no positive study"}
    macro = out["macro"]["auroc"]
    assert macro["labels"] == ["acl", "other"]
    assert macro["value"] == pytest.approx(np.mean([out["labels"][x]["auroc"]["value"] for x in ("acl", "other")]))


def test_groups_are_evaluated_alone(table):
    out = evaluate_split(PredictionTable(table), False, 20)["groups"]
    assert (out["hand"]["n"], out["wrist"]["n"]) == (40, 20)
    part = table[table["group"] == "wrist"]
    assert out["wrist"]["labels"]["acl"]["auroc"]["value"] == pytest.approx(roc_auc_score(part["y_acl"], part["p_acl"]))


def test_studies_are_resampled_where_patients_are_not_known(table):
    table["patient"] = ""
    out = evaluate_split(PredictionTable(table), False, 20)
    assert out["patients"] is None
    assert out["bootstrap"]["over"] == "studies"


def test_a_study_of_an_unknown_patient_is_a_patient_of_its_own(table):
    table.loc[[0, 2, 7], "patient"] = ""
    table.loc[1, "patient"] = table.loc[0, "id"]  # no reason to take them for one
    out = evaluate_split(PredictionTable(table), False, 20)
    assert out["bootstrap"]["over"] == "patients (unknown for 3: each such study counts as one)"
    assert out["patients"] == table["patient"].nunique() - 1
    clusters = PredictionTable(table).clusters
    assert len(set(clusters)) == out["patients"] + 3
    assert clusters[4] == clusters[5]
    assert len(set(clusters[[0, 1, 2, 7]])) == 4
    fold = in_parts(table, ["y_acl"], [1 / len(set(clusters))] * len(set(clusters)), 0)
    pairs = set(zip(fold.tolist(), clusters.tolist(), strict=True))
    assert len(pairs) == len(set(fold)) == len(set(clusters)), "folds have the same patients as intervals"


def test_exclusive_labels_add_the_accuracy_of_the_likeliest():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8]])
    truth = np.eye(3)[[0, 1, 2, 2]]
    frame = pd.DataFrame({"id": list("abcd"), "patient": "", "group": "g", **{f"c{i}": truth[:, i] for i in range(3)}})
    out = evaluate_split(
        PredictionTable.of_studies(frame, ["c0", "c1", "c2"], "test", np.arange(4), p),
        False,
        50,
        exclusive=True,
    )
    assert out["exclusive"]["accuracy"]["value"] == 0.75
    assert out["exclusive"]["kappa"]["value"] == pytest.approx(0.6363636)


def test_accuracy_and_kappa_of_exclusive_labels_have_intervals():
    rng = np.random.default_rng(0)
    n, names = 90, ["c0", "c1", "c2"]
    classes = rng.integers(0, 3, n)
    p = rng.dirichlet([1, 1, 1], n) + 0.3 * np.eye(3)[classes]
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "patient": [f"p{i // 2}" for i in range(n)], "group": "g"})
    frame[names] = np.eye(3)[classes]
    out = evaluate_split(
        PredictionTable.of_studies(frame, names, "test", np.arange(n), p / 2),
        False,
        200,
        3,
        exclusive=True,
    )
    called = p.argmax(1)
    for name, score in (("accuracy", accuracy_score), ("kappa", cohen_kappa_score)):
        found = out["exclusive"][name]
        assert found["value"] == pytest.approx(score(classes, called))
        drawn = rng.integers(0, n // 2, (600, n // 2))  # patients
        samples = [score(classes[k], called[k]) for k in (np.concatenate([2 * d, 2 * d + 1]) for d in drawn)]
        assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), abs=0.05)
    shown = f"kappa {number(out['exclusive']['kappa'])}"
    assert shown in exclusive_note(out)
    evaluation = {"data": "x", "table": "t.csv", "splits": {"test": out}}
    assert shown in closing_table(evaluation, Path("run"), "1 s")
    frame[names] = [1, 0, 0]
    single = evaluate_split(PredictionTable.of_studies(frame, names, "test", np.arange(n), p / 2), False, 20, exclusive=True)[
        "exclusive"
    ]
    assert (single["kappa"]["value"], single["kappa"]["reason"]) == (None, "all studies are of one class")
    frame[names] = 0
    nothing = evaluate_split(PredictionTable.of_studies(frame, names, "test", np.arange(n), p / 2), False, 20, exclusive=True)[
        "exclusive"
    ]
    assert {m["reason"] for m in nothing.values()} == {"no study has exactly one true label"}


def test_epoch_metrics_are_those_of_the_evaluation(table):
    names = ["acl", "other", "never"]
    quick = quick_metrics(names, table[[f"p_{n}" for n in names]].to_numpy(), table[[f"y_{n}" for n in names]].to_numpy())
    out = evaluate_split(PredictionTable(table), False, 0)
    assert quick["acl/auroc"] == out["labels"]["acl"]["auroc"]["value"]
    assert quick["macro/kappa"] == out["macro"]["kappa"]["value"]
    assert np.isnan(quick["never/auroc"])


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("id,a\n1,2\n")
    with pytest.raises(UserError, match="no column patient"):
        PredictionTable.read(tmp_path / "x.csv")
    with pytest.raises(UserError, match="cannot be read"):
        PredictionTable.read(tmp_path / "none.csv")


@pytest.fixture(scope="module")
def unsure(tmp_path_factory):
    """A run on a CSV whose second finding is often uncertain or blank, scored as positive and as negative."""
    folder = tmp_path_factory.mktemp("unsure")
    rng = np.random.default_rng(0)
    lines = ["id,patient,split,images,sick,shadow"]
    for i in range(72):
        raw = ("1", "0", "-1", "")[i % 4]
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 120, (16, 16)).astype(np.uint8) + 60 * (i % 2))
        lines.append(f"s{i},p{i},{('train', 'valid', 'test')[i // 4 % 3]},{i}.png,{i % 2},{raw}")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")
    options = [
        *TINY, "dataset=table", f"dataset.root={folder / 'mine.csv'}", "backbone=cnn", "backbone.layers=2", "image.size=16",
        "max_epochs=1", "loss.balance=none", "evaluate.blank=negative", "evaluate.uncertain=positive",
    ]  # fmt: skip
    return train_run(folder / "run", *options, report=True)


def test_a_run_scores_labels_as_its_settings_say(unsure):
    evaluation = json.loads((unsure / "evaluation.json").read_text())
    assert evaluation["scored"] == {"blank": "negative", "uncertain": "positive"}
    table = PredictionTable.read(unsure / "predictions" / "valid.csv").frame
    shadow = evaluation["splits"]["valid"]["labels"]["shadow"]
    assert {c: shadow[c]["value"] for c in COUNTS} == {"positives": 6, "negatives": 6, "uncertain": 6, "blank": 6}
    assert table["y_shadow"].isna().sum() == 6, "the table keeps the labels as they are"
    truth = scored_labels(table[["y_sick", "y_shadow"]].to_numpy(), Scoring("negative", "positive"))
    p = table[["p_sick", "p_shadow"]].to_numpy()
    assert shadow["auroc"]["n"] == 24
    assert shadow["auroc"]["value"] == pytest.approx(roc_auc_score(truth[:, 1], p[:, 1]))
    history = pd.read_csv(unsure / "history.csv").iloc[0]
    assert history["valid/shadow/auroc"] == pytest.approx(shadow["auroc"]["value"])
    assert history["valid/loss"] == pytest.approx(log_loss(truth.ravel(), p.ravel()), rel=1e-5)
    said = "labels that are not mentioned are scored as negative and uncertain labels are scored as positive"
    assert said in closing_table(evaluation, unsure, "1 s")
    assert said[1:] in (unsure / "report.html").read_text()


def test_a_run_can_be_scored_anew(unsure, tmp_path):
    run = shutil.copytree(unsure, tmp_path / "run")
    run_job("evaluate", f"run={run}", "blank=ignore", "num_workers=0")
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["evaluated"] == {"command": "python -m xraylab.evaluate", "options": {"blank": "ignore"}}
    assert "Evaluated anew, with blank=ignore" in (run / "report.html").read_text()
    assert "- evaluated anew: `python -m xraylab.evaluate`" in (run / "MODEL_CARD.md").read_text()
    assert evaluation["scored"] == {"blank": "ignore", "uncertain": "positive"}
    assert evaluation["splits"]["test"]["labels"]["shadow"]["auroc"]["n"] == 18
    with pytest.raises(UserError) as stop:
        run_job("evaluate", f"run={run}", "uncertain=maybe")
    assert str(stop.value) == "uncertain=maybe: it should be 'ignore', 'negative' or 'positive'."


def test_a_finding_without_positives_and_one_that_is_all_blank_are_left_out_of_the_mean_and_named(table, tmp_path):
    table["y_empty"], table["p_empty"] = np.nan, 0.5
    out = evaluate_split(PredictionTable(table), False, 20)
    assert out["labels"]["empty"]["auroc"]["reason"] == "no study has a label that is scored"
    left_out = "without never (no positive study), empty (no study has a label that is scored)"
    assert macro_notes(out) == [
        f"macro of auroc, average precision, f1, kappa, sensitivity over 2 of 4 findings, {left_out}",
        "macro of accuracy, specificity over 3 of 4 findings, without empty (no study has a label that is scored)",
    ]
    evaluation = {"data": "x", "checkpoint": {"file": "best.ckpt", "epoch": 0}, "splits": {"test": out}}
    assert f"sensitivity over 2 of 4 findings, {left_out}" in closing_table(evaluation, tmp_path, "1 s")
    whole = evaluate_split(
        PredictionTable(table[["id", "patient", "group", "split", "p_acl", "p_other", "y_acl", "y_other"]]), False, 0
    )
    assert macro_notes(whole) == ["macro over 2 of 2 findings"]


@pytest.fixture(params=[(0.0, 90.0), (-150.0, 8.0)], ids=["0 and 1", "0"])
def saturated(request):
    """A model whose probabilities are 0 and 1 in 32 bits, as a table with its logits and as one without."""
    shift, scale = request.param
    rng, n = np.random.default_rng(1), 120
    frame = pd.DataFrame(
        {"id": [f"{i:03d}" for i in range(n)], "patient": "", "group": "all", "acl": (np.arange(n) % 3 == 0) * 1.0}
    )
    frame["other"] = rng.integers(0, 2, n).astype(float)
    z = shift + scale * np.stack([frame["acl"] + rng.normal(0, 1, n), rng.normal(0, 1, n)], 1).astype(np.float32)
    p = torch.sigmoid(torch.from_numpy(z)).double().numpy()
    arguments = (frame, ["acl", "other"], "test", np.arange(n), p)
    return PredictionTable.of_studies(*arguments, z.astype(float)).frame, PredictionTable.of_studies(*arguments).frame


def test_saturated_probabilities_are_ranked_by_their_logits_everywhere(saturated):
    table, without = saturated
    y, z = (table[f"{kind}_acl"].to_numpy() for kind in ("y", "logit"))
    out = evaluate_split(PredictionTable(table), False, 50)
    assert "ties" not in out
    acl = out["labels"]["acl"]
    assert acl["auroc"]["value"] == roc_auc_score(y, z) > roc_auc_score(y, table["p_acl"])
    assert acl["average_precision"]["value"] == average_precision_score(y, z)
    assert acl["auroc"]["low"] < acl["auroc"]["value"] < acl["auroc"]["high"]
    plain = evaluate_split(PredictionTable(without), False, 50)["labels"]["acl"]
    assert {m: acl[m] for m in list(METRICS)[2:]} == {m: plain[m] for m in list(METRICS)[2:]}, "calls at 0.5 are the same"
    difference = compare(PredictionTable(table), PredictionTable(table.assign(logit_acl=-z, p_acl=1 - table["p_acl"])), 0)[
        "labels"
    ]["acl"]["auroc"]["value"]
    assert difference == pytest.approx(2 * acl["auroc"]["value"] - 1)
    fpr, tpr = curve("roc", *scored(PredictionTable(table), "acl", Scoring()))
    assert np.trapezoid(tpr, fpr) == pytest.approx(acl["auroc"]["value"], abs=2e-3)
    assert len(np.unique(fpr)) > 10
    worst = choose_cases(PredictionTable(table), 12)
    worst = worst[(worst["label"] == "acl") & (worst["kind"] == "false negative")]
    assert worst["id"].iloc[0] == table.loc[table["logit_acl"].where(y == 1).idxmin(), "id"]
    quick = quick_metrics(["acl"], z[:, None], y[:, None], threshold=0.0)
    assert {m: quick[f"acl/{m}"] for m in METRICS} == {m: acl[m]["value"] for m in METRICS}


def test_ties_at_0_and_1_that_decide_a_number_are_said_where_logits_are_not_known(saturated):
    table, without = saturated
    out = evaluate_split(PredictionTable(without), False, 0)
    p, y = without["p_acl"].to_numpy(), without["y_acl"].to_numpy()
    found = out["ties"]["acl"]
    assert [found[v] for v in "01"] == [[int(((p == x) & (y == k)).sum()) for k in (1, 0)] for x in (0.0, 1.0)]
    # such ties broken for the worst, and for the best
    ranks = [3 * np.unique(p, return_inverse=True)[1] + sign * y * np.isin(p, (0, 1)) for sign in (-1, 1)]
    assert found["auroc"] == pytest.approx([roc_auc_score(y, rank) for rank in ranks])
    assert found["auroc"][0] <= roc_auc_score(y, table["logit_acl"]) <= found["auroc"][1]
    said = " ".join(tie_notes(out))
    assert f"{found['0'][0]} positive and {found['0'][1]} negative studies are exactly 0" in said
    assert "there is no logit_acl" in said
    whole = {"data": "x", "table": "x", "splits": {"test": out}}
    assert "ties: probabilities of acl" in closing_table(whole, Path(), "1 s")
    fine = without.assign(**{c: np.clip(without[c], 1e-9, 1 - 1e-9) for c in ("p_acl", "p_other")})
    assert "ties" not in evaluate_split(PredictionTable(fine), False, 0)


def test_of_exclusive_labels_the_likeliest_is_told_where_several_round_to_1():
    frame = pd.DataFrame({"id": list("abcd"), "patient": "", "group": "all", "c0": [1.0, 0, 0, 1], "c1": [0.0, 1, 1, 0]})
    z = np.array([[60.0, 50], [50, 60], [45, 80], [90, 41]])
    out = evaluate_split(
        PredictionTable.of_studies(frame, ["c0", "c1"], "test", np.arange(4), np.ones((4, 2)), z),
        False,
        0,
        exclusive=True,
    )
    assert out["exclusive"]["accuracy"]["value"] == 1.0
