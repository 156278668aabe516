"""The report: one file, complete, honest about what it shows."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, train_run
from PIL import Image

from xraylab.evaluation.ensembles.combination import IN_SAMPLE
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.metrics import number
from xraylab.evaluation.operating_points import judge
from xraylab.evaluation.predictions import PredictionTable
from xraylab.reporting import sections
from xraylab.reporting.run_report import write_report
from xraylab.reporting.summary import closing_table


@pytest.fixture(scope="module")
def run(tmp_path_factory, mrnet_root):
    options = [*TINY, "max_epochs=1", "batch_size=4", f"dataset.root={mrnet_root}", "task=[acl,meniscus]"]
    return train_run(tmp_path_factory.mktemp("report") / "run", *options, report=True)


def test_it_needs_no_network(run):
    page = (run / "report.html").read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert not {a for a in addresses if "w3.org" not in a and "stanford" not in a}, "name spaces are not fetched"
    assert not re.search(r"<(script|link|iframe)\b|<img(?! alt=\"[^\"]*\" src=\"data:image/png;base64,)", page)
    assert page.count("<svg") == 5, "curves and calibration of two splits, and the training's"


def test_it_shows_the_numbers_of_the_evaluation(run):
    page = (run / "report.html").read_text()
    splits = json.loads((run / "evaluation.json").read_text())["splits"]
    for result in splits.values():
        for metrics in result["labels"].values():
            assert number(metrics["auroc"]) in page
    data = page.split('<h2 id="data">Data</h2>')[1].split("<h2")[0]
    trained = json.loads((run / "evaluation.json").read_text())["trained_on"]
    for label, of in trained["labels"].items():
        assert f"<td>train</td><td>{label}</td><td>{of['positives']}</td><td>{of['negatives']}</td><td>0</td><td>0</td>" in data
        assert of["positives"] + of["negatives"] == trained["n"]
    for split, result in splits.items():
        assert f"<td>{split}</td><td>{result['n']}</td><td>not known</td>" in data
    assert "Synthetic sample: every number" in page
    assert "choices were made on these studies" in page
    assert "held out from all choices" in page
    assert "95% intervals over studies, in closed form" in page


def test_what_changes_how_numbers_are_read_stands_before_them(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    evaluation = json.loads((copy / "evaluation.json").read_text())
    evaluation["scored"] = {"blank": "negative", "uncertain": "ignore"}
    stack = {"method": "stack", "names": [], "in_sample": True, "fit_on": "train", "folds": 5, "labels": {}}
    evaluation |= {"combination": stack, "members": {}}
    (copy / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_report(copy).read_text()
    before = page.split("<main>")[0]
    for caveat in ("labels that are not mentioned are scored as negative", IN_SAMPLE):
        assert f"<b>{caveat[0].upper()}{caveat[1:]}.</b>" in before
        assert caveat in closing_table(evaluation, copy, "1 s").split("by study")[0]


def test_real_data_is_not_called_synthetic_and_undefined_is_said(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    evaluation = json.loads((copy / "evaluation.json").read_text())
    evaluation["data"] = "MRNet-v1.0"
    for m in ("auroc", "average_precision"):
        evaluation["splits"]["test"]["labels"]["acl"][m] |= {
            "value": None,
            "low": None,
            "high": None,
            "reason": "no positive study",
        }
    (copy / "evaluation.json").write_text(json.dumps(evaluation))
    write_report(copy)
    page = (copy / "report.html").read_text()
    assert "Synthetic" not in page
    assert "acl auroc, average precision: no positive study" in page


def test_numbers():
    assert number({"value": 0.91234, "low": 0.9, "high": 1.0}) == "0.912 (0.900-1.000)"
    assert number({"value": None, "low": None, "high": None}) == "-"
    assert number({"value": 12, "low": None, "high": None}) == "12"


def test_the_curves_are_files_too_and_marked(run):
    for name in ("valid_roc", "valid_pr", "test_roc", "test_pr"):
        with Image.open(run / "figures" / f"{name}.png") as picture:
            assert picture.info["Description"] == "synthetic sample"
    assert "<th>uncertain</th>" not in (run / "report.html").read_text().split("by study")[1], "a column of zeros says nothing"


def test_it_shows_operating_points_and_calibration(run):
    page = (run / "report.html").read_text()
    chosen = json.loads((run / "operating_points.json").read_text())["labels"]
    splits = json.loads((run / "evaluation.json").read_text())["splits"]
    for split, result in splits.items():
        for name, point in result["operating_points"].items():
            for label, found in point["labels"].items():
                counts = "".join(f"<td>{found['confusion'][c]}</td>" for c in ("tp", "fp", "fn", "tn"))
                assert f"<td>{found['threshold']:.4f}</td><td>{name}</td><td>{number(found['sensitivity'])}</td>" in page
                assert f"{counts}<td>{found['kappa']['n']}</td>" in page
                assert name == "0.5" or found["threshold"] == chosen[label]["thresholds"][name]["value"]
        for found in result["calibration"]["labels"].values():
            assert f"<td>{number(found['ece'])}</td><td>{number(found['brier'])}</td>" in page
        with Image.open(run / "figures" / f"{split}_calibration.png") as picture:
            assert picture.info["Description"] == "synthetic sample"
    assert "the numbers of chosen thresholds are too good" in page
    card = (run / "MODEL_CARD.md").read_text()
    assert number(splits["test"]["labels"]["acl"]["auroc"]) in card
    assert "| train | 32 | not known | trained on |" in card


def test_a_page_of_fourteen_findings(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    rng = np.random.default_rng(0)
    n, labels = 4000, [f"finding {k}" for k in range(14)]
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "patient": [f"p{i // 2}" for i in range(n)]})
    frame["group"], frame["split"] = "frontal", "test"
    for k, label in enumerate(labels):
        truth = (rng.random(n) < 0.03 * k).astype(float)
        frame[f"p_{label}"] = 1 / (1 + np.exp(-rng.normal(truth * 1.5, 1)))
        frame[f"y_{label}"] = np.where(rng.random(n) < 0.1, -1, np.where(rng.random(n) < 0.2, np.nan, truth))
    evaluation = json.loads((copy / "evaluation.json").read_text())
    splits = {"test": evaluate_split(PredictionTable(frame), False, 10)}
    judge(splits, {"test": PredictionTable(frame)})
    evaluation |= {"splits": splits, "data": "CheXpert-v1.0"}
    (copy / "evaluation.json").write_text(json.dumps(evaluation))
    PredictionTable(frame).write(copy / "predictions" / "test.csv")
    page = write_report(copy).read_text()
    assert len(page) < 3_000_000
    assert page.count("<svg") == 4, "two pictures of small panels, the calibration, and the training's"
    assert "<th>uncertain</th><th>blank</th>" in page
    assert "over 13 of 14 findings, without finding 0 (no positive study)." in page
    with Image.open(copy / "figures" / "test_roc.png") as picture:
        assert picture.info.get("Description", "") == ""
        assert picture.height > 1000
    closing = closing_table(evaluation, copy, "1 s").splitlines()
    assert sum(line.split()[:1] == ["finding"] for line in closing) == 14


def test_a_module_of_sections_without_a_section_is_no_silent_loss(tmp_path, monkeypatch):
    (tmp_path / "forgotten.py").write_text("SECTIONS = []\n")
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path)])
    with pytest.raises(AttributeError, match=r"xraylab\.reporting\.sections\.forgotten' has no attribute 'SECTION'"):
        sections.sections()
