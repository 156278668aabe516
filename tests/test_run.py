"""The run directory as an object."""

from __future__ import annotations

import tarfile

import pandas as pd
import pytest
from conftest import REPOSITORY

import xraylab
from xraylab.errors import UserError
from xraylab.run import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(REPOSITORY / "tests" / "fixtures" / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "runs"


def test_a_run_tells_what_lies_in_it(runs):
    run = xraylab.Run.open(runs / "study")
    assert run == Run.open(run.checkpoint("best"))
    assert run.checkpoint("last").is_file()
    table = pd.read_csv(run.predictions("test"))
    assert run.evaluation["splits"]["test"]["n"] == len(table)
    assert run.predictions("test", "image").name == "test_images.csv"
    assert run.finished
    assert run.config.dataset._target_ == "xraylab.data.CsvTable", "as it is called today"
    assert len(pd.read_csv(run.history_file)) == run.config.max_epochs
    assert any(word.startswith("dataset=") for word in run.words)


def test_a_run_that_was_stopped_is_not_finished_and_what_is_damaged_is_named(runs, tmp_path):
    stopped = Run.open(runs / "stopped")
    assert not stopped.finished
    with pytest.raises(UserError, match=r"no evaluation.json that can be read"):
        _ = Run(tmp_path).evaluation
    assert Run(tmp_path).environment == {}
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"no environment.json that can be read"):
        _ = Run(tmp_path).finished
    with pytest.raises(UserError, match=r"is not a run directory: it has no config\.yaml"):
        Run.open(tmp_path)
