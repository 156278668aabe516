"""The notebooks that ship are executed."""

from __future__ import annotations

from ast import literal_eval
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, train_run

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
NOTEBOOKS = {path.stem: path for path in (REPOSITORY / "experiments" / "notebooks").glob("*.ipynb")}


@pytest.fixture(scope="module")
def run(tmp_path_factory, mrnet_root) -> Path:
    """A finished run, as notebooks find one."""
    words = ("max_epochs=1", "batch_size=4", f"dataset.root={mrnet_root}")
    return train_run(tmp_path_factory.mktemp("notebooks") / "run", *TINY, *words)


def executed(name: str, folder: Path, monkeypatch, **environment: object) -> list[str]:
    """What the cells of a notebook print as their value, in order."""
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "ships without outputs"
    assert "hydra" not in "".join(c.source for c in notebook.cells if c.cell_type == "code").lower()
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3").execute(cwd=folder)
    return [o.get("data", {}).get("text/plain", "") for c in notebook.cells for o in c.get("outputs", [])]


def test_each_notebook_is_executed_by_a_test():
    assert set(NOTEBOOKS) == {"load_and_train", "exam_and_maps", "own_trainer", "sweep_to_plot"}


@pytest.mark.slow
def test_a_model_is_loaded_and_trained_by_hand(run, tmp_path, monkeypatch):
    printed = executed("load_and_train", tmp_path, monkeypatch, XRAYLAB_RUN=run)
    assert any(p.startswith("{'acl': ") for p in printed)


@pytest.mark.slow
def test_an_exam_is_explained_by_shares_that_add_up(run, tmp_path, monkeypatch):
    printed = executed("exam_and_maps", tmp_path, monkeypatch, XRAYLAB_RUN=run)
    (shares,) = [literal_eval(p) for p in printed if p.startswith("{'sum'")]
    assert shares["sum"] == pytest.approx(shares["logit"], abs=1e-3)


@pytest.mark.slow
def test_an_own_trainer_trains_and_its_metrics_have_intervals(tmp_path, monkeypatch):
    printed = executed("own_trainer", tmp_path, monkeypatch)
    (metrics,) = [eval(p, {"nan": float("nan")}) for p in printed if "'valid/loss'" in p]
    (auroc,) = [eval(p, {"nan": float("nan")}) for p in printed if p.startswith("{'auroc'")]
    assert metrics["valid/loss"] > 0
    assert {"value", "low", "high", "n"} <= set(auroc["auroc"])


@pytest.mark.slow
def test_a_sweep_becomes_a_table_and_a_plot(tmp_path, monkeypatch):
    from omegaconf import OmegaConf
    from test_report import write_run

    from xraylab.report import job

    runs = [
        write_run(tmp_path / "sweep" / str(k), skill, 0, optimizer={"lr": 0.1 * (k + 1)}) for k, skill in enumerate((2.0, 0.7))
    ]
    job(OmegaConf.create({"runs": [str(r) for r in runs], "reference": None, "explain": False, "output": str(tmp_path / "both")}))
    printed = executed("sweep_to_plot", tmp_path, monkeypatch, XRAYLAB_SWEEP=tmp_path / "both")
    assert "optimizer.lr=0.1" in printed[0].splitlines()[1], "the best first"
    assert (tmp_path / "sweep.png").stat().st_size > 1000
