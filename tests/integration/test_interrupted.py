"""Runs that are interrupted within an epoch, or change what is trained, go on to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, train_run
from test_training import QUICK, same, weights

import xraylab
from xraylab.config.resume import resumed_config
from xraylab.errors import Stopped
from xraylab.train import train
from xraylab.training.callbacks.interrupt import StopOnInterrupt

UNFREEZE = [
    "backbone=resnet18",
    "+backbone.kwargs.channels=[8,8,16,16]",
    "backbone.trainable_from=head",
    "callbacks=unfreeze",
    "callbacks.unfreeze.at={2: layer4, 3: layer3}",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Runs that were not stopped, by what they add to the settings."""
    runs: dict[tuple[str, ...], Path] = {}

    def run(options, more):
        if more not in runs:
            runs[more] = train_run(tmp_path_factory.mktemp("whole") / "run", *options)
        return runs[more]

    return run


@pytest.mark.parametrize(
    ("at", "more"),
    [
        pytest.param(5, [], marks=pytest.mark.slow),
        pytest.param(8, [], marks=pytest.mark.slow),
        pytest.param(11, ["callbacks=ema", "callbacks.ema.decay=0.9"], marks=pytest.mark.slow),
        (11, UNFREEZE),
        pytest.param(16, UNFREEZE, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_weights(train_here, uninterrupted, tmp_path, mrnet_root, monkeypatch, at, more):
    """In the middle of an epoch and at its end; with augmentation, dropout, balance, plateau, Adam, averages, unfreezing."""
    options = [
        *QUICK,
        "max_epochs=3",
        "head.dropout=0.5",
        f"dataset.root={mrnet_root}",
        "scheduler.patience=0",
        "accumulate=2",
        "batch_size=2",
    ]
    options += [*more, "backbone.pretrained=false"]
    whole = uninterrupted(options, tuple(more))
    plain = StopOnInterrupt.on_train_batch_end

    def press(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == at:
            self.asked = True
        plain(self, trainer, pl_module, outputs, batch, batch_idx)

    directory = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_train_batch_end", press)
        with pytest.raises(Stopped, match="resume="):
            train_here(directory, *options)
    assert not json.loads((directory / "environment.json").read_text())["finished"]
    assert json.loads((directory / "evaluation.json").read_text())["splits"]["test"]["n"] == 30, "evaluates what there is"
    # a run may have been moved, and its pretrained weights be gone
    directory = directory.rename(tmp_path / "moved")
    train(resumed_config(str(directory), [f"resume={directory}"]), directory, [f"resume={directory}"])
    assert same(weights(directory), weights(whole))
    one, two = (
        pd.read_csv(d / "history.csv").drop(columns=["seconds", "studies_per_s", "images_per_s"]) for d in (whole, directory)
    )
    pd.testing.assert_frame_equal(one, two)
    a, b = (json.loads((d / "evaluation.json").read_text())["splits"] for d in (whole, directory))
    assert a == b


@pytest.mark.slow
def test_unfreezing_trains_what_it_names_from_its_epoch_on(train_here, tmp_path, mrnet_root, caplog):
    caplog.set_level("INFO")
    changed = {}
    before = None
    for epochs in (1, 2, 3):
        places = {1: [], 2: ["2: layer4"], 3: ["2: layer4", "3: layer3"]}[epochs]
        unfreeze = [*UNFREEZE[:4], f"callbacks.unfreeze.at={{{', '.join(places)}}}"] if places else UNFREEZE[:3]
        options = [*QUICK, *unfreeze, "backbone.pretrained=false", f"max_epochs={epochs}", f"dataset.root={mrnet_root}"]
        run = train_here(tmp_path / str(epochs), *options)
        after = weights(run)
        if before is not None:
            changed[epochs] = {k.split(".")[3] for k in after if "backbone" in k and not torch.equal(after[k], before[k])}
        before = after
    assert changed == {2: {"layer4"}, 3: {"layer3", "layer4"}}
    parameters = xraylab.load(run).named_parameters()
    expected = sum(p.numel() for name, p in parameters if "layer4" in name or "backbone" not in name)
    assert f"epoch 2: trainable from layer4 on: {expected:,} parameters" in caplog.text


@pytest.mark.slow
def test_ctrl_c_stops_after_the_step_and_prints_the_command_that_resumes(tmp_path, mrnet_root):
    directory = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "xraylab.train", *QUICK, "max_epochs=500", "num_workers=1", "early_stopping=null",
         f"dataset.root={mrnet_root}", f"hydra.run.dir={directory}"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (directory / "history.csv").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the readers get it too
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert f"resume={directory}" in err
    assert err.count("stopping after this step") == 1
    assert "Traceback" not in err
    assert "test (held out)" in out
    assert (directory / "report.html").exists()
