"""Ensembles of a sweep's runs: means by hand, each study by its own member, members chosen and refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from xraylab.comparison import Comparison, write_comparison
from xraylab.ensemble import Ensemble, mean_table, own_table, write_ensemble
from xraylab.errors import UserError
from xraylab.evaluation import evaluate_split, read_table, write_table

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
    splits = {"test": evaluate_split(found, False, 20, 0)}
    write_table(found, run / "predictions" / "test.csv")
    if images is not None:
        write_table(images, run / "predictions" / "test_images.csv")
        splits["test"]["images"] = evaluate_split(images, False, 20, 0)
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
    written = read_table(tmp_path / "ensembles" / "best" / "predictions" / "test.csv")
    expected = (table(1)["p_abnormal"] + table(3)["p_abnormal"]) / 2
    np.testing.assert_allclose(written["p_abnormal"], expected)
    metrics = evaluation["splits"]["test"]["labels"]["abnormal"]
    assert metrics["auroc"]["value"] == pytest.approx(roc_auc_score(written["y_abnormal"], expected))
    assert metrics["kappa"]["value"] == pytest.approx(cohen_kappa_score(written["y_abnormal"], expected >= 0.5))
    assert json.loads((tmp_path / "ensembles" / "best" / "evaluation.json").read_text()) == evaluation


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


def test_a_split_that_members_do_not_share_is_left_out_and_said(tmp_path):
    runs = [write_run(tmp_path, str(k), table(k)) for k in range(2)]
    for run, shift in zip(runs, (0, 1), strict=True):
        valid = table(0).assign(id=[f"v{i + shift}" for i in range(60)])
        write_table(valid, run / "predictions" / "valid.csv")
        evaluation = json.loads((run / "evaluation.json").read_text())
        evaluation["splits"] = {"valid": evaluate_split(valid, True, 20, 0), **evaluation["splits"]}
        (run / "evaluation.json").write_text(json.dumps(evaluation))
    write_comparison(tmp_path, {"mean": {"members": 2}})
    evaluation = json.loads((tmp_path / "ensembles" / "mean" / "evaluation.json").read_text())
    assert set(evaluation["splits"]) == {"test"}
    assert evaluation["left_out"] == {"valid.csv": "runs 0 and 1 are of other studies"}
    assert "mean: no valid.csv, for runs 0 and 1 are of other studies" in (tmp_path / "report.html").read_text()


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
