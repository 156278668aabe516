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
from xraylab.evaluation.ensembles.alignment import vote_table
from xraylab.evaluation.ensembles.combination import IN_SAMPLE, read_combination
from xraylab.evaluation.ensembles.combine import CombineOptions
from xraylab.evaluation.ensembles.combine import combine as combined
from xraylab.evaluation.ensembles.ensemble import Ensemble, write_ensemble
from xraylab.evaluation.ensembles.members import operating_rules, read_members
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.predictions import PredictionTable
from xraylab.evaluation.probabilities import logit
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
        return combined(read_members([str(p) for p in paths], columns, options.needed), options, directory), directory

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
    assert "<p class=sample>A logistic regression a label on the members&#39; logits, fitted on train" in page
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
