"""Chest X-rays from the command to the table: policies for uncertain labels in whole runs."""

from __future__ import annotations

import json
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assemble, run_job

import xraylab
from xraylab.config.resume import resumed_config
from xraylab.config.settings import check_config
from xraylab.errors import Stopped, UserError
from xraylab.run import run_of
from xraylab.train import train
from xraylab.training.callbacks.interrupt import StopOnInterrupt
from xraylab.training.data_checks import check_labels

SMALL = [
    "dataset=chexpert", "backbone=resnet18", "backbone.pretrained=false", "+backbone.kwargs.channels=[8,8,16,16]",
    "image.size=32", "optimizer.lr=1e-3", "bootstrap=0", "num_workers=0", "precision=32", "valid_fraction=0.3",
    "findings=competition", "early_stopping=null",
]  # fmt: skip


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(last(a)["state_dict"].values(), last(b)["state_dict"].values(), strict=True))


@pytest.mark.parametrize("view", ["frontal", "lateral", "all"])
def test_a_study_has_the_largest_probability_of_its_views(view, train_here, tmp_path, chexpert_root):
    run = train_here(tmp_path / "run", *SMALL, f"dataset.root={chexpert_root}", f"view={view}", "max_epochs=1")
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["splits"]["test"]["unit"] == "study"
    table = pd.read_csv(run / "predictions" / "test.csv").set_index("id")
    assert list(table.columns[-1:]) == ["data"]
    if view == "lateral":
        assert set(table["group"]) == {"lateral"}
        return
    images = pd.read_csv(run / "predictions" / "test_images.csv")
    assert len(images) > len(table)
    p = [c for c in images.columns if c.startswith("p_")]
    assert len(p) == 5
    pd.testing.assert_frame_equal(images.groupby("id")[p].max().loc[table.index], table[p], rtol=1e-5)
    assert ("lateral" in "".join(set(table["group"]))) == (view == "all")
    assert set(images["group"]) == ({"ap", "pa", "lateral"} if view == "all" else {"ap", "pa"})  # each image's own
    assert images.loc[images["image"].str.contains("lateral"), "group"].eq("lateral").all()


def test_raw_labels_travel_untouched_and_blank_ones_are_scored_only_when_told(train_here, tmp_path, chexpert_root):
    findings = "findings=[no_finding,edema,atelectasis]"
    run = train_here(tmp_path / "run", *SMALL, f"dataset.root={chexpert_root}", "max_epochs=1", findings)
    table = pd.read_csv(run / "predictions" / "valid.csv")
    values = set(np.unique(table.filter(like="y_").to_numpy(), equal_nan=True).tolist()) - {np.nan}
    assert {-1.0, 0.0, 1.0} <= values
    valid = json.loads((run / "evaluation.json").read_text())["splits"]["valid"]
    finding = valid["labels"]["no_finding"]
    assert finding["auroc"]["value"] is None
    assert finding["auroc"]["reason"] == "no negative study"
    assert "no_finding" not in valid["macro"]["auroc"]["labels"]
    assert finding["blank"]["value"] > 0
    run_job("evaluate", f"run={run}", "blank=negative")
    again = json.loads((run / "evaluation.json").read_text())["splits"]["valid"]["labels"]
    assert again["no_finding"]["auroc"]["value"] is not None
    assert again["no_finding"]["auroc"]["n"] == len(table)
    edema = table["y_edema"]
    assert valid["labels"]["edema"]["auroc"]["n"] == edema.isin([0, 1]).sum()
    assert again["edema"]["auroc"]["n"] == (edema != -1).sum()


@pytest.mark.slow
@pytest.mark.parametrize(("stop_at", "epochs"), [(2, 2), (8, 3)])
def test_what_is_learned_and_adapted_survives_a_stop(stop_at, epochs, compose, train_here, tmp_path, chexpert_root):
    """u learned by gradient, w adapted after each epoch: stopped in the first epoch, or a later one, and resumed."""
    options = [*SMALL, f"dataset.root={chexpert_root}", "loss.u=learned", "loss.w=adapted", "loss.u_lr=0.1",
               f"max_epochs={epochs}", "batch_size=16", "loss.held_back=0.2"]  # fmt: skip
    straight = train_here(tmp_path / "straight", *options, report=True)

    steps = 0
    after = StopOnInterrupt.on_train_batch_end

    def stop(self, *args):
        nonlocal steps
        steps += 1
        if steps == stop_at:
            signal.raise_signal(signal.SIGINT)
        after(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_train_batch_end", stop)
        with pytest.raises(Stopped):
            train_here(tmp_path / "stopped", *options)
    train(resumed_config(str(tmp_path / "stopped"), []), tmp_path / "stopped", [])
    assert same_weights(straight, tmp_path / "stopped")
    history = pd.read_csv(straight / "history.csv")
    pd.testing.assert_frame_equal(
        history.filter(regex="^[uw]/"), pd.read_csv(tmp_path / "stopped" / "history.csv").filter(regex="^[uw]/")
    )
    assert (history["w/edema"].iloc[0], history["u/edema"].iloc[0]) != (history["w/edema"].iloc[1], history["u/edema"].iloc[1])
    assert history.filter(regex="^w/").iloc[0].tolist() == [0.5] * 5
    assert len(set(history.filter(regex="^w/").iloc[-1])) > 1
    evaluation = json.loads((straight / "evaluation.json").read_text())
    assert evaluation["loss"]["policy"].startswith("uncertain labels: u=learned, w=adapted")
    assert {key.partition("/")[0] for key in evaluation["loss"]} == {"policy", "u", "w"}
    assert "u of uncertain labels, learned: atelectasis" in (straight / "report.html").read_text().lower()
    loss = xraylab.load(straight).loss
    assert loss.state(["a"] * 5)["u/a"] != 0.5


def test_w_is_adapted_on_a_part_of_train_that_shares_no_patient(compose, chexpert_root):
    job = assemble(compose(*SMALL, f"dataset.root={chexpert_root}", "loss.w=adapted", "loss.held_back=0.25"), [])
    frame = job.table.frame
    patients = {split: set(part["patient"]) for split, part in frame.groupby("split")}
    assert set(patients) == {"train", "held_back", "valid", "test"}
    for a in patients:
        for b in patients:
            assert a == b or not patients[a] & patients[b]
    assert len(patients["held_back"]) == pytest.approx(0.25 * len(patients["held_back"] | patients["train"]), abs=1)
    plain = assemble(compose(*SMALL, f"dataset.root={chexpert_root}", "loss.w=0.5"), [])
    for split in ("valid", "test"):  # whatever the loss
        assert set(frame.loc[frame["split"] == split, "id"]) == set(plain.table.part(split)["id"])
    trained = {id for batch in job.data.train_dataloader() for id in batch.ids}
    assert trained == set(frame.loc[frame["split"] == "train", "id"])
    held = {id for batch in job.data.loader("held_back") for id in batch.ids}
    assert held == set(frame.loc[frame["split"] == "held_back", "id"])
    for batch in job.data.loader("uncertain"):
        assert (batch.labels == -1).any(1).all()
        assert set(batch.ids) <= trained


@pytest.mark.slow
def test_self_training_is_one_command(command, tmp_path, chexpert_root, caplog):
    done = command("train", *SMALL, f"dataset.root={chexpert_root}", "loss=selftrained", "max_epochs=1", "view=all",
                   f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "a first model, which ignores uncertain labels, is trained in" in done.stdout + done.stderr
    first, run = tmp_path / "run" / "first", tmp_path / "run"
    given = pd.read_csv(first / "predictions" / "train.csv").set_index("id")
    job = assemble(resumed_config(str(run), []), [], fresh=False)
    batches = list(job.data.train_dataloader())
    assert any((batch.labels == -1).any() for batch in batches)
    for batch in batches:
        target, weight = job.module.loss.targets(batch.labels, batch.rows)
        expected = torch.from_numpy(given.loc[list(batch.ids), [f"p_{n}" for n in job.table.labels]].to_numpy(np.float32))
        uncertain = batch.labels == -1
        torch.testing.assert_close(target[uncertain], expected[uncertain])
        assert (weight == 1).all()  # unmentioned labels are negative
        certain = (batch.labels == 0) | (batch.labels == 1)
        assert torch.equal(target[certain], batch.labels[certain])
    moved = run.rename(tmp_path / "moved")  # the first model goes with its run
    train(resumed_config(str(moved), ["max_epochs=2"]), moved, ["max_epochs=2"])
    assert len(pd.read_csv(moved / "history.csv")) == 2
    caplog.set_level("INFO", "xraylab")
    run_job("evaluate", f"run={moved}")
    assert "the same numbers as before" in caplog.text


@pytest.mark.slow
def test_self_training_stopped_in_its_first_model_goes_on_there(compose, train_here, tmp_path, chexpert_root):
    options = [*SMALL, f"dataset.root={chexpert_root}", "loss=selftrained", "max_epochs=2"]
    whole = train_here(tmp_path / "whole", *options)
    after = StopOnInterrupt.on_train_batch_end

    def stop(self, trainer, *args):
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        after(self, trainer, *args)

    run = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_train_batch_end", stop)
        with pytest.raises(Stopped, match=f"(?s)while the first model was trained.*resume={run}"):
            train_here(run, *options)
    assert not (run / "config.yaml").exists()
    with pytest.raises(UserError, match=rf"(?s)stopped before its training began.*resume={run}"):
        run_of(run)
    train(resumed_config(str(run), []), run, [])
    assert same_weights(whole / "first", run / "first")
    assert same_weights(whole, run)


@pytest.mark.slow
def test_a_first_model_that_does_not_fit_is_refused(compose, train_here, tmp_path, chexpert_root):
    first = train_here(tmp_path / "first", *SMALL, f"dataset.root={chexpert_root}", "max_epochs=1", "loss=ignore")
    options = [*SMALL, f"dataset.root={chexpert_root}", "loss=selftrained", f"loss.first={first}"]
    with pytest.raises(UserError, match=r"there is no .*train.csv. Train that run with save_train_predictions=true"):
        assemble(compose(*options), [])
    first = train_here(
        tmp_path / "other", *SMALL, f"dataset.root={chexpert_root}", "max_epochs=1", "loss=ignore", "save_train_predictions=true"
    )
    assemble(compose(*options[:-1], f"loss.first={first}"), [])
    with pytest.raises(UserError, match=r"are not in it: .* The first model must be trained on the same split"):
        assemble(compose(*options[:-1], f"loss.first={first}", "split_seed=5"), [])
    fewer = [o for o in options if not o.startswith("loss.first")]
    saw_valid = train_here(
        tmp_path / "saw", *SMALL, f"dataset.root={chexpert_root}", "max_epochs=1", "loss=ignore", "save_train_predictions=true",
        "selection=official",
    )  # fmt: skip
    with pytest.raises(UserError, match="the data has other studies, or other splits, than when it was trained"):
        assemble(compose(*fewer, f"loss.first={saw_valid}"), [])
    with pytest.raises(UserError, match="no column p_fracture: the first model was trained for other findings"):
        assemble(compose(*options[:-1], f"loss.first={first}", "findings=[edema,fracture]"), [])


def test_a_first_model_of_another_command_is_not_taken(train_here, tmp_path, chexpert_root):
    options = [*SMALL, f"dataset.root={chexpert_root}", "loss=selftrained", "max_epochs=1"]
    run = train_here(tmp_path / "run", *options)
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"a first model is there already, of a command that differs in seed=1"):
        train_here(run, *options, "seed=1")


def test_labels_of_which_nothing_is_certain_are_said(compose, chexpert_root, caplog):
    options = [*SMALL, f"dataset.root={chexpert_root}"]
    with pytest.raises(UserError, match=r"resume=: .*"):
        check_config(compose("resume="))
    assemble(compose(*options, "loss=weighted_bce", "loss.balance=none"), [])
    assert "labels of images in train, this loss ignores" in caplog.text
    job = assemble(compose(*options, "loss=ones", "monitor=valid/loss", "findings=[edema]"), [])
    table = job.table
    table.frame.loc[table.frame["edema"].notna(), "edema"] = -1.0
    with pytest.raises(UserError, match="no label is scored: all are uncertain or not mentioned"):
        check_labels(table, [("monitor", "valid/loss")], job.settings.evaluate, "holdout")
    loss = job.module.loss
    loss.fit(table.label_values(), ("edema",))
    assert "no certain positive studies in train for edema: uncertain ones alone say so" in caplog.text


def test_a_learned_u_keeps_its_learning_rate(compose, chexpert_root):
    options = [*SMALL, f"dataset.root={chexpert_root}", "loss=learned"]
    with pytest.raises(UserError, match=r"loss.u_lr, which scheduler=onecycle would overwrite"):
        assemble(compose(*options, "scheduler=onecycle"), [])
    job = assemble(compose(*options, "loss.u_lr=0.03", "optimizer.weight_decay=0.1"), [])
    network, own = job.module.configure_optimizers().param_groups
    assert (network["lr"], own["lr"]) == (1e-3, 0.03)
    assert (network["weight_decay"], own["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in own["params"]] == [(5,)]


@pytest.mark.slow
def test_every_policy_runs_by_its_name_and_does_something_of_its_own(train_here, tmp_path, chexpert_root):
    found = {}
    for policy in (
        "ignore",
        "zeros",
        "ones",
        "zeros_smooth",
        "ones_smooth",
        "mixed",
        "multiclass",
        "focal",
        "asymmetric",
        "learned",
    ):
        run = train_here(tmp_path / policy, *SMALL, f"dataset.root={chexpert_root}", f"loss={policy}", "max_epochs=1")
        table = pd.read_csv(run / "predictions" / "test.csv").filter(like="p_")
        assert np.isfinite(table.to_numpy()).all()
        found[policy] = table.to_numpy().tobytes()
        assert json.loads((run / "evaluation.json").read_text())["splits"]["test"]["macro"]["auroc"]["value"] is not None
    assert len(set(found.values())) == len(found)
