"""The notebook that ships is executed."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY, TINY

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
NOTEBOOKS = sorted((REPOSITORY / "experiments" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, train_here, tmp_path, mrnet_root, monkeypatch):
    run = train_here(tmp_path / "run", *TINY, "max_epochs=1", "batch_size=4", f"dataset.root={mrnet_root}")
    monkeypatch.setenv("XRAYLAB_RUN", str(run))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "ships without outputs"
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3").execute(cwd=tmp_path)
    printed = [o.get("data", {}).get("text/plain", "") for c in notebook.cells for o in c.get("outputs", [])]
    assert any(p.startswith("{'acl': ") for p in printed)
    assert "hydra" not in "".join(c.source for c in notebook.cells if c.cell_type == "code").lower()
