"""Maps of a run's cases: drawn when the report is asked for them, shown with what each image adds, and gone with their cases."""

from __future__ import annotations

import re
import shutil

import cv2
import pandas as pd
import pytest
from conftest import TINY, run_job, train_run

from xraylab.errors import UserError
from xraylab.inference.cases import FOLDER


@pytest.fixture(scope="module")
def run(tmp_path_factory, mura_root):
    """A run on bone X-rays with some cases."""
    words = (*TINY, "dataset=mura", f"dataset.root={mura_root}", "backbone=resnet18", "max_epochs=1", "batch_size=8", "cases=4")
    return train_run(tmp_path_factory.mktemp("cases") / "run", *words)


def test_a_report_shows_maps_of_its_cases_only_when_asked(run):
    run_job("report", f"runs={run}")
    assert "Maps of cases" not in (run / "report.html").read_text()
    run_job("report", f"runs={run}", "explain=true")
    cases = pd.read_csv(run / FOLDER / "cases.csv", dtype=str)
    found = pd.read_csv(run / FOLDER / "maps.csv", dtype=str)
    assert found[["label", "kind", "id"]].equals(cases[["label", "kind", "id"]])
    page = (run / "report.html").read_text()
    section = page.split("<h2")[1:]
    (section,) = [part for part in section if "Maps of cases" in part.split("</h2>")[0]]
    assert "synthetic sample" in section
    alts = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64', section)
    assert len(alts) == len(cases) > 0
    for alt, case in zip(alts, found.to_dict("records"), strict=True):
        assert alt == f"{case['id']}: {case['what']}"
        assert re.search(r"image \d of \d adds [+-]0\.\d{3} of the probability 0\.\d{3}; ", alt)
    drawn = [cv2.imread(str(run / FOLDER / name)) for name in found["picture"]]
    assert any((picture[..., 0] != picture[..., 2]).any() for picture in drawn), "something is coloured"


def test_a_case_says_what_explain_says(run, tmp_path):
    run_job("report", f"runs={run}", "explain=true")
    run_job("explain", f"run={run}", "input=test", "limit=null", f"output={tmp_path / 'why'}", "finding=abnormal")
    shares = pd.read_csv(tmp_path / "why" / "explanations.csv", dtype={"study": str}).groupby("study")["share"].max()
    for case in pd.read_csv(run / FOLDER / "maps.csv", dtype=str).to_dict("records"):
        assert f"adds {shares[case['id']]:+.3f} of" in case["what"]


def test_what_has_no_cases_is_refused(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(other / FOLDER)
    with pytest.raises(UserError, match="has no cases with pictures"):
        run_job("report", f"runs={other}", "explain=true")
    with pytest.raises(UserError, match="it is for one run"):
        run_job("report", f"runs=[{run},{other}]", "explain=true")
    with pytest.raises(UserError, match="it is true or false"):
        run_job("report", f"runs={run}", "explain=often")
