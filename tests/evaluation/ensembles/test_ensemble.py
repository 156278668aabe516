"""Ensembles of a sweep's runs: means by hand, each study by its own member, members chosen and refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from xraylab.errors import UserError
from xraylab.evaluation.ensembles.alignment import mean_table, own_table, union_table
from xraylab.evaluation.ensembles.ensemble import Ensemble, write_ensemble
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.predictions import PredictionTable
from xraylab.sweeps.comparison import Comparison, write_comparison

PARTS = ("elbow", "hand", "wrist")


def table(seed, n=60):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "patient": [f"p{i // 2}" for i in range(n)]})
    frame["group"], frame["split"] = np.array(PARTS)[np.arange(n) % 3], "test"
    frame["y_abnormal"] = (np.arange(n) % 5 < 2).astype(float)
    p = np.clip(0.3 * frame["y_abnormal"] + rng.random(n) * 0.7, 0, 1)
    return frame.assign(p_abnormal=p)[["id", "patient", "group", "split", "p_abnormal", "y_abnormal"]]


def write_run(folder, name, found, loss=0.5, part="all", images=None):
    """A finished run as a sweep leaves it."""
    run = folder / name
    splits = {"test": evaluate_split(PredictionTable(found), False, 20, 0)}
    PredictionTable(found).write(run / "predictions" / "test.csv")
    if images is not None:
        PredictionTable(images).write(run / "predictions" / "test_images.csv")
        splits["test"]["images"] = evaluate_split(PredictionTable(images), False, 20, 0)
    (run / "config.yaml").write_text(f"body_part: {part}\n")
    (run / "environment.json").write_text(json.dumps({"overrides": [f"body_part={part}", "seed=0"], "finished": True}))
    (run / "history.csv").write_text(f"epoch,valid/loss\n0,{loss + 1}\n1,{loss}\n")
    (run / "evaluation.json").write_text(json.dumps({"data": "MURA-v1.1", "selection": "holdout", "splits": splits}))
    return run


def test_the_mean_is_the_mean_in_any_order_of_rows():
    a, b = table(0), table(1)
    shuffled = b.sample(frac=1, random_state=0).reset_index(drop=True)
    joined = mean_table([a, shuffled], ["a", "b"])
    np.testing.assert_allclose(joined["p_abnormal"], (a["p_abnormal"] + b["p_abnormal"]) / 2)
    pd.testing.assert_frame_equal(joined.drop(columns="p_abnormal"), a.drop(columns="p_abnormal"))


def test_each_study_is_taken_from_the_member_of_its_group():
    members = [table(k) for k in range(3)]
    joined = own_table(members, PARTS)
    for part, member in zip(PARTS, members, strict=True):
        rows = joined["group"] == part
        assert joined.loc[rows, "p_abnormal"].equals(member.loc[rows, "p_abnormal"])
    with pytest.raises(UserError, match="no run of its own for wrist"):
        own_table(members[:2], PARTS[:2])
    with pytest.raises(UserError, match="several runs for one group"):
        own_table([*members, members[0]], [*PARTS, "elbow"])


def test_members_that_differ_are_refused():
    a = table(0)
    for other, said in (
        (table(1, n=58), "runs a and b are of other studies"),
        (table(1).assign(y_abnormal=0.0), "runs a and b have other labels"),
        (table(1).rename(columns={"p_abnormal": "p_x"}), "other columns"),
        (pd.concat([a, a.tail(1)]), "other studies"),
    ):
        with pytest.raises(UserError, match=said):
            mean_table([a, other], ["a", "b"])


def test_the_best_are_those_of_lowest_validation_loss(tmp_path):
    runs = [write_run(tmp_path, str(k), table(k), loss) for k, loss in enumerate((0.5, 0.2, 0.9, 0.3))]
    assert write_ensemble(Ensemble(members=5, best=2), "best", runs, tmp_path) is None
    names, evaluation = write_ensemble(Ensemble(members=4, best=2), "best", runs, tmp_path)
    assert names == ["1 (valid/loss 0.2000)", "3 (valid/loss 0.3000)"]
    written = PredictionTable.read(tmp_path / "ensembles" / "best" / "predictions" / "test.csv").frame
    expected = (table(1)["p_abnormal"] + table(3)["p_abnormal"]) / 2
    np.testing.assert_allclose(written["p_abnormal"], expected)
    metrics = evaluation["splits"]["test"]["labels"]["abnormal"]
    assert metrics["auroc"]["value"] == pytest.approx(roc_auc_score(written["y_abnormal"], expected))
    assert metrics["kappa"]["value"] == pytest.approx(cohen_kappa_score(written["y_abnormal"], expected >= 0.5))
    assert json.loads((tmp_path / "ensembles" / "best" / "evaluation.json").read_text()) == evaluation


@pytest.mark.slow
def test_the_comparison_holds_runs_and_ensembles_by_study_and_by_image(tmp_path):
    for k, part in enumerate((*PARTS, "all")):
        images = table(10 + k).assign(image=[f"i{i}" for i in range(60)])
        write_run(tmp_path, str(k), table(k), part=part, images=images)
    without = {"body_part": "all"}
    ensembles = {
        "mean_of_parts": {"members": 3, "without": without},
        "each_on_its_own": {"members": 3, "without": without, "own": "body_part"},
        "too_many": {"members": 9},
    }
    write_comparison(tmp_path, ensembles)
    rows = pd.read_csv(tmp_path / "comparison.csv")
    found = rows[(rows["label"] == "abnormal") & (rows["metric"] == "kappa")].set_index(["job", "unit"])["value"]
    assert set(found.index) == {(j, u) for j in (*"0123", "mean of parts", "each on its own") for u in ("study", "image")}
    mean = np.mean([table(10 + k)["p_abnormal"] for k in range(3)], axis=0)
    assert found["mean of parts", "image"] == pytest.approx(cohen_kappa_score(table(10)["y_abnormal"], mean >= 0.5))
    page = (tmp_path / "report.html").read_text()
    assert "of 0, 1, 2" in page
    assert "Too many is not made: 4 of 9 runs are there" in page
    assert "kappa by group" in page
    assert "test, by image" in page


def test_an_ensemble_has_operating_points_of_its_own(tmp_path):
    runs = [write_run(tmp_path, str(k), table(k)) for k in range(2)]
    for run in runs:
        valid = table(int(run.name)).assign(id=[f"v{i}" for i in range(60)], split="valid")
        PredictionTable(valid).write(run / "predictions" / "valid.csv")
        evaluation = json.loads((run / "evaluation.json").read_text())
        evaluation["splits"] = {"valid": evaluate_split(PredictionTable(valid), True, 20, 0), **evaluation["splits"]}
        (run / "evaluation.json").write_text(json.dumps(evaluation))
        with (run / "config.yaml").open("a") as file:
            file.write("\noperating: {youden: true, sensitivity: 0.8, specificity: null, kappa: false}\n")
    write_comparison(tmp_path, {"mean": {"members": 2}})
    folder = tmp_path / "ensembles" / "mean"
    splits = json.loads((folder / "evaluation.json").read_text())["splits"]
    assert list(splits["test"]["operating_points"]) == ["0.5", "youden", "sensitivity_0.8"]
    chosen = json.loads((folder / "operating_points.json").read_text())["labels"]["abnormal"]
    youden = splits["test"]["operating_points"]["youden"]["labels"]["abnormal"]
    assert youden["threshold"] == chosen["thresholds"]["youden"]["value"]
    joined = PredictionTable.read(folder / "predictions" / "test.csv").frame
    expected = cohen_kappa_score(joined["y_abnormal"], joined["p_abnormal"] >= youden["threshold"])
    assert youden["kappa"]["value"] == pytest.approx(expected)
    assert splits["valid"]["calibration"]["labels"]["abnormal"]["n"] == 60


def test_a_split_that_members_do_not_share_is_left_out_and_said(tmp_path):
    runs = [write_run(tmp_path, str(k), table(k)) for k in range(2)]
    for run, shift in zip(runs, (0, 1), strict=True):
        valid = table(0).assign(id=[f"v{i + shift}" for i in range(60)])
        PredictionTable(valid).write(run / "predictions" / "valid.csv")
        evaluation = json.loads((run / "evaluation.json").read_text())
        evaluation["splits"] = {"valid": evaluate_split(PredictionTable(valid), True, 20, 0), **evaluation["splits"]}
        (run / "evaluation.json").write_text(json.dumps(evaluation))
    write_comparison(tmp_path, {"mean": {"members": 2}})
    evaluation = json.loads((tmp_path / "ensembles" / "mean" / "evaluation.json").read_text())
    assert set(evaluation["splits"]) == {"test"}
    assert evaluation["left_out"] == {"valid.csv": "runs 0 and 1 are of other studies: v0 only in 0; v60 only in 1"}
    assert "mean: no valid.csv, for runs 0 and 1 are of other studies: v0 only in 0" in (tmp_path / "report.html").read_text()


def test_a_stopped_run_is_left_out_and_a_resumed_one_is_known_by_its_own_settings(tmp_path):
    for k in range(3):
        write_run(tmp_path, str(k), table(k))
    (tmp_path / "1" / "environment.json").write_text(json.dumps({"overrides": ["seed=1"], "finished": False}))
    resumed = {"overrides": ["resume=2"], "finished": True, "sessions_before": [{"overrides": ["seed=2"], "finished": False}]}
    (tmp_path / "2" / "environment.json").write_text(json.dumps(resumed))
    write_comparison(tmp_path, {"mean": {"members": 3}})
    rows = pd.read_csv(tmp_path / "comparison.csv")
    assert set(rows["job"].astype(str)) == {"0", "2"}
    assert set(rows.loc[rows["job"].astype(str) == "2", "overrides"]) == {"seed=2"}
    page = (tmp_path / "report.html").read_text()
    assert "Job 1 was stopped before its end" in page
    assert "Mean is not made: 2 of 3 runs are there" in page


def test_runs_that_differ_in_their_seed_are_averaged_and_a_failed_job_is_named(tmp_path):
    for k in range(4):
        run = write_run(tmp_path, str(k), table(k))
        words = {"overrides": [f"backbone.layers={2 + k // 2}", f"seed={k % 2}", "sweep=x"], "finished": True}
        (run / "environment.json").write_text(json.dumps(words))
    (tmp_path / "4").mkdir()
    write_comparison(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Job 4 failed" in page
    aurocs = [roc_auc_score(table(k)["y_abnormal"], table(k)["p_abnormal"]) for k in (2, 3)]
    expected = f"<td>backbone.layers=3</td><td>2</td><td>{np.mean(aurocs):.3f} ({np.std(aurocs, ddof=1):.3f})</td>"
    assert expected in page


def test_an_unknown_key_of_an_ensemble_is_refused():
    with pytest.raises(UserError, match=r"ensembles.mean.member: there is no such key"):
        Comparison({"mean": {"member": 3}})


def two_findings(ids, edema, mass, truth, split="test"):
    """A prediction table of few studies, by hand."""
    frame = pd.DataFrame({"id": list(ids), "patient": [f"p{i}" for i in ids], "group": "chest", "split": split})
    frame["p_edema"], frame["p_mass"] = edema, mass
    frame["y_edema"], frame["y_mass"] = truth, [1 - t for t in truth]
    return frame


def write_views(folder, name, test, valid, config, loss=0.5, scored=None):
    run = write_run(folder, name, test, loss)
    splits = {}
    for split, found in (("valid", valid), ("test", test)):
        PredictionTable(found).write(run / "predictions" / f"{split}.csv")
        splits[split] = evaluate_split(PredictionTable(found), split == "valid", 20, 0)
    content = {"data": "CheXpert-v1.0", "selection": "holdout", "splits": splits}
    (run / "evaluation.json").write_text(json.dumps(content | ({"scored": scored} if scored else {})))
    (run / "config.yaml").write_text(config)
    return run


TRUTH = [1.0, 0.0, 1.0, 0.0]
GOOD, BAD = [0.9, 0.1, 0.8, 0.2], [0.1, 0.6, 0.7, 0.4]


def test_each_finding_comes_from_the_member_that_is_best_at_it_in_valid(tmp_path):
    turned = [1 - p for p in GOOD]  # mass is there where edema is not
    valid = {"0": (GOOD, BAD), "1": (BAD, turned)}
    test = {"0": ([0.11, 0.12, 0.13, 0.14], [0.15, 0.16, 0.17, 0.18]), "1": ([0.21, 0.22, 0.23, 0.24], [0.25, 0.26, 0.27, 0.28])}
    runs = [
        write_views(tmp_path, k, two_findings("abcd", *test[k], TRUTH), two_findings("efgh", *valid[k], TRUTH, "valid"), "a: 1\n")
        for k in "01"
    ]
    _, evaluation = write_ensemble(Ensemble(members=2, best_by="label"), "mixed", runs, tmp_path)
    assert evaluation["combination"]["chosen"] == {"edema": {"member": "0", "auroc": 1.0}, "mass": {"member": "1", "auroc": 1.0}}
    for split, edema, mass in (("test", test["0"][0], test["1"][1]), ("valid", GOOD, turned)):
        written = PredictionTable.read(tmp_path / "ensembles" / "mixed" / "predictions" / f"{split}.csv").frame
        assert written["p_edema"].tolist() == edema
        assert written["p_mass"].tolist() == mass
    assert evaluation["splits"]["valid"]["macro"]["auroc"]["value"] == 1
    assert evaluation["splits"]["valid"]["selected_on"]
    write_comparison(tmp_path, {"mixed": {"members": 2, "best_by": "label"}})
    said = "mixed: each finding by the member of highest AUROC in valid: edema by 0 (1.000), mass by 1 (1.000)."
    assert said in (tmp_path / "report.html").read_text()


def test_a_finding_that_no_member_can_be_judged_by_comes_from_that_of_lowest_loss(tmp_path):
    for name, loss in (("0", 0.5), ("1", 0.2)):
        valid = two_findings("efgh", GOOD, GOOD, TRUTH, "valid").assign(y_mass=np.nan)
        write_views(tmp_path, name, two_findings("abcd", GOOD, BAD, TRUTH), valid, "a: 1\n", loss)
    runs = [tmp_path / "0", tmp_path / "1"]
    _, evaluation = write_ensemble(Ensemble(members=2, best_by="label"), "mixed", runs, tmp_path)
    assert evaluation["combination"]["chosen"]["mass"] == {"member": "1", "auroc": None}


def test_the_union_is_the_mean_of_those_that_have_the_study():
    frontal = two_findings("abc", [0.2, 0.4, 0.6], [0.1, 0.1, 0.1], [1.0, 0.0, 1.0]).assign(group="frontal")
    lateral = two_findings("cbd", [0.8, 0.8, 0.8], [0.3, 0.3, 0.3], [1.0, 0.0, 0.0]).assign(group="lateral")
    joined = union_table([frontal, lateral], ["0", "1"]).set_index("id")
    assert joined["p_edema"].round(6).to_dict() == {"a": 0.2, "b": 0.6, "c": 0.7, "d": 0.8}
    assert joined["p_mass"].round(6).to_dict() == {"a": 0.1, "b": 0.2, "c": 0.2, "d": 0.3}
    assert joined["y_edema"].to_dict() == {"a": 1, "b": 0, "c": 1, "d": 0}
    assert joined["members"].to_dict() == {"a": 1, "b": 2, "c": 2, "d": 1}
    assert joined["group"].to_dict() == {"a": "frontal", "b": "frontal", "c": "frontal", "d": "lateral"}
    for other, said in (
        (lateral.assign(y_edema=1.0), "runs 0 and 1 have other labels"),
        (lateral.assign(patient="x"), "runs 0 and 1 have other patients"),
        (lateral.rename(columns={"p_mass": "p_x"}), "runs 0 and 1 have other columns"),
        (pd.concat([lateral, lateral.head(1)]), "run 1 has a study twice: c"),
        (lateral.assign(split="valid"), "runs 0 and 1 have other splits"),
    ):
        with pytest.raises(UserError, match=said):
            union_table([frontal, other], ["0", "1"])
    with pytest.raises(UserError, match="a union is of studies, and not of images"):
        union_table([frontal.assign(image=0), lateral.assign(image=0)], ["0", "1"])


@pytest.mark.slow
def test_a_union_says_how_many_members_each_study_had_and_refuses_mixed_splits(tmp_path):
    frontal, lateral = two_findings("abcd", GOOD, BAD, TRUTH), two_findings("cdxy", BAD, GOOD, TRUTH)
    valid = two_findings("efgh", GOOD, GOOD, TRUTH, "valid")
    write_views(tmp_path, "0", frontal, valid, "view: frontal\n")
    write_views(tmp_path, "1", lateral, valid, "view: lateral\n")
    write_comparison(tmp_path, {"both_views": {"members": 2, "union": True}})
    evaluation = json.loads((tmp_path / "ensembles" / "both_views" / "evaluation.json").read_text())
    assert evaluation["members_of_studies"] == {"valid": {"2": 4}, "test": {"1": 4, "2": 2}}
    assert evaluation["splits"]["test"]["n"] == 6
    written = (tmp_path / "ensembles" / "both_views" / "predictions" / "test.csv").read_text().splitlines()
    assert written[0] == "id,patient,group,split,p_edema,p_mass,y_edema,y_mass"
    assert "both views: test: 4 studies of 1 member, 2 studies of 2 members." in (tmp_path / "report.html").read_text()
    mixed = two_findings("aefg", GOOD, GOOD, TRUTH, "valid")
    write_views(tmp_path, "1", two_findings("cdxy", BAD, GOOD, TRUTH), mixed, "view: lateral\n")
    write_comparison(tmp_path, {"both_views": {"members": 2, "union": True}})
    evaluation = json.loads((tmp_path / "ensembles" / "both_views" / "evaluation.json").read_text())
    said = "study a is in test of run 0 and in valid of run 1"
    assert evaluation["left_out"] == {"valid.csv": said, "test.csv": said}


def test_members_are_those_of_these_values_or_without_those(tmp_path):
    configs = {"0": "view: frontal\nimage: {size: 320}\n", "1": "view: lateral\nimage: {size: 320}\n"}
    configs |= {"2": "view: [frontal, lateral]\nimage: {size: 224}\n", "3": "view: frontal\nimage: {size: 224}\n"}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(config)
    runs = [tmp_path / name for name in configs]

    def names(**options):
        return "".join(r.name for r in Ensemble(members=1, **options).eligible(runs))

    assert names(only={"view": "frontal"}) == "03"
    assert names(only={"view": "frontal", "image.size": 224}) == "3"
    assert names(only={"image.size": 224.0}) == "23"
    assert names(only={"view": ["frontal", "lateral"]}) == "2"
    assert names(without={"view": OmegaConf.create(["frontal", "lateral"])}) == "013"
    assert names(only={"image.size": 320}, without={"view": "lateral"}) == "0"


def test_members_are_scored_as_they_were_and_those_that_differ_are_named(tmp_path):
    found, valid = two_findings("abcd", GOOD, BAD, TRUTH), two_findings("efgh", GOOD, BAD, TRUTH, "valid")
    found.loc[3, "y_edema"] = np.nan
    negative = {"blank": "negative", "uncertain": "ignore"}
    runs = [write_views(tmp_path, k, found, valid, "a: 1\n", scored=negative) for k in "01"]
    _, evaluation = write_ensemble(Ensemble(members=2), "mean", runs, tmp_path)
    assert evaluation["scored"] == negative
    assert evaluation["splits"]["test"]["labels"]["edema"]["auroc"]["n"] == 4
    write_views(tmp_path, "1", found, valid, "a: 1\n")
    write_comparison(tmp_path, {"mean": {"members": 2}})
    said = "runs 0 and 1 score labels otherwise: blank negative, uncertain ignore; blank ignore, uncertain ignore"
    assert f"Mean is not made: {said}." in (tmp_path / "report.html").read_text()
