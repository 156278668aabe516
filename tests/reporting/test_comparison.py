"""The comparison of runs over several findings: pivot, published numbers beside ours, paired differences."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from xraylab.errors import UserError
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.paired_tests import compare
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.reporting.comparison import text_table
from xraylab.sweeps.comparison import Comparison, write_comparison

FINDINGS = ("edema", "mass", "rare")
SKILL = {"0": (0.4, 0.0, 0.2), "1": (0.1, 0.5, 0.2), "2": (0.3, 0.4, 0.2)}  # of each run at each finding
PUBLISHED = {"note": "a study of 1999", "rows": {"loss=ignore": {"edema": 0.818, "other": 0.9}, "loss=none": {"mass": 0.777}}}


def table(skill, seed=0, n=80):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "patient": [f"p{i // 2}" for i in range(n)]})
    frame["group"], frame["split"] = "frontal", "test"
    for k, (label, s) in enumerate(zip(FINDINGS, skill, strict=True)):
        truth = (np.arange(n) // (k + 1) % 2).astype(float)
        frame[f"p_{label}"] = np.clip(s * truth + rng.random(n) * 0.6, 0, 1)
        frame[f"y_{label}"] = truth
    frame.loc[:5, "y_mass"] = np.nan
    return frame


def write_run(folder, name, found, overrides, scored=None):
    run = folder / name
    options = scored or {"blank": "ignore", "uncertain": "ignore"}
    splits = {"test": evaluate_split(PredictionTable(found), False, 200, 0, scoring=Scoring(**options))}
    PredictionTable(found).write(run / "predictions" / "test.csv")
    (run / "environment.json").write_text(json.dumps({"overrides": overrides, "finished": True}))
    content = {"data": "CheXpert-v1.0", "selection": "holdout", "scored": options, "splits": splits}
    (run / "evaluation.json").write_text(json.dumps(content))
    return splits["test"]


@pytest.fixture
def policies(tmp_path):
    words = {"0": "loss=ignore", "1": "loss=ones", "2": "loss=multiclass"}
    return tmp_path, {k: write_run(tmp_path, k, table(s, int(k)), [words[k], "x=1"]) for k, s in SKILL.items()}


def cells(page, row):
    """The cells of the first table row that begins with ``row``."""
    (line,) = re.findall(rf"<tr><td>{row}</td>(.*?)</tr>", page.split("AUROC by finding")[1])[:1]
    return re.findall(r"<td[^>]*>(.*?)</td>", line)


def test_the_pivot_has_a_row_a_run_and_marks_the_best_of_each_finding(policies):
    folder, results = policies
    write_comparison(folder, None, PUBLISHED)
    page = (folder / "report.html").read_text()
    best = {la: max(results, key=lambda k, la=la: results[k]["labels"][la]["auroc"]["value"]) for la in FINDINGS}
    assert (best["edema"], best["mass"]) == ("0", "1")
    for job, result in results.items():
        row = cells(page, job)
        assert row[0] == {"0": "loss=ignore", "1": "loss=ones", "2": "loss=multiclass"}[job]
        for label, cell in zip(FINDINGS, row[1:], strict=False):
            m = result["labels"][label]["auroc"]
            text = f"{m['value']:.3f} ({m['low']:.3f}-{m['high']:.3f})"
            assert cell == (f"<b>{text}</b>" if best[label] == job else text)
    assert cells(page, "n")[1:] == ["80", "74", "80", "80"]
    assert "All with x=1" in page


def test_published_numbers_stand_beside_their_run_and_are_never_the_best(policies):
    folder, _ = policies
    write_comparison(folder, None, PUBLISHED)
    page = (folder / "report.html").read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", page.split("AUROC by finding")[1].split("</table>")[0])
    assert [re.sub("<.*?>", " ", r).split()[0] for r in rows] == ["job", "n", "0", "published", "1", "2"]
    assert re.findall(r"<td[^>]*>(.*?)</td>", rows[3])[1:] == ["", "0.818", "", "", ""]
    assert "<small>published: a study of 1999</small>" in page
    assert "0.777" not in page, "no run has loss=none"
    printed = text_table(folder)
    lines = printed.split("AUROC by finding")[1].splitlines()
    assert lines[0] == ", * the best of each; published: a study of 1999"
    assert lines[1].split() == ["edema", "mass", "rare", "macro"]
    assert lines[2].split() == ["n", "80", "74", "80", "80"]
    assert [line.split()[0] for line in lines[3:]] == ["0:", "published", "1:", "2:"]
    assert lines[3].split()[2].endswith("*")
    assert not lines[4].split()[1].endswith("*")
    assert sum(line.count("*") for line in lines[3:]) == 4


@pytest.mark.slow
def test_many_findings_are_printed_in_lines_that_fit(tmp_path):
    for k in range(2):
        found = table(SKILL["0"], k)
        for i in range(11):
            found[f"p_enlarged_something_{i}"], found[f"y_enlarged_something_{i}"] = found["p_edema"], found["y_edema"]
        write_run(tmp_path, str(k), found, [f"seed={k}"])
    write_comparison(tmp_path)
    lines = text_table(tmp_path).split("AUROC by finding")[1].splitlines()
    assert max(map(len, lines)) <= 132
    assert sum(line.startswith("  0: seed=0") for line in lines) == 3
    assert " ".join(lines).count("enlarged_something") == 11


def test_differences_are_paired_with_the_best_run_on_the_same_studies(policies):
    folder, results = policies
    write_run(folder, "3", table((0, 0, 0.1), 3).assign(id=[f"t{i}" for i in range(80)]), ["loss=zeros", "x=1"])
    write_comparison(folder)
    rows = pd.read_csv(folder / "comparison.csv", dtype={"job": str})
    found = rows[rows["metric"] == "auroc_minus_reference"].set_index("job")
    best = max(results, key=lambda k: results[k]["macro"]["auroc"]["value"])
    assert set(found.index) == {"0", "1", "2"}
    assert found.loc[best, "value"] == 0
    for job, result in results.items():
        difference = result["macro"]["auroc"]["value"] - results[best]["macro"]["auroc"]["value"]
        assert found.loc[job, "value"] == pytest.approx(difference)
        assert job == best or found.loc[job, "low"] < difference < found.loc[job, "high"]
    page = (folder / "report.html").read_text()
    assert f"Test: 3 is not paired with another run: runs {best} and 3 are of other studies: s0, s1," in page
    assert "95% paired intervals over patients" in page
    assert page.count("is not paired") == 1
    write_run(folder, "4", table((0.6, 0.6, 0.6), 4).assign(id=[f"t{i}" for i in range(80)]), ["loss=many", "x=1"])
    write_comparison(folder)
    rows = pd.read_csv(folder / "comparison.csv", dtype={"job": str})
    again = rows[rows["metric"] == "auroc_minus_reference"].set_index("job")
    assert set(again.index) == set("01234")
    pd.testing.assert_frame_equal(again.loc[list("012")], found.loc[list("012")])
    assert again.loc["4", "value"] == 0 > again.loc["3", "value"]


def test_a_paired_interval_is_near_that_of_one_bootstrap_of_both():
    a, b = table(SKILL["0"], 0), table(SKILL["1"], 0)
    b["p_rare"] = a["p_rare"]  # what both give alike is a difference of 0, and no reason against a mean
    out = compare(PredictionTable(a), PredictionTable(b))["macro"]["auroc"]
    drawn = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=120)
    replicates = []
    for weights in drawn[:, np.arange(80) // 2]:
        scores = []
        for t in (a, b):
            known = [t[f"y_{la}"].notna().to_numpy() for la in FINDINGS]
            scores.append(
                [
                    roc_auc_score(t[f"y_{la}"][k], t[f"p_{la}"][k], sample_weight=weights[k])
                    for la, k in zip(FINDINGS, known, strict=True)
                ]
            )
        replicates.append(np.mean(np.subtract(*scores)))
    np.testing.assert_allclose([out["low"], out["high"]], np.quantile(replicates, [0.025, 0.975]), atol=0.06)
    same = compare(PredictionTable(a), PredictionTable(a))["macro"]["auroc"]
    assert (same["value"], same["low"], same["high"]) == (0, None, None)
    assert "both give every study the same" in same["reason"]


def test_the_page_opens_with_how_far_runs_lie_apart_only_where_they_can_be_compared(policies):
    folder, splits = policies
    write_comparison(folder)
    order = sorted(SKILL, key=lambda job: splits[job]["macro"]["auroc"]["value"])
    low, high = (splits[job]["macro"]["auroc"]["value"] for job in (order[0], order[-1]))
    said = f"3 runs: mean AUROC from {low:.3f} (run {order[0]}) to {high:.3f} (run {order[-1]}) in 80 studies of test."
    assert said in (folder / "report.html").read_text()

    apart = "4 runs, not all of the same studies, labels and scoring, so none of them is called the best."
    edema_only = table(SKILL["1"], 1).drop(columns=["p_mass", "y_mass", "p_rare", "y_rare"])
    other_studies = table(SKILL["1"], 1).assign(id=[f"t{i}" for i in range(80)])
    for found, scored in (
        (edema_only, None),
        (other_studies, None),
        (table(SKILL["0"], 3), {"blank": "negative", "uncertain": "ignore"}),
    ):
        write_run(folder, "3", found, ["x=1", "task=other"], scored)
        write_comparison(folder)
        page = (folder / "report.html").read_text()
        assert apart in page
        assert "mean AUROC from" not in page


def test_runs_that_score_labels_otherwise_are_not_paired_and_it_is_said(policies):
    folder, _ = policies
    write_run(folder, "3", table(SKILL["0"], 3), ["loss=zeros", "x=1"], {"blank": "negative", "uncertain": "ignore"})
    write_comparison(folder)
    page = (folder / "report.html").read_text()
    assert "3: labels that are not mentioned are scored as negative." in page
    assert re.search(r"Test: \d is not paired with another run: runs \d and \d score labels otherwise", page)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"published": {"notes": "x"}}, "published.notes: there is no such key. There are: note, rows, data, n."),
        (
            {"published": {"rows": {"loss=x": {"edema": 81.8}}}},
            "published.rows.loss=x.edema=81.8: it is an AUROC, a number from 0 to 1.",
        ),
        (
            {"ensembles": {"a": {"members": 2, "own": "x", "union": True}}},
            "ensembles.a: own and union are two ways to join members. Give one.",
        ),
        ({"ensembles": {"a": {"members": 2, "best_by": "study"}}}, "ensembles.a.best_by=study: it is label, or null."),
        ({"ensembles": {"a": {"best": 2}}}, "ensembles.a.members: it must say how many runs it takes."),
    ],
)
def test_what_a_comparison_does_not_understand_is_refused(options, said):
    with pytest.raises(UserError) as stop:
        Comparison(**options)
    assert str(stop.value) == said


def test_every_row_and_print_says_whether_its_studies_were_chosen_on_and_are_synthetic(policies):
    folder, _ = policies

    def change(job, selected_on, **more):
        path = folder / job / "evaluation.json"
        content = json.loads(path.read_text()) | more
        content["splits"]["test"]["selected_on"] = selected_on
        path.write_text(json.dumps(content))

    def written():
        write_comparison(folder)
        return (pd.read_csv(folder / name, dtype=str, keep_default_na=False) for name in ("comparison.csv", "differences.csv"))

    comparison, _ = written()
    assert list(comparison)[:10] == ["job", "overrides", "split", "unit", "label", "metric", "value", "low", "high", "n"]
    assert (set(comparison["selected_on"]), set(comparison["in_sample"])) == ({"false"}, {"false"})
    assert "held out from all choices" in text_table(folder).splitlines()[0]
    assert json.loads((folder / "comparison.json").read_text())["data"] == "CheXpert-v1.0"
    change("1", None)
    comparison, differences = written()
    assert comparison.groupby("job")["selected_on"].unique().str.join("").to_dict() == {
        "0": "false",
        "1": "not known",
        "2": "false",
    }
    ours = differences["job"].eq("1") | differences["reference"].eq("1")
    assert set(differences.loc[ours, "selected_on"]) == {"not known"}
    assert "not known whether choices were made" in text_table(folder).splitlines()[0]
    assert "not known whether choices were made" in (folder / "report.html").read_text()
    stack = {"method": "stack", "names": [], "in_sample": True, "fit_on": "train", "folds": 5, "labels": {}}
    change("2", True, data="synthetic sample", combination=stack)
    comparison, differences = written()
    assert set(comparison["data"]) == set(differences["data"]) == {"synthetic sample"}
    assert comparison.groupby("job")["in_sample"].unique().str.join("").to_dict() == {"0": "false", "1": "false", "2": "true"}
    ours = differences["job"].eq("2") | differences["reference"].eq("2")
    assert set(differences.loc[ours, "in_sample"]) == {"true"} == set(differences.loc[ours, "selected_on"])
    said = text_table(folder).splitlines()
    assert said[0].startswith("synthetic sample: test, by study, n 80; choices were made on these studies")
    assert [line.endswith("(fitted in sample)") for line in said[1:4]] == [False, False, True]
    assert json.loads((folder / "comparison.json").read_text())["data"] == "synthetic sample"
