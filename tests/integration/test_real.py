"""Real X-rays, where XRAYLAB_REAL names a folder with pneumoniamnist.npz."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

FILE = Path(os.environ.get("XRAYLAB_REAL", "")) / "pneumoniamnist.npz"


@pytest.mark.skipif(not FILE.is_file(), reason="XRAYLAB_REAL does not name a folder with pneumoniamnist.npz")
def test_a_minute_of_the_recipe_learns_real_x_rays(train_here, tmp_path):
    run = train_here(
        tmp_path / "run", "experiment=pneumoniamnist", f"dataset.root={FILE}", "max_epochs=3", "bootstrap=100",
        "+backbone.kwargs.channels=[16,32,64,128]", "callbacks.ema.decay=0.95",
    )  # fmt: skip
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["data"] == "pneumoniamnist"
    test = evaluation["splits"]["test"]
    assert (test["n"], test["labels"]["pneumonia"]["positives"]["value"]) == (624, 390)
    assert evaluation["splits"]["valid"]["labels"]["pneumonia"]["auroc"]["value"] > 0.95
