"""Dashboards: what they get, and that they never stop a run."""

from __future__ import annotations

import pandas as pd
from conftest import TINY

QUICK = [*TINY, "max_epochs=2", "batch_size=4", "log_every=2"]


def test_tensorboard_gets_losses_metrics_and_the_learning_rate(train_here, tmp_path, mrnet_root):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_here(tmp_path / "run", *QUICK, f"dataset.root={mrnet_root}", "logger=tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "valid/loss", "valid/acl/auroc", "lr", "train/running_loss"} <= tags
    assert [e.step for e in events.Scalars("train/running_loss")] == [2, 4, 6, 8, 10, 12, 14, 16]
    history = pd.read_csv(run / "history.csv")
    assert [round(e.value, 4) for e in events.Scalars("train/loss")] == history["train/loss"].round(4).tolist()


def test_wandb_records_offline_in_the_run_directory(train_here, tmp_path, mrnet_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train_here(tmp_path / "run", *QUICK, f"dataset.root={mrnet_root}", "logger=wandb")
    (record,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert b"running_loss" in record.read_bytes()
    import wandb

    assert wandb.run is None, "the next job of a sweep gets a run of its own"


def test_a_failing_dashboard_does_not_stop_a_run(train_here, tmp_path, mrnet_root, monkeypatch, caplog):
    import wandb

    def fail(*_, **__):
        raise wandb.errors.CommError("no network, no key")

    monkeypatch.setattr(wandb, "init", fail)
    run = train_here(tmp_path / "run", *QUICK, f"dataset.root={mrnet_root}", "logger=wandb")
    assert len(pd.read_csv(run / "history.csv")) == 2
    assert caplog.text.count("W&B is off for the rest of this run: no network, no key") == 1
