"""Combinations: stacking where the members were not trained, coefficients against scikit-learn, and every refusal."""

from __future__ import annotations

import json
import logging
import re

import hydra
import numpy as np
import pandas as pd
import pytest
from conftest import run_job
from hydra.core.global_hydra import GlobalHydra
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from xraylab import evaluate
from xraylab.data.splits import in_parts
from xraylab.errors import UserError
from xraylab.evaluation.ensembles.alignment import alike, mean_table, own_table, union_table, vote_table
from xraylab.evaluation.ensembles.combination import IN_SAMPLE, Combination, read_combination, stack_of
from xraylab.evaluation.ensembles.combine import CombineOptions
from xraylab.evaluation.ensembles.combine import combine as combined
from xraylab.evaluation.ensembles.ensemble import Ensemble, write_ensemble
from xraylab.evaluation.ensembles.members import operating_rules, read_members
from xraylab.evaluation.ensembles.stacking import fit_stack, stacked_table
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.probabilities import logit, sigmoid
from xraylab.inference.cases import choose_cases
from xraylab.reporting.run_report import write_report
from xraylab.system.paths import conf_dir

SCORED = {"blank": "ignore", "uncertain": "ignore"}


def table(split, seed, skill, n=200, group="axial", labels=("acl",)):
    """Predictions of some skill (0: none, 1: perfect) for the studies of a split, two a patient."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"id": [f"{split}{i}" for i in range(n)], "patient": [f"{split}-p{i // 2}" for i in range(n)]})
    frame["group"], frame["split"] = group, split
    truth = {label: (np.arange(n) // 2 % (3 + k) == 0).astype(float) for k, label in enumerate(labels)}
    for label in labels:
        frame[f"p_{label}"] = np.clip(skill * truth[label] + (1 - skill) * rng.random(n), 0, 1)
    return frame.assign(**{f"y_{label}": truth[label] for label in labels})


def write_run(folder, tables, config="plane: axial\n", scored=None, data="MRNet-v1.0"):
    """A run directory of these tables, its valid selected on."""
    splits = {}
    for file, found in tables.items():
        split = file.removesuffix("_images")
        PredictionTable(found).write(folder / "predictions" / f"{file}.csv")
        if split != "train":
            result = evaluate_split(PredictionTable(found), split == "valid", 20, 3)
            splits.setdefault(split, {}).update({"images": result} if file.endswith("_images") else result)
    content = {"data": data, "selection": "holdout", "scored": scored or SCORED, "splits": splits}
    (folder / "evaluation.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(config)
    words = [config.strip().replace(": ", "=").replace("\n", " "), "seed=0"]
    (folder / "environment.json").write_text(json.dumps({"overrides": words, "finished": True}))
    return folder


@pytest.fixture
def members(tmp_path):
    """An honest member, and one that has learnt train by heart and knows nothing else."""
    honest = {s: table(s, k, 0.25) for k, s in enumerate(("train", "valid", "test"))}
    heart = {s: table(s, k + 10, 0.0) for k, s in enumerate(("valid", "test"))}
    heart["train"] = table("train", 20, 1.0)
    return [write_run(tmp_path / "honest", honest), write_run(tmp_path / "heart", heart, "plane: coronal\n")]


@pytest.fixture
def run_here(tmp_path):
    """Combine in this process: ``run_here(*words)``; returns the content of ``evaluation.json`` and the directory."""

    def run(*words, paths):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = hydra.compose("combine", [*words, f"runs=[{','.join(map(str, paths))}]"])
        directory = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        columns = dict(cfg.columns)
        asked = ("method", "own", "fit_on", "folds", "splits", "bootstrap", "seed", "blank", "uncertain")
        options = CombineOptions(**{key: cfg[key] for key in asked})
        return combined(read_members([str(p) for p in paths], columns), options, directory), directory

    return run


def auroc(evaluation, split, label="acl"):
    return evaluation["splits"][split]["labels"][label]["auroc"]["value"]


def test_a_stack_fitted_on_train_believes_the_member_that_learnt_it_by_heart(members, run_here):
    right, _ = run_here("method=stack", paths=members)
    wrong, directory = run_here("method=stack", "fit_on=train", paths=members)
    honest = json.loads((members[0] / "evaluation.json").read_text())
    assert auroc(right, "test") > auroc(honest, "test") - 0.01
    assert auroc(wrong, "test") < 0.6 < auroc(right, "test")
    c = {how: e["combination"]["labels"]["acl"]["coefficients"] for how, e in (("right", right), ("wrong", wrong))}
    assert abs(c["right"]["heart"]) < 0.2 * c["right"]["honest"]
    assert c["wrong"]["heart"] > 2 * abs(c["wrong"]["honest"])
    assert (right["combination"]["in_sample"], wrong["combination"]["in_sample"]) == (False, True)
    assert not (directory / "predictions" / "train.csv").exists()


def test_coefficients_are_those_of_scikit_learn_and_valid_is_judged_out_of_fold(members, run_here):
    evaluation, directory = run_here("method=stack", "folds=4", paths=members)
    found = evaluation["combination"]["labels"]["acl"]
    valid, test = ([PredictionTable.read(m / "predictions" / f"{s}.csv").frame for m in members] for s in ("valid", "test"))
    x, y = logit(np.stack([t["p_acl"] for t in valid], 1)), valid[0]["y_acl"].to_numpy()
    whole = LogisticRegression(tol=1e-8).fit(x, y)
    assert list(found["coefficients"].values()) == pytest.approx(whole.coef_[0].tolist(), rel=1e-5)
    assert found["intercept"] == pytest.approx(whole.intercept_[0], rel=1e-5)
    assert (found["n"], found["positives"]) == (200, int(y.sum()))
    on_test = whole.predict_proba(logit(np.stack([t["p_acl"] for t in test], 1)))[:, 1]
    np.testing.assert_allclose(PredictionTable.read(directory / "predictions" / "test.csv").frame["p_acl"], on_test, rtol=1e-5)
    fold = in_parts(valid[0].rename(columns={"y_acl": "acl"}), ["acl"], [0.25] * 4, 3)
    assert pd.Series(fold).groupby(valid[0]["patient"].to_numpy()).nunique().max() == 1, "no patient is in two folds"
    expected = np.zeros(len(y))
    for k in range(4):
        part = LogisticRegression(tol=1e-8).fit(x[fold != k], y[fold != k])
        expected[fold == k] = part.predict_proba(x[fold == k])[:, 1]
    out = PredictionTable.read(directory / "predictions" / "valid.csv").frame
    np.testing.assert_allclose(out["p_acl"], expected, rtol=1e-5)
    assert not np.allclose(expected, whole.predict_proba(x)[:, 1], rtol=1e-5)
    assert evaluation["splits"]["valid"]["selected_on"]
    assert auroc(evaluation, "valid") == pytest.approx(roc_auc_score(y, expected))


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


def test_mean_and_vote_are_those_by_hand(members, run_here):
    tables = [PredictionTable.read(m / "predictions" / "test.csv").frame["p_acl"] for m in members]
    _, directory = run_here("method=mean", paths=members)
    np.testing.assert_allclose(PredictionTable.read(directory / "predictions" / "test.csv").frame["p_acl"], sum(tables) / 2)
    third = table("test", 5, 0.1).sample(frac=1, random_state=0)
    members_tables = [PredictionTable.read(m / "predictions" / "test.csv").frame for m in members]
    votes = vote_table([*members_tables, third], ["a", "b", "c"])["p_acl"]
    called = sum((p >= 0.5).to_numpy(int) for p in (*tables, third.sort_index()["p_acl"]))
    np.testing.assert_allclose(votes, called / 3)
    assert set((votes >= 0.5) == (called >= 2)) == {True}


def test_groups_that_differ_are_named_together_and_unknown_patients_are_anothers():
    a, b = table("test", 0, 0.1), table("test", 1, 0.1, group="coronal")
    joined = alike([a.assign(patient=""), b], ["a", "b"])
    assert set(joined[0]["group"]) == {"axial+coronal"}
    assert joined[0]["patient"].equals(b["patient"])
    assert set(alike([a, b.assign(group="all")], ["a", "b"])[0]["group"]) == {"axial"}


def test_patients_are_put_together_study_by_study():
    a, b, c = (table("test", k, 0.1, n=8) for k in range(3))
    known = a["patient"].copy()
    a.loc[0:3, "patient"], b.loc[2:, "patient"] = "", ""
    found = [alike([a, b], ["a", "b"])[0], own_table([a, b.assign(group="axial")], ["axial", "coronal"])]
    for joined in found:
        assert joined["patient"].tolist() == [*known[:2], "", "", *known[4:]]
    assert union_table([a, b], ["a", "b"])["patient"].tolist() == [*known[:2], "", "", *known[4:]]
    with pytest.raises(UserError, match="runs b and c have other patients: test0 is test-p0 and x, test1 is test-p0 and x"):
        alike([a, b, c.assign(patient=["x", "x", *known[2:]])], ["a", "b", "c"])
    with pytest.raises(UserError, match=r"have other groups of the same studies: axial\+coronal\. With method=own every run"):
        own_table([a, b.assign(group="coronal")], ["axial", "coronal"])


def test_operating_points_are_chosen_as_members_chose_theirs(tmp_path, run_here, caplog):
    paths = []
    for k, rules in enumerate(("{sensitivity: 0.8, kappa: false}", "{sensitivity: 0.8, kappa: false}", "{sensitivity: 0.7}")):
        tables = {s: table(s, k, 0.2, n=80) for s in ("valid", "test")}
        paths.append(write_run(tmp_path / str(k), tables, f"plane: axial\noperating: {rules}\n"))
    combined, _ = run_here("method=stack", paths=paths[:2])
    assert list(combined["splits"]["test"]["operating_points"]) == ["0.5", "youden", "sensitivity_0.8", "specificity_0.9"]
    _, swept = write_ensemble(Ensemble(members=2, stack=True), "two", paths[:2], tmp_path)
    assert swept["splits"] == combined["splits"], "the same stack by two routes"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    other, _ = run_here("method=mean", paths=paths)
    assert list(other["splits"]["test"]["operating_points"]) == ["0.5", "youden", "sensitivity_0.9", "specificity_0.9", "kappa"]
    assert "members have different operating.sensitivity (0.8, 0.7): taken is 0.9" in caplog.text
    members = read_members([str(p) for p in paths], {})
    caplog.clear()
    rules = operating_rules(members, {"sensitivity": 0.95})
    assert (rules.sensitivity, rules.kappa) == (0.95, True)
    assert "sensitivity" not in caplog.text
    for m in members:
        m.evaluation["evaluated"] = {"options": {"sensitivity": 0.6, "blank": "ignore"}}
    assert operating_rules(members).sensitivity == 0.6, "as they were last evaluated"
    with pytest.raises(UserError, match=r"specificity=0: it should be greater than 0"):
        operating_rules(members, {"specificity": 0})


def test_a_split_of_another_name_is_held_out_as_evaluate_has_it(tmp_path, run_here):
    for k in range(2):
        PredictionTable(table("external", k, 0.2, n=40)).write(tmp_path / f"{k}.csv")
    paths = [tmp_path / "0.csv", tmp_path / "1.csv"]
    combined, _ = run_here("method=mean", "splits=[external]", paths=paths)
    run_job("evaluate", f"table={paths[0]}", "bootstrap=0", f"output={tmp_path / 'one'}")
    evaluation = json.loads((tmp_path / "one" / "evaluation.json").read_text())
    assert evaluation["splits"]["external"]["selected_on"] is None
    assert combined["splits"]["external"]["selected_on"] is None
    again, _ = run_here("method=mean", "splits=[external]", paths=[tmp_path / "one", paths[1]])
    assert auroc(again, "external") == auroc(combined, "external")


def test_records_that_are_damaged_and_files_that_are_no_runs_are_named(members, run_here):
    for name, text, said in (
        ("evaluation.json", "{}", "no evaluation.json that can be read (it has no data, selection, splits). Finish"),
        ("evaluation.json", "[]", "no evaluation.json that can be read (it has no data, selection, splits). Finish"),
        ("evaluation.json", "{", "no evaluation.json that can be read (Expecting property name"),
        ("environment.json", "{", "no environment.json that can be read (Expecting property name"),
        ("config.yaml", "a: [", "config.yaml: cannot be read (while parsing"),
        ("config.yaml", "- a", "config.yaml: cannot be read (no settings"),
    ):
        before = (members[1] / name).read_text()
        (members[1] / name).write_text(text)
        with pytest.raises(UserError, match=re.escape(said)):
            run_here("method=mean", paths=members)
        (members[1] / name).write_text(before)
    (members[1] / "environment.json").write_text("{}")
    with pytest.raises(UserError, match=r"no environment.json that can be read \(it has no command\)"):
        write_report(members[1])
    with pytest.raises(UserError, match=r"weights\.h5: weights of other frameworks are out of scope"):
        run_here("method=mean", paths=[members[0], "weights.h5"])


def test_each_study_by_the_model_of_its_group(tmp_path, run_here):
    runs = []
    for k, part in enumerate(("hand", "wrist")):
        found = table("test", k, 0.2).assign(group=np.where(np.arange(200) < 120, "hand", "wrist"))
        own = table(f"valid{part}", k, 0.2, group=part)
        found = {"test": found, "valid": own.assign(split="valid")}
        runs.append(write_run(tmp_path / part, found, f"body_part: {part}\n"))
    with pytest.raises(UserError, match=re.escape("valid.csv: runs hand and wrist are of other studies: validhand0, ")) as stop:
        run_here("method=own", "own=body_part", paths=runs)
    assert "Where members share one split only, name it, as splits=[test]." in str(stop.value)
    labels = [table(s, 0, 0.2, labels=("tear",)) for s in ("valid", "test")]
    other = write_run(tmp_path / "tear", {"valid": labels[0], "test": labels[1]})
    with pytest.raises(UserError, match=r"only in one of them\.$"):
        run_here("method=mean", paths=[runs[0], other])
    evaluation, directory = run_here("method=own", "own=body_part", "splits=[test]", paths=runs)
    tables = [PredictionTable.read(r / "predictions" / "test.csv").frame["p_acl"] for r in runs]
    out = PredictionTable.read(directory / "predictions" / "test.csv").frame["p_acl"]
    assert out.tolist() == [*tables[0][:120], *tables[1][120:]]
    assert evaluation["combination"]["groups"] == ["hand", "wrist"]
    for words, said in (
        (["own=null"], "own must be given"),
        (["own=bodypart"], "own=bodypart: .*/hand has no such setting. Did you mean body_part?"),
    ):
        with pytest.raises(UserError, match=said):
            run_here("method=own", "splits=[test]", *words, paths=runs)


def changed(folder, members, **tables):
    """A copy of the second member with other tables."""
    found = {s: PredictionTable.read(members[1] / "predictions" / f"{s}.csv").frame for s in ("train", "valid", "test")}
    found |= tables
    return write_run(folder / "other", {s: t for s, t in found.items() if t is not None}, "plane: coronal\n")


def test_members_that_differ_are_refused_and_the_difference_is_named(members, run_here, tmp_path):
    test = PredictionTable.read(members[1] / "predictions" / "test.csv").frame
    again = test.copy()
    again.loc[[4, 7], "y_acl"] = [1.0, np.nan]
    who = test.assign(patient=test["patient"].where(test["id"] != "test6", "x"))
    valid = PredictionTable.read(members[1] / "predictions" / "valid.csv").frame
    shared = valid.assign(patient=valid["patient"].where(valid["id"] != "valid0", "test-p3"))
    train = PredictionTable.read(members[1] / "predictions" / "train.csv").frame
    leaked = pd.concat([train, test.head(1).assign(split="train")], ignore_index=True)
    for tables, said in (
        ({"test": test.iloc[3:]}, "test.csv: runs honest and other are of other studies: test0, test1, test2 only in honest."),
        ({"test": test.assign(id=["x", *test["id"][1:]])}, "other studies: test0 only in honest; x only in other"),
        ({"test": again}, "runs honest and other have other labels of acl: test4 is 0 and 1, test7 is 1 and blank"),
        ({"test": who}, "runs honest and other have other patients: test6 is test-p3 and x"),
        ({"test": test.rename(columns={"p_acl": "p_x", "y_acl": "y_x"})}, "have other columns: acl, x only in one of them"),
        ({"test": test.assign(split="final")}, "have other splits: test0 is test and final, "),
        ({"valid": shared}, "1 patients are in more than one split: test-p3. Results would be too good."),
        ({"train": leaked}, "study test0 is in test of run honest and in train of run other"),
        ({"test": None}, "there are no predictions of test of other, as honest have. What all have is splits=[valid]."),
    ):
        other = changed(tmp_path, members, **tables)
        with pytest.raises(UserError, match=re.escape(said)):
            run_here("method=mean", paths=[members[0], other])
        for file in (other / "predictions").iterdir():
            file.unlink()


def test_what_members_lack_is_said(members, run_here, tmp_path):
    for path in members:
        (path / "predictions" / "train.csv").unlink()
    with pytest.raises(UserError, match=r"fit_on=train: there is no predictions/train.csv of honest, heart. Train it with"):
        run_here("method=stack", "fit_on=train", paths=members)
    with pytest.raises(UserError, match="folds=1: there are at least 2"):
        run_here("method=stack", "folds=1", paths=members)
    with pytest.raises(UserError, match="folds=101: a part has a patient at least, and there are 100 to fit on"):
        run_here("method=stack", "folds=101", paths=members)
    negative = {"blank": "negative", "uncertain": "ignore"}
    other = write_run(tmp_path / "a", {s: table(s, 4, 0.1) for s in ("valid", "test")}, scored=negative)
    with pytest.raises(
        UserError, match=r"runs honest and a score labels otherwise: .*\. Say what counts: blank=ignore\|negative"
    ):
        run_here("method=mean", paths=[members[0], other])
    other = write_run(tmp_path / "b", {s: table(s, 4, 0.1) for s in ("valid", "test")}, data="MRNet-v2")
    with pytest.raises(UserError, match=r"runs are of other data: honest: MRNet-v1\.0, b: MRNet-v2"):
        run_here("method=mean", paths=[members[0], other])
    for paths, said in (
        (members[:1], "a combination has two members or more"),
        ([members[0], members[0]], "is there twice"),
        ([members[0], tmp_path / "none"], "is not a run directory"),
    ):
        with pytest.raises(UserError, match=said):
            run_here("method=mean", paths=paths)


def test_labels_count_as_told(tmp_path, run_here, caplog):
    """Of tables, which do not say how they were scored, and of runs that were scored otherwise."""
    found = [table("test", k, 0.3) for k in range(2)]
    for t in found:
        t.loc[:9, "y_acl"], t.loc[10:29, "y_acl"] = np.nan, -1.0
        t["patient"] = t["id"]
    paths = [tmp_path / f"{k}.csv" for k in range(2)]
    for path, t in zip(paths, found, strict=True):
        PredictionTable(t).write(path)
    plain, _ = run_here("method=mean", paths=paths)
    assert plain["splits"]["test"]["labels"]["acl"]["auroc"]["n"] == 170
    told, _ = run_here("method=mean", "blank=negative", "uncertain=positive", paths=paths)
    result = told["splits"]["test"]["labels"]["acl"]
    truth = found[0]["y_acl"].replace(-1.0, 1.0).fillna(0.0)
    mean = (found[0]["p_acl"] + found[1]["p_acl"]) / 2
    assert result["auroc"]["n"] == 200
    assert result["auroc"]["value"] == pytest.approx(roc_auc_score(truth, mean), abs=1e-12)
    assert (result["blank"]["value"], result["uncertain"]["value"]) == (10, 20), "the counts of labels are raw"
    assert told["scored"] == {"blank": "negative", "uncertain": "positive"}

    negative = {"blank": "negative", "uncertain": "ignore"}
    runs = [write_run(tmp_path / f"run{k}", {"test": t}, scored=(SCORED, negative)[k]) for k, t in enumerate(found)]
    both, _ = run_here("method=mean", "blank=negative", paths=runs)
    assert both["scored"] == negative
    assert both["splits"]["test"]["labels"]["acl"]["auroc"]["n"] == 180
    assert both["members"] == ["run0 (scored there with blank ignore)", "run1"]
    assert "scored with blank negative, uncertain ignore, and run0 otherwise" in caplog.text
    caplog.clear()
    run_here("method=mean", paths=[*runs[1:], paths[0]])
    assert "otherwise" not in caplog.text


def test_without_a_test_the_numbers_out_of_fold_are_the_result(tmp_path, run_here):
    paths = [
        write_run(tmp_path / p, {"valid": table("valid", k, 0.2, group=p)}, f"plane: {p}\n")
        for k, p in enumerate(("axial", "coronal", "sagittal"))
    ]
    evaluation, directory = run_here("method=stack", paths=paths)
    assert set(evaluation["splits"]) == {"valid"}
    assert evaluation["splits"]["valid"]["selected_on"]
    assert set(PredictionTable.read(directory / "predictions" / "valid.csv").frame["group"]) == {"axial+coronal+sagittal"}
    assert evaluation["members"][1] == "coronal (plane=coronal)", "its own words, not those of all"


def test_images_are_combined_too_but_not_stacked(tmp_path, run_here):
    paths = []
    for k in range(2):
        tables = {s: table(s, k, 0.2) for s in ("valid", "test")}
        images = {f"{s}_images": t.loc[t.index.repeat(2)].assign(image=[0, 1] * 200) for s, t in tables.items()}
        paths.append(write_run(tmp_path / str(k), tables | images))
    evaluation, directory = run_here("method=mean", paths=paths)
    assert evaluation["splits"]["test"]["images"]["n"] == 400
    assert (directory / "predictions" / "test_images.csv").exists()
    evaluation, _ = run_here("method=stack", paths=paths)
    assert "images" not in evaluation["splits"]["test"]
    assert evaluation["left_out"]["test_images.csv"] == "a stack is of studies, and not of images"


def test_a_sweeps_stack_is_the_same_and_a_run_of_its_own(members, run_here, tmp_path):
    _, evaluation = write_ensemble(Ensemble(members=2, stack=True), "planes", members, tmp_path)
    combined, _ = run_here("method=stack", paths=members)
    assert evaluation["splits"] == combined["splits"]
    assert evaluation["combination"] == combined["combination"]
    combination, paths = read_combination(tmp_path / "ensembles" / "planes")
    assert (combination.method, [p.resolve() for p in paths]) == ("stack", members)
    assert combination.said() == [
        "a logistic regression a label on the members' logits, fitted on valid, and judged there out of fold, in 5 parts"
    ]
    write_report(tmp_path / "ensembles" / "planes")
    (members[0] / "predictions" / "valid.csv").unlink()
    with pytest.raises(UserError, match=r"no predictions/valid.csv of honest"):
        write_ensemble(Ensemble(members=2, stack=True), "planes", members, tmp_path)


@pytest.mark.slow
def test_the_command_leaves_a_run_that_report_and_a_further_combination_accept(members, tmp_path, command, run_here):
    words = ["method=stack", f"runs=[{members[0]},{members[1]}]", "bootstrap=20"]
    done = command("combine", *words, "fit_on=train", f"hydra.run.dir={tmp_path / 'wrong'}")
    assert done.returncode == 0, done.stderr
    assert "fitted on train: fitted on predictions of studies that the members were trained on" in done.stdout
    page = (tmp_path / "wrong" / "report.html").read_text()
    assert "<p class=sample>A logistic regression a label on the members&#x27; logits, fitted on train" in page
    worst = choose_cases(PredictionTable.read(tmp_path / "wrong" / "predictions" / "test.csv"), 12)["id"].iloc[0]
    assert f"<td>acl</td><td>false positive</td><td>{worst} " in page, "cases by id, where no images are at hand"
    assert f"- The combination was {IN_SAMPLE}." in (tmp_path / "wrong" / "MODEL_CARD.md").read_text()
    combination, paths = read_combination(tmp_path / "wrong")
    assert [p.resolve() for p in paths] == members
    assert json.loads((tmp_path / "wrong" / "combination.json").read_text())["paths"] == ["../honest", "../heart"]
    tables = [PredictionTable.read(m / "predictions" / "test.csv").frame for m in members]
    written = PredictionTable.read(tmp_path / "wrong" / "predictions" / "test.csv").frame
    np.testing.assert_allclose(combination.join(tables)["p_acl"], written["p_acl"], rtol=1e-12)
    unlabelled = [t.drop(columns="y_acl") for t in tables]
    assert combination.join(unlabelled)["p_acl"].equals(combination.join(tables)["p_acl"]), "new studies have no labels"
    write_report(tmp_path / "wrong")
    assert (tmp_path / "wrong" / "report.html").read_text().count("Coefficients of the members") == 1
    environment = json.loads((tmp_path / "wrong" / "environment.json").read_text())
    assert environment["command"].startswith("python -m xraylab.combine method=stack")
    run_here("method=mean", paths=[tmp_path / "wrong", members[0]])
    done = command("combine", *words, f"hydra.run.dir={tmp_path / 'wrong'}")
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"), pytest.raises(UserError, match="no model of its own"):
        evaluate.job(hydra.compose("evaluate", [f"run={tmp_path / 'wrong'}"]))
    members[0].rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"its member .*honest is not there"):
        read_combination(tmp_path / "wrong")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "runs must be given"),
        (["runs=[a,b]"], "method must be given"),
        (["runs=null", "method=mean"], "runs=null: it is one, or several: runs=[<a>,<b>]."),
        (["runs=3", "method=mean"], "runs=3: a combination has two members or more"),
        (["runs=[a,b]", "method=mean", "sensitivity=7"], "sensitivity=7: it should be less than or equal to 1"),
        (["runs=[a,b]", "method=mean", "blank=positive"], "blank=positive: it should be 'ignore' or 'negative'"),
        (["runs=[a,b]", "method=staple"], "method=staple: it is one of stack, mean, vote, own. Did you mean stack"),
    ],
)
def test_mistakes_are_said(command, tmp_path, words, said):
    done = command("combine", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not list((tmp_path / "empty").iterdir())


def test_tables_of_other_tools_are_members_too(tmp_path, run_here):
    for k in range(2):
        found = pd.concat([table(s, k, 0.2) for s in ("valid", "test")])
        out = found.rename(columns={"id": "path", "p_acl": "predicted_acl", "y_acl": "true_acl"}).drop(columns="group")
        out.to_csv(tmp_path / f"{k}.csv", index=False)
    mapped = ["columns.id=path", "columns.p='predicted_{label}'", "columns.y='true_{label}'"]
    evaluation, _ = run_here("method=stack", *mapped, paths=[tmp_path / "0.csv", tmp_path / "1.csv"])
    assert evaluation["data"] == "0.csv, 1.csv"
    assert evaluation["splits"]["test"]["patients"] == 100
    assert evaluation["splits"]["test"]["groups"].keys() == {"all"}
    assert auroc(evaluation, "test") > 0.6
    with pytest.raises(UserError, match="is a table, whose settings are not known"):
        run_here("method=own", "own=plane", *mapped, paths=[tmp_path / "0.csv", tmp_path / "1.csv"])
    run = write_run(tmp_path / "run", {s: table(s, 7, 0.1) for s in ("valid", "test")})
    evaluation, _ = run_here("method=mean", *mapped, paths=[run, tmp_path / "1.csv"])
    assert (evaluation["data"], [*evaluation["splits"]["test"]["groups"]]) == ("MRNet-v1.0", ["axial"])


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
    stack = stack_of([table, table], ["a", "b"], "valid", Scoring(), 0)
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
