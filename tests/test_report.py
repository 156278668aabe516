"""The report of several runs, by the command's own function; and the same numbers wherever a run's are told."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from omegaconf import OmegaConf
from sklearn.metrics import auc, roc_auc_score

from xraylab.errors import UserError
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.metrics import number
from xraylab.evaluation.paired_tests import compare
from xraylab.evaluation.predictions import PredictionTable
from xraylab.evaluation.result import by_unit
from xraylab.report import job, read_results
from xraylab.reporting.comparison_page import configurations
from xraylab.reporting.figures.curves import curve
from xraylab.reporting.summary import closing_table
from xraylab.sweeps.comparison import write_comparison


def table(split, skill, seed, n=120):
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(9).integers(0, 2, n).astype(float)
    frame = pd.DataFrame({"id": [f"{split}{i}" for i in range(n)], "patient": [f"{split}-p{i // 2}" for i in range(n)]})
    p = 1 / (1 + np.exp(-(skill * (truth - 0.5) + rng.normal(size=n))))
    return frame.assign(group="axial", split=split, p_acl=p, y_acl=truth)


def write_run(folder, skill, seed, **config):
    tables = {split: table(split, skill, seed + 10 * k) for k, split in enumerate(("valid", "test"))}
    splits = {split: evaluate_split(PredictionTable(t), split == "valid", 60, 3) for split, t in tables.items()}
    for split, t in tables.items():
        PredictionTable(t).write(folder / "predictions" / f"{split}.csv")
    of = {"file": "best.ckpt", "epoch": 1, "step": 8, "monitor": "valid/loss"}
    content = {"data": "MRNet-v1.0", "selection": "holdout", "checkpoint": of, "splits": splits}
    (folder / "evaluation.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    words = [f"seed={seed}", f"optimizer.lr={config['optimizer']['lr']}"]
    session = {"command": f"python -m xraylab.train {' '.join(words)}", "overrides": words, "finished": True, "seconds": 12.0}
    (folder / "environment.json").write_text(json.dumps(session))
    history = pd.DataFrame({"epoch": [0, 1], "train/loss": [1.0, 0.5], "valid/loss": [0.9, 0.6], "valid/macro/auroc": [0.5, 0.7]})
    history.to_csv(folder / "history.csv", index=False)
    return folder


@pytest.fixture
def runs(tmp_path):
    """A good run and a poor one, under one name in two places."""
    settings = {"plane": "axial", "name": "x", "loss": {"u": None}}
    good = write_run(tmp_path / "a" / "r", 2.0, 0, **settings, optimizer={"lr": 0.1}, head={"hidden": [8]})
    return good, write_run(tmp_path / "b" / "r", 0.7, 1, **settings, optimizer={"lr": 0.2})


def report(*paths, reference=None, output=None):
    job(
        OmegaConf.create(
            {"runs": [str(p) for p in paths], "reference": reference, "explain": False, "output": output and str(output)}
        )
    )
    return output and output / "report.html"


@pytest.mark.slow
def test_numbers_are_the_same_from_train_evaluate_and_report(train_here, command, mrnet_root, tmp_path, capfd):
    """Whoever reads a number of a run, anywhere, reads the same."""
    run = train_here(tmp_path / "run", *TINY, "max_epochs=1", "batch_size=4", f"dataset.root={mrnet_root}", "task=[acl,meniscus]")
    told = (run / "evaluation.json").read_text()
    tables = {p.name: p.read_bytes() for p in (run / "predictions").glob("*.csv")}
    again = command("evaluate", f"run={run}", "num_workers=0")
    assert again.returncode == 0, again.stderr
    evaluated = {"command": f"python -m xraylab.evaluate run={run} num_workers=0", "options": {}}
    assert json.loads((run / "evaluation.json").read_text()) == {**json.loads(told), "evaluated": evaluated}
    assert "Evaluated anew, with no other settings than the run" in (run / "report.html").read_text()
    assert "the same numbers as before" in again.stdout
    assert {p.name: p.read_bytes() for p in (run / "predictions").glob("*.csv")} == tables
    other = shutil.copytree(run, tmp_path / "other")
    report(run)
    page = report(run, other, output=tmp_path / "both").read_text()
    evaluation = json.loads(told)
    assert set(evaluation["splits"]) == {"valid", "test"}
    printed = closing_table(evaluation, run, "1 s")
    rows = pd.read_csv(tmp_path / "both" / "comparison.csv", dtype={"job": str}).set_index(
        ["job", "split", "unit", "label", "metric"]
    )
    for split, result in by_unit(evaluation):
        predictions = pd.read_csv(run / "predictions" / f"{split}.csv")
        for label, metrics in result["labels"].items():
            truth = predictions[f"y_{label}"]
            assert metrics["auroc"]["value"] == pytest.approx(roc_auc_score(truth, predictions[f"p_{label}"]), abs=1e-12)
            for metric in ("auroc", "kappa", "accuracy"):
                text = number(metrics[metric])
                assert all(text in place for place in (printed, page, (run / "report.html").read_text(), again.stdout))
                for name in ("run", "other"):
                    found = rows.loc[(name, split, "study", label, metric)]
                    expected = pd.Series(metrics[metric]).drop(["reason", "delong"], errors="ignore").astype(float)
                    assert found[expected.index].to_list() == pytest.approx(expected.to_list(), abs=1e-12, nan_ok=True)
    assert rows.loc[("other", "test", "study", "macro", "auroc_minus_reference"), "value"] == 0
    assert "Synthetic sample" in page
    assert set(pd.read_csv(tmp_path / "both" / "differences.csv")["data"]) == {"synthetic sample"}


def test_several_runs_are_one_page_with_what_differs_and_their_differences(runs, tmp_path):
    good, poor = runs
    page = report(good, poor, output=tmp_path / "out").read_text()
    settings = page.split("What differs in their settings")[-1].split("</table>")[0]
    rows = {r[0]: r[1:] for r in (re.findall(r"<td>(.*?)</td>", line) for line in settings.split("<tr>")[2:])}
    assert rows == {"optimizer.lr": ["0.1", "0.2"], "head.hidden": ["[8]", "-"]}
    found = pd.read_csv(tmp_path / "out" / "differences.csv").set_index(["job", "split", "label", "metric"])
    assert set(found["reference"]) == {"a/r"}, "the ends of paths that tell them apart"
    assert set(found.index.get_level_values("job")) == {"b/r"}
    tables = [pd.read_csv(r / "predictions" / "test.csv").fillna({"patient": ""}) for r in (poor, good)]
    expected = compare(*map(PredictionTable, tables))["labels"]["acl"]
    row = found.loc[("b/r", "test", "acl", "auroc")].squeeze()
    assert row["difference"] == pytest.approx(expected["auroc"]["value"], abs=1e-5)
    assert row["p"] == pytest.approx(expected["auroc"]["delong"]["p"], rel=1e-2)
    assert row["p"] < 0.05
    assert row["delong_high"] < 0
    section = page.split('id="test-by-study"')[1].split("<h3>differences")[1]
    assert "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**expected["auroc"]) in section
    assert "not corrected for there being 1 and 1" in section
    assert "its lead is somewhat too large" in section
    assert {p.name for p in (tmp_path / "out" / "figures").iterdir()} == {
        "training.png", *(f"{split}_{kind}.png" for split in ("valid", "test") for kind in ("roc", "pr"))
    }  # fmt: skip
    assert page.count("<svg") == 5
    assert not re.search(r"<(script|link|iframe|img)\b|src=|url\(http", page), "it opens without a network"
    named = report(good, poor, reference=str(poor), output=tmp_path / "named").read_text()
    section = named.split('id="test-by-study"')[1]
    assert "{:+.3f}".format(-expected["auroc"]["value"]) in section
    assert "somewhat too large" not in section


def test_the_curves_that_are_laid_over_each_other_are_the_runs_own(runs, tmp_path, monkeypatch):
    """The area under each drawn line is the AUROC beside it."""
    import xraylab.reporting.run_report

    figures = []
    saved = xraylab.reporting.figures.export.save_figure
    monkeypatch.setattr(
        "xraylab.reporting.figures.export.save_figure", lambda f, path, s: (figures.append((path.name, f)), saved(f, path, s))
    )
    report(*runs, output=tmp_path / "out")
    figure = dict(figures)["test_roc.png"]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    for run, line, text in zip(runs, lines, words, strict=True):
        t = pd.read_csv(run / "predictions" / "test.csv")
        assert auc(line.get_xdata(), line.get_ydata()) == pytest.approx(roc_auc_score(t["y_acl"], t["p_acl"]), abs=1e-12)
        assert np.array_equal(line.get_xydata().T, curve("roc", t["y_acl"].to_numpy(), t["p_acl"].to_numpy()))
        assert f"AUROC {roc_auc_score(t['y_acl'], t['p_acl']):.3f} (" in text
        assert "n 120" in text


def of_another_study(run):
    """Call a study of each split by another id."""
    for split in ("valid", "test"):
        path = run / "predictions" / f"{split}.csv"
        path.write_text(path.read_text().replace(f"{split}0,", "another,"))


def test_runs_of_other_studies_are_shown_but_not_paired_and_it_is_said(runs, tmp_path):
    good, poor = runs
    of_another_study(poor)
    page = report(good, poor, output=tmp_path / "out").read_text()
    assert "Test: b/r is not paired with another run: runs a/r and b/r are of other studies: test0 only in a/r" in page
    assert not (tmp_path / "out" / "differences.csv").exists()
    assert page.count("<svg") == 5


def test_settings_that_results_do_not_depend_on_are_not_differences(runs):
    results, waiting = read_results(runs)
    assert waiting == []
    assert "<td>name</td>" not in configurations(results)
    assert configurations(results[:1]) == ""
    same = [results[0], results[0]._replace(job="again")]
    assert "Nothing" in configurations(same)


@pytest.mark.slow
def test_a_sweep_that_was_cut_off_is_completed_as_its_end_would_have(runs, tmp_path):
    folder = tmp_path / "sweeps" / "multirun" / "now"
    for k, run in enumerate(runs):
        shutil.copytree(run, folder / str(k))
    (folder / "2").mkdir()
    ensembles = {"mean_of_both": {"members": 2}}
    published = {"note": "someone", "rows": {"seed=0": {"acl": 0.912}}}
    write_comparison(folder, ensembles, published, ended=False)
    begun = (folder / "report.html").read_text()
    assert "More runs are to come" in begun
    assert "<svg" not in begun
    assert not (folder / "differences.csv").exists()
    recorded = (folder / "ensembles" / "mean_of_both" / "environment.json").read_text()
    report(folder)
    cut = (folder / "report.html").read_text()
    assert (folder / "ensembles" / "mean_of_both" / "environment.json").read_text() == recorded, "reading makes nothing anew"
    write_comparison(folder, ensembles, published)
    whole = (folder / "report.html").read_text()
    assert re.sub(r"f[0-9a-f]{8,}|<svg.*?</svg>", "", cut, flags=re.S) == re.sub(
        r"f[0-9a-f]{8,}|<svg.*?</svg>", "", whole, flags=re.S
    )
    assert "Job 2 failed" in whole
    assert "mean of 0, 1" in whole
    assert (folder / "ensembles" / "mean_of_both" / "report.html").is_file()
    page = report(folder, output=tmp_path / "out").read_text()
    assert "mean of both" in page
    assert set(pd.read_csv(tmp_path / "out" / "comparison.csv", dtype=str)["job"]) == {"0", "1", "mean of both"}


def rewrite(run, change):
    """Change a run's evaluation."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    change(evaluation)
    (run / "evaluation.json").write_text(json.dumps(evaluation))


def test_a_named_reference_is_used_or_it_is_said_why_not(runs, tmp_path):
    good, poor = runs

    def no_auroc(evaluation):
        for result in evaluation["splits"].values():
            result["macro"]["auroc"] |= {"value": None, "low": None, "high": None, "reason": "no positive study"}

    rewrite(poor, no_auroc)
    report(good, poor, reference=str(poor), output=tmp_path / "named")
    assert set(pd.read_csv(tmp_path / "named" / "differences.csv")["reference"]) == {"b/r"}
    (poor / "predictions" / "test.csv").unlink()
    page = report(good, poor, reference=str(poor), output=tmp_path / "half").read_text()
    assert "Test: nothing is compared with b/r, which has no predictions of it" in page
    assert set(pd.read_csv(tmp_path / "half" / "differences.csv")["split"]) == {"valid"}
    assert "Test: b/r not compared: there is no table predictions/test.csv" in report(*runs, output=tmp_path / "none").read_text()


def test_calls_are_compared_at_the_thresholds_that_each_chose_too(runs, tmp_path):
    """Models of other calibration: at 0.5 one calls nothing positive; at its own threshold it is as good as it ranks."""
    good, poor = runs
    for split in ("valid", "test"):
        t = pd.read_csv(good / "predictions" / f"{split}.csv", keep_default_na=False)
        t["p_acl"] /= 100
        PredictionTable(t).write(poor / "predictions" / f"{split}.csv")
    for run, cut in ((good, 0.4), (poor, 0.004)):
        point = {"kappa": {"labels": {"acl": {"threshold": cut}}}}
        rewrite(run, lambda e, point=point: [r.update(operating_points=point) for r in e["splits"].values()])
    page = report(good, poor, reference=str(good), output=tmp_path / "out").read_text()
    found = pd.read_csv(tmp_path / "out" / "differences.csv", dtype={"at": str}).set_index(["split", "metric", "at"])[
        "difference"
    ]
    assert found["test", "kappa", "0.5"] < -0.2
    assert found["test", "kappa", "kappa"] == 0
    assert found["test"]["auroc"].to_list() == [0]
    assert "chosen: kappa" in page


def test_what_is_not_alike_is_not_called_so(runs, tmp_path):
    """Other studies of the same number have no best; runs of one seed no spread; half-blank labels their own n."""
    good, poor = runs
    of_another_study(poor)
    for run in runs:
        rewrite(run, lambda e: [r["labels"].update(tear=r["labels"]["acl"]) for r in e["splits"].values()])
        for split in ("valid", "test"):
            t = pd.read_csv(run / "predictions" / f"{split}.csv", keep_default_na=False)
            PredictionTable(t.assign(p_tear=t["p_acl"], y_tear=t["y_acl"])).write(run / "predictions" / f"{split}.csv")
    page = report(good, poor, output=tmp_path / "out").read_text()
    assert "runs of other studies, so none is the best" in page
    copy = shutil.copytree(good, tmp_path / "c" / "r")
    page = report(good, copy, output=tmp_path / "two").read_text()
    assert "the best of ours bold" in page
    assert "over seeds" not in page


def test_the_printed_table_names_runs_that_it_has_not(runs, tmp_path, caplog):
    good, poor = runs
    rewrite(poor, lambda e: e["splits"].pop("test"))
    with caplog.at_level("INFO"):
        report(good, poor, output=tmp_path / "out")
    assert "without test by study, so in report.html only: b/r" in caplog.text


def test_a_folder_of_runs_that_is_no_multirun_is_left_as_it_is(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, run in enumerate(runs):
        shutil.copytree(run, tmp_path / "mrnet" / str(k))
    before = {p.name for p in (tmp_path / "mrnet").iterdir()}
    report(tmp_path / "mrnet")
    assert {p.name for p in (tmp_path / "mrnet").iterdir()} == before
    assert len(list((tmp_path / "outputs" / "report").glob("*/report.html"))) == 1


def test_mistakes_are_said(runs, tmp_path):
    good, poor = runs
    unfinished = shutil.copytree(good, tmp_path / "half")
    (unfinished / "evaluation.json").write_text("{")
    bare, broken = shutil.copytree(good, tmp_path / "bare"), shutil.copytree(good, tmp_path / "broken")
    (bare / "evaluation.json").write_text("{}")
    (broken / "config.yaml").write_text("a: [")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for words, options, said in [
        ([], {}, "runs=[]: name a run"),
        ([good, good], {}, "is there twice"),
        ([tmp_path / "nowhere"], {}, "is not a run directory"),
        ([unfinished, good], {}, "no evaluation.json that can be read"),
        ([unfinished], {}, "no evaluation.json that can be read"),
        ([good / "predictions" / "test.csv"], {}, "is a table. Make it a run first:\n  python -m xraylab.evaluate table="),
        ([good], {"reference": "x"}, "reference=x: it is for several runs"),
        ([good], {"output": tmp_path / "new"}, "it is for several runs; a run's report is written into the run"),
        ([good, poor], {"reference": "a/f"}, "reference=a/f: it is none of runs. Did you mean a/r? There are: a/r, b/r."),
        ([good, poor], {"output": tmp_path / "full"}, "the folder is not empty"),
        ([good, poor], {"output": tmp_path / "full" / "mine.txt"}, "cannot create the folder"),
        ([good, poor], {"output": tmp_path / "full" / "mine.txt" / "x"}, "cannot create the folder"),
        ([good, bare], {}, "no evaluation.json that can be read (it has no data, splits)"),
        ([good, broken], {}, "config.yaml: cannot be read"),
    ]:
        with pytest.raises(UserError) as stop:
            report(*words, **options)
        assert said in str(stop.value)
    assert not (tmp_path / "new").exists()
    for wrong in (None, 3):
        with pytest.raises(UserError, match="name a run, or several"):
            job(OmegaConf.create({"runs": wrong, "reference": None, "output": None}))


def test_a_run_that_was_stopped_is_shown_and_it_is_said(runs, tmp_path):
    good, poor = runs
    environment = json.loads((poor / "environment.json").read_text())
    (poor / "environment.json").write_text(json.dumps({**environment, "finished": False}))
    assert "was stopped before its end; it is shown as it is" in report(good, poor, output=tmp_path / "out").read_text()
