"""The report: one file, complete, honest about what it shows."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from conftest import TINY, compose_config

from xraylab.report import number, write_report
from xraylab.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory, mrnet_root):
    options = [*TINY, "max_epochs=1", "batch_size=4", f"dataset.root={mrnet_root}", "task=[acl,meniscus]"]
    cfg = compose_config(*options)
    directory = tmp_path_factory.mktemp("report") / "run"
    directory.mkdir()
    train(cfg, directory, options)
    return directory


def test_it_needs_no_network(run):
    page = (run / "report.html").read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert not {a for a in addresses if "w3.org" not in a and "stanford" not in a}, "name spaces are not fetched"
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    assert page.count("<svg") == 3


def test_it_shows_the_numbers_of_the_evaluation(run):
    page = (run / "report.html").read_text()
    splits = json.loads((run / "evaluation.json").read_text())["splits"]
    for result in splits.values():
        for metrics in result["labels"].values():
            assert number(metrics["auroc"]) in page
    assert "Synthetic sample: every number" in page
    assert "choices were made on these studies" in page
    assert "held out from all choices" in page
    assert "bootstrap resamples over studies" in page


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
    assert "acl auroc: no positive study" in page


def test_numbers():
    assert number({"value": 0.91234, "low": 0.9, "high": 1.0}) == "0.912 (0.900-1.000)"
    assert number({"value": None, "low": None, "high": None}) == "-"
    assert number({"value": 12, "low": None, "high": None}) == "12"
