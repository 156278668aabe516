"""Averaged weights, EMA and SWA: what is averaged, and what is chosen, kept and evaluated by it."""

from __future__ import annotations

import json
import signal

import pandas as pd
import pytest
import torch
from test_survive import SMALL, resume, same, weights
from test_training import QUICK

from xraylab.errors import Stopped, UserError
from xraylab.training.callbacks.interrupt import StopOnInterrupt
from xraylab.training.study_module import StudyModule


@pytest.mark.slow
def test_stochastic_weight_averaging_is_the_mean_of_its_steps(train_here, tmp_path, mrnet_root, monkeypatch):
    seen = []
    step = StudyModule.optimizer_step

    def watched(self, *args, **kwargs):
        step(self, *args, **kwargs)
        seen.append({k: v.detach().clone() for k, v in self.named_parameters()})

    options = [*SMALL, f"dataset.root={mrnet_root}", "max_epochs=3", "callbacks=swa", "callbacks.swa.start=2", "scheduler=none",
               "batch_size=2", "accumulate=2"]  # fmt: skip
    with pytest.raises(UserError, match=r"callbacks.swa.start=4, but max_epochs=3"):
        train_here(tmp_path / "x", *options, "callbacks.swa.start=4")
    monkeypatch.setattr(StudyModule, "optimizer_step", watched)
    whole = train_here(tmp_path / "whole", *options, report=True)
    last = weights(whole)
    for name in seen[0]:
        mean = torch.stack([s[name].double() for s in seen[8:]]).mean(0)
        torch.testing.assert_close(last[name].double(), mean, rtol=1e-4, atol=1e-6)
    evaluation = json.loads((whole / "evaluation.json").read_text())
    epoch = evaluation["checkpoint"]["epoch"]
    assert epoch >= 1, "the best is chosen among averages"
    assert evaluation["checkpoint"]["weights"] == f"averaged over {8 * epoch} steps (swa)"
    best = pd.read_csv(whole / "history.csv").set_index("epoch").loc[epoch]
    assert best["valid/macro/auroc"] == pytest.approx(evaluation["splits"]["valid"]["macro"]["auroc"]["value"])
    for page in ("report.html", "MODEL_CARD.md"):
        assert f"averaged over {8 * epoch} steps (swa)" in (whole / page).read_text()
    after = StopOnInterrupt.on_train_batch_end
    for at in (5, 11):  # before and after the mean begins
        run = tmp_path / str(at)

        def signalled(self, trainer, *args, at=at):
            if trainer.global_step == at:
                signal.raise_signal(signal.SIGTERM)
            after(self, trainer, *args)

        with monkeypatch.context() as patch:
            patch.setattr(StopOnInterrupt, "on_train_batch_end", signalled)
            with pytest.raises(Stopped):
                train_here(run, *options)
        resume(run)
        assert same(weights(run), last)
        assert same(weights(run, "best"), weights(whole, "best"))


@pytest.mark.slow
def test_early_stopping_counts_averages_alone_and_an_average_that_never_begins_is_said(
    train_here, compose, tmp_path, mrnet_root, caplog
):
    caplog.set_level("INFO")
    options = [*SMALL, f"dataset.root={mrnet_root}", "max_epochs=6", "callbacks=swa", "early_stopping.patience=1",
               "early_stopping.min_delta=9"]  # fmt: skip
    run = train_here(tmp_path / "two", *options, "callbacks.swa.start=2")
    assert len(pd.read_csv(run / "history.csv")) == 3, "the first average is no worse than none"
    assert "nothing was averaged" not in caplog.text
    run = train_here(tmp_path / "four", *options, "callbacks.swa.start=4")
    assert len(pd.read_csv(run / "history.csv")) == 2
    assert "callbacks.swa.start=4, but training ended after epoch 2: nothing was averaged" in caplog.text
    said = "of the step, not averaged: swa begins at epoch 4"
    assert json.loads((run / "evaluation.json").read_text())["checkpoint"]["weights"] == said
    assert f"weights {said}" in caplog.text
    two = [*options, "callbacks.swa.start=2", "+callbacks.ema._target_=pytorch_lightning.callbacks.EMAWeightAveraging"]
    with pytest.raises(UserError, match=r"callbacks\.ema: EMAWeightAveraging does not work here"):
        train_here(tmp_path / "both", *two)


def test_averaged_weights_are_what_is_evaluated_and_kept(train_here, tmp_path, mrnet_root):
    options = [*QUICK, f"dataset.root={mrnet_root}", "callbacks=ema", "callbacks.ema.decay=0.9"]
    run = train_here(tmp_path / "run", *options)
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert not same(checkpoint["state_dict"], checkpoint["current_model_state"])
    history = pd.read_csv(run / "history.csv").set_index("epoch")
    evaluation = json.loads((run / "evaluation.json").read_text())
    best = history.loc[evaluation["checkpoint"]["epoch"]]
    assert best["valid/macro/auroc"] == pytest.approx(evaluation["splits"]["valid"]["macro"]["auroc"]["value"])
