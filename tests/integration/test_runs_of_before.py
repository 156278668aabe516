"""Runs that exist, those of ``fixtures/make.sh``: they are read, evaluated and gone on with as when they were made."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, run_job
from omegaconf import OmegaConf

import xraylab
from xraylab import combine
from xraylab.config.instantiate import build
from xraylab.run import BEGUN, read_begun, read_config
from xraylab.system.classes import MOVED, located, renamed

RUNS = ("study", "wandb", "tensorboard", "whole", "sweep/0", "sweep/3")
NEW = {"seconds", "studies_per_s", "images_per_s"}  # in every epoch otherwise


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The runs and their data. Do not change them."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(REPOSITORY / "tests" / "fixtures" / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def before(unpacked, tmp_path, monkeypatch) -> Path:
    """A copy of them, whose configurations say where it lies."""
    shutil.copytree(unpacked, tmp_path / "before")
    for file in (tmp_path / "before" / "runs").rglob("*.yaml"):
        file.write_text(file.read_text().replace("/home/user/fixtures", str(tmp_path / "before")))
    monkeypatch.chdir(tmp_path / "before")
    monkeypatch.setattr("xraylab.reporting.figures.export.svg", lambda *_: "")
    monkeypatch.setattr("xraylab.reporting.figures.export.save_figure", lambda *_: None)
    return tmp_path / "before"


def evaluation_of(run):
    return json.loads((run / "evaluation.json").read_text())


def same(found, expected, at="evaluation"):
    """Equal, but for what the last bits of a network's outputs may change on another machine."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for key in expected:
            same(found[key], expected[key], f"{at}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), at
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            same(a, b, f"{at}[{i}]")
    elif isinstance(expected, float):
        # bounds of these counted patients without a scored study when the runs were made
        wide = at.endswith((".low", ".high")) and ("average_precision" in at or "brier" in at)
        assert found == pytest.approx(expected, rel=2e-2 if wide else 1e-3, abs=1e-4), at
    else:
        assert found == expected, at


@pytest.mark.parametrize("name", RUNS)
def test_a_run_loads_and_predicts_its_table(unpacked, name, monkeypatch):
    monkeypatch.chdir(unpacked)
    run = unpacked / "runs" / name
    model = xraylab.load(run)
    rows = pd.read_csv("data/table.csv", dtype=str).set_index("id")
    table = pd.read_csv(run / "predictions" / "test.csv", dtype={"id": str})
    for row in table.head(4).to_dict("records"):
        images = [cv2.imread(f"data/{image}", cv2.IMREAD_UNCHANGED) for image in rows.loc[row["id"], "images"].split(";")]
        found = model.predict(np.stack(images))
        assert [found[label] for label in model.labels] == pytest.approx([row[f"p_{label}"] for label in model.labels], abs=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_evaluated_to_what_it_was(before, name):
    run = before / "runs" / name
    expected = evaluation_of(run)
    run_job("evaluate", f"run={run}", "accelerator=cpu")
    found = evaluation_of(run)
    del found["evaluated"]  # when
    same(found, expected)


def test_tables_of_a_run_are_evaluated_to_the_same_bytes(before):
    run = before / "runs" / "study"
    expected = evaluation_of(run)
    run_job("evaluate", f"table={run / 'predictions' / 'test.csv'}", "output=again")
    again = evaluation_of(before / "again")["splits"]["test"]
    for label in ("nodule", "effusion"):
        for metric, of in expected["splits"]["test"]["labels"][label].items():
            assert json.dumps(again["labels"][label][metric]) == json.dumps(of), (label, metric)


def test_a_stopped_run_goes_on_as_one_that_was_not(before):
    stopped, whole = before / "runs" / "stopped", before / "runs" / "whole"
    epochs = len(pd.read_csv(stopped / "history.csv")) + 2
    shutil.rmtree(before / "again", ignore_errors=True)
    from xraylab.train import config_to_run, train

    words = [f"resume={stopped}", f"max_epochs={epochs}"]
    cfg = OmegaConf.create({"resume": str(stopped), "accelerator": {}})
    train(config_to_run(cfg, stopped, words), stopped, words)
    found, expected = (pd.read_csv(run / "history.csv").drop(columns=list(NEW)) for run in (stopped, whole))
    assert len(found) == epochs
    numbers = expected.select_dtypes("number").columns
    np.testing.assert_allclose(found[numbers], expected[numbers].head(epochs), rtol=1e-2, atol=1e-3)
    assert json.loads((stopped / "environment.json").read_text())["finished"]


def test_a_run_is_reported_compared_and_combined_again(before, here):
    sweep = before / "runs" / "sweep"
    expected = (sweep / "comparison.csv").read_bytes()
    (sweep / "comparison.csv").unlink()
    run_job("report", f"runs={sweep}")
    assert (sweep / "comparison.csv").read_bytes() == expected
    code, said = here("runs=[" + ",".join(f"before/runs/sweep/{k}" for k in "0123") + "]", "method=stack",
                      "hydra.run.dir=before/stack", entry=combine.main)  # fmt: skip
    assert code == 0, said
    made = [pd.read_csv(folder / "predictions" / "test.csv") for folder in (before / "stack", sweep / "ensembles" / "stack")]
    pd.testing.assert_frame_equal(*made)
    run_job("report", f"runs={before / 'runs' / 'study'}")
    assert "Synthetic sample" in (before / "runs" / "study" / "report.html").read_text()


def test_every_class_that_a_run_names_is_found(unpacked):
    for run in (unpacked / "runs").glob("**/config.yaml"):
        if "ensembles" in run.parts:
            continue
        config = read_config(run.parent)
        begun = read_begun(run.parent)["config"] if (run.parent / BEGUN).is_file() else {}
        assert all(located(begun[group]["_target_"]) for group in ("backbone", "pool", "loss", "dataset") if begun)
        for group in ("backbone", "pool", "loss", "dataset"):
            assert located(config[group]._target_).__name__ == config[group]._target_.rpartition(".")[2]
        assert type(build(config.pool, "pool")).__module__.startswith("xraylab.models")
    for module, face in MOVED.items():
        assert renamed(f"{module}.Name") == f"{face}.Name"
        assert face.startswith("xraylab.")
