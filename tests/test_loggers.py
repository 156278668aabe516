"""Dashboards: what they get, and that they never stop a run."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from matplotlib.image import imread

QUICK = [*TINY, "max_epochs=2", "batch_size=4", "log_every=2"]


def test_tensorboard_gets_losses_metrics_and_the_learning_rate(train_here, tmp_path, mrnet_root):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_here(tmp_path / "run", *QUICK, f"dataset.root={mrnet_root}", "logger=tensorboard", report=True)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "valid/loss", "valid/acl/auroc", "lr", "train/running_loss"} <= tags
    assert [e.step for e in events.Scalars("train/running_loss")] == [2, 4, 6, 8, 10, 12, 14, 16]
    history = pd.read_csv(run / "history.csv")
    assert [round(e.value, 4) for e in events.Scalars("train/loss")] == history["train/loss"].round(4).tolist()
    # after the evaluation
    assert set(events.Tags()["images"]) == {
        f"{split}/{kind}" for split in ("valid", "test") for kind in ("roc", "pr", "calibration")
    }
    height, width, _ = imread(run / "figures" / "test_roc.png").shape
    (picture,) = events.Images("test/roc")
    assert (picture.height, picture.width) == (height, width)
    evaluation = json.loads((run / "evaluation.json").read_text())
    (sent,) = events.Scalars("test/macro/auroc")
    assert sent.value == pytest.approx(evaluation["splits"]["test"]["macro"]["auroc"]["value"])
    assert sent.step == picture.step == evaluation["checkpoint"]["step"]


def test_wandb_records_offline_in_the_run_directory(train_here, tmp_path, mrnet_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train_here(tmp_path / "run", *QUICK, f"dataset.root={mrnet_root}", "logger=wandb", report=True)
    (record,) = run.glob("wandb/offline-run-*/run-*.wandb")
    import wandb

    for _ in range(100):  # wandb's own process writes the record, on a busy machine a moment after finish
        recorded = record.read_bytes()
        if b"best/valid/macro/auroc" in recorded:
            break
        time.sleep(0.1)
    evaluation = json.loads((run / "evaluation.json").read_text())
    for sent in ("test/acl/auroc", "best/valid/macro/auroc"):
        split, name, metric = sent.removeprefix("best/").split("/")
        result = evaluation["splits"][split]
        value = {**result["labels"], "macro": result["macro"]}[name][metric]["value"]
        assert re.search(rf"{sent}.{{1,8}}{re.escape(json.dumps(value))}".encode(), recorded, re.S), sent
    for key in ("valid/roc", "valid/pr", "test/roc", "test/pr"):
        (file,) = record.parent.glob(f"files/media/images/{key}_*.png")
        np.testing.assert_array_equal(imread(file), imread(run / "figures" / f"{key.replace('/', '_')}.png"))
        assert f"media/images/{key}_".encode() in recorded
    assert wandb.run is None, "the next job of a sweep gets a run of its own"


def test_a_failing_dashboard_does_not_stop_a_run(train_here, tmp_path, mrnet_root, monkeypatch, caplog):
    import wandb

    def fail(*_, **__):
        raise wandb.errors.CommError("no network, no key")

    monkeypatch.setattr(wandb, "init", fail)
    run = train_here(tmp_path / "run", *QUICK, f"dataset.root={mrnet_root}", "logger=wandb", report=True)
    assert len(pd.read_csv(run / "history.csv")) == 2
    assert caplog.text.count("W&B is off for the rest of this run: no network, no key") == 1


def test_a_run_that_fails_leaves_no_dashboard_open(train_here, tmp_path, mrnet_root, monkeypatch):
    import wandb

    from xraylab import training

    def fail(*_, **__):
        raise RuntimeError("no more")

    monkeypatch.setattr(training, "evaluate_run", fail)
    with pytest.raises(RuntimeError, match="no more"):
        train_here(tmp_path / "run", *QUICK, "max_epochs=1", f"dataset.root={mrnet_root}", "logger=wandb")
    assert list(tmp_path.glob("run/wandb/offline-run-*"))
    assert wandb.run is None
