"""Sweeps: grid, random, TPE, resuming, pruning, launchers, and what is said at the end."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from xraylab.journal import Journal
from xraylab.train import main

optuna = pytest.importorskip("optuna", reason="sweep.method=random and tpe need the extra sweeps")

QUICK = [
    "backbone=cnn", "backbone.layers=2", "backbone.filters=4", "image.size=16", "bootstrap=0", "cases=0",
    "num_workers=0", "precision=32", "max_epochs=1", "cache=off",
]  # fmt: skip


@pytest.fixture
def sweep_here(tmp_path, monkeypatch, capsys, mrnet_root):
    """A command line of train in this process: ``sweep_here(*words)``; its exit code, what it printed, and the sweep's folder."""

    def run(*words, options=(f"dataset.root={mrnet_root}", *QUICK)):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train", *words, *options])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        said = capsys.readouterr()
        folders = sorted(Path("outputs").glob("*/multirun/*"), key=lambda p: p.stat().st_mtime)
        return code, said.out + said.err, folders[-1] if folders else None

    return run


def test_tpe(sweep_here):
    code, said, folder = sweep_here("-m", "sweep.method=tpe", "sweep.trials=3", "optimizer.lr=tag(log,interval(1e-5,1e-2))", "batch_size=1,2")
    print(said)
    print((folder / "sweep.json").read_text())
    assert code == 0
