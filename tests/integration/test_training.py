"""Runs from end to end: learning, what they leave, and the identities that make them trustworthy."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, TINY, run_job
from omegaconf import OmegaConf

import xraylab
from xraylab.config.resume import resumed_config
from xraylab.errors import UserError
from xraylab.run import read_begun, read_config
from xraylab.train import train
from xraylab.training import experiment

QUICK = [*TINY, "max_epochs=2", "batch_size=4", "optimizer.lr=1e-4", "image.size=64"]


def weights(directory: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(directory / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mrnet_root):
    """A finished run on two labels, made by the command."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "xraylab.train", *QUICK, "task=[acl,abnormal]", f"dataset.root={mrnet_root}",
         f"hydra.run.dir={directory}", "save_top_k=2", "save_train_predictions=true"],
        cwd=tmp_path_factory.mktemp("cwd"), capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return directory, done.stdout


def test_the_main_job_learns_the_sample(command, tmp_path):
    """The command as people type it, in an empty folder, without data, account or network."""
    done = command("train", "dataset=mrnet", "plane=axial", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC SAMPLE" in done.stdout
    (run,) = (tmp_path / "outputs" / "mrnet").iterdir()
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["data"] == "synthetic sample"
    auroc = evaluation["splits"]["test"]["labels"]["acl"]["auroc"]
    assert auroc["value"] >= 0.90
    assert auroc["low"] < auroc["value"] <= auroc["high"], "of a perfect ranking too"
    assert min(evaluation["splits"]["test"]["labels"]["acl"][c]["value"] for c in ("positives", "negatives")) >= 15
    for path in run.rglob("*"):
        if path.is_file() and path.suffix != ".ckpt" and not path.name.startswith("."):
            assert b"synthetic sample" in path.read_bytes().lower(), path.name
    assert xraylab.load(run).data == "synthetic sample"


def test_a_run_leaves_the_files_of_the_design(finished):
    directory, _ = finished
    for name in (
        "config.yaml", "environment.json", "history.csv", "report.html", "model_summary.txt", "evaluation.json",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "predictions/valid.csv", "predictions/test.csv", "predictions/train.csv", "operating_points.json", "MODEL_CARD.md",
        "figures/cases/cases.csv",
    ):  # fmt: skip
        assert (directory / name).stat().st_size > 0, name
    assert not list(directory.rglob("*.partial"))
    assert len(list((directory / "checkpoints").glob("epoch*.ckpt"))) == 2
    history = pd.read_csv(directory / "history.csv")
    assert list(history.columns[:10]) == [
        "epoch", "step", "lr", "train/loss", "valid/loss", "valid/acl/auroc", "valid/abnormal/auroc", "valid/macro/auroc",
        "seconds", "studies_per_s",
    ]  # fmt: skip
    assert history["epoch"].tolist() == [0, 1]
    assert history["step"].tolist() == [8, 16]
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment["finished"]
    assert environment["seconds"] > 0
    config = OmegaConf.load(directory / "config.yaml")
    assert Path(config.dataset.root).is_absolute()
    assert config.batch_size == 4


def test_tables_hold_every_study_of_their_split_once(finished, mrnet_root):
    directory, _ = finished
    parts = [pd.read_csv(directory / "predictions" / f"{s}.csv", dtype={"id": str}) for s in ("train", "valid", "test")]
    assert list(parts[2].columns) == [
        "id", "patient", "group", "split", "p_acl", "p_abnormal", "y_acl", "y_abnormal", "logit_acl", "logit_abnormal", "data",
    ]  # fmt: skip
    assert (parts[2]["data"] == "synthetic sample").all()
    assert [len(p) for p in parts] == [32, 8, 30]
    ids = pd.concat(parts)["id"]
    assert ids.is_unique
    assert len(ids) == 70
    truth = dict(line.split(",") for line in (mrnet_root / "valid-acl.csv").read_text().split())
    assert parts[2].set_index("id")["y_acl"].astype(str).to_dict() == truth


def test_the_loaded_best_model_predicts_what_the_table_says(finished, mrnet_root):
    directory, _ = finished
    model = xraylab.load(directory)
    table = pd.read_csv(directory / "predictions" / "test.csv", dtype={"id": str}).set_index("id")
    exam = np.load(mrnet_root / "valid" / "axial" / "0050.npy")
    assert model.predict(exam)["acl"] == pytest.approx(table.loc["0050", "p_acl"], abs=1e-5)


def test_a_loaded_model_brings_its_thresholds_and_calibrates_on_request(finished, mrnet_root, tmp_path):
    directory, _ = finished
    points = json.loads((directory / "evaluation.json").read_text())["splits"]["test"]["operating_points"]
    copy = tmp_path / "run"
    (copy / "checkpoints").mkdir(parents=True)
    shutil.copy(directory / "checkpoints" / "best.ckpt", copy / "checkpoints")
    exam = np.load(mrnet_root / "valid" / "axial" / "0050.npy")
    with pytest.raises(UserError, match="calibrate: no temperature is known"):
        xraylab.load(copy).predict(exam, calibrate=True)
    chosen = json.loads((directory / "operating_points.json").read_text())
    assert chosen["labels"]["acl"]["thresholds"]["youden"]["value"] == points["youden"]["labels"]["acl"]["threshold"]
    chosen["labels"]["acl"]["temperature"] = {"value": 2.0, "reason": None}
    chosen["labels"]["abnormal"]["temperature"] = {"value": 0.5, "reason": None}
    (copy / "operating_points.json").write_text(json.dumps(chosen))
    model = xraylab.load(copy / "checkpoints" / "best.ckpt")
    assert model.operating == chosen
    plain, calibrated = model.predict(exam), model.predict(exam, calibrate=True)
    for label, t in (("acl", 2.0), ("abnormal", 0.5)):
        assert calibrated[label] == pytest.approx(1 / (1 + (1 / plain[label] - 1) ** (1 / t)))
    chosen["labels"]["abnormal"]["temperature"] = {"value": None, "reason": "validation has one class only"}
    (copy / "operating_points.json").write_text(json.dumps(chosen))
    with pytest.raises(UserError, match=r"no temperature for abnormal \(validation has one class only\)"):
        xraylab.load(copy).predict(exam, calibrate=True)
    chosen["checkpoint"]["step"] += 1
    (copy / "operating_points.json").write_text(json.dumps(chosen))
    assert xraylab.load(copy).operating == {}, "those of another checkpoint"


@pytest.mark.slow
def test_evaluate_chooses_thresholds_anew_and_sets_readers_beside(finished, command, tmp_path):
    directory, _ = finished
    run = shutil.copytree(directory, tmp_path / "run")
    test = pd.read_csv(run / "predictions" / "test.csv", dtype={"id": str})
    test.assign(reader="R", acl=test["y_acl"])[["id", "reader", "acl"]].to_csv(tmp_path / "readers.csv", index=False)
    done = command("evaluate", f"run={run}", "sensitivity=0.7", f"readers={tmp_path / 'readers.csv'}")
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "evaluation.json").read_text())["splits"]["test"]
    assert list(result["operating_points"]) == ["0.5", "youden", "sensitivity_0.7", "specificity_0.9", "kappa"]
    assert result["readers"]["readers"]["R"]["labels"]["acl"]["kappa"]["value"] == 1.0
    page = (run / "report.html").read_text()
    assert "sensitivity_0.7" in page
    assert "<h3>readers <small>test</small></h3>" in page
    assert page.count("data:image/png;base64,") == len(pd.read_csv(run / "figures" / "cases" / "cases.csv"))
    (tmp_path / "readers.csv").write_text("id,reader,acl\n0007,R,1\n")
    with pytest.raises(UserError, match="0007"):
        run_job("evaluate", f"run={run}", f"readers={tmp_path / 'readers.csv'}")


def test_the_closing_table_and_the_history_agree_with_the_evaluation(finished):
    directory, printed = finished
    evaluation = json.loads((directory / "evaluation.json").read_text())
    valid = evaluation["splits"]["valid"]
    assert valid["selected_on"]
    assert not evaluation["splits"]["test"]["selected_on"]
    history = pd.read_csv(directory / "history.csv").set_index("epoch")
    best = history.loc[evaluation["checkpoint"]["epoch"]]
    assert best["valid/macro/auroc"] == pytest.approx(valid["macro"]["auroc"]["value"])
    assert best["valid/abnormal/kappa"] == pytest.approx(valid["labels"]["abnormal"]["kappa"]["value"])
    assert f"{evaluation['splits']['test']['labels']['acl']['auroc']['value']:.3f}" in printed
    assert str(directory) in printed


def test_evaluate_repeats_the_numbers(finished, command):
    directory, _ = finished
    before = json.loads((directory / "evaluation.json").read_text())
    done = command("evaluate", f"run={directory}")
    assert done.returncode == 0, done.stderr
    assert "the same numbers as before" in done.stdout
    evaluated = {"command": f"python -m xraylab.evaluate run={directory}", "options": {}}
    assert json.loads((directory / "evaluation.json").read_text()) == before | {"evaluated": evaluated}


def test_a_run_directory_is_never_shared(finished, train_here, mrnet_root):
    directory, _ = finished
    with pytest.raises(UserError, match="holds a run already"):
        train_here(directory, *QUICK, f"dataset.root={mrnet_root}")


def test_accumulated_batches_and_one_big_batch_give_the_same_weights(train_here, tmp_path, mrnet_root, monkeypatch):
    """8 studies at once, and 8 times 1: ragged exams, augmentation, class balance and a short last step included.

    In float64, for in float32 rounding decides which slice of two alike is the maximum.
    """
    plain = experiment.hardware
    monkeypatch.setattr(experiment, "hardware", lambda *args: (plain(*args)[0], "64-true"))
    runs = []
    for name, batch, accumulate in (("at-once", 8, 1), ("accumulated", 1, 8), ("mixed", 2, 4)):
        options = [*QUICK, f"batch_size={batch}", f"accumulate={accumulate}", f"dataset.root={mrnet_root}", "optimizer=sgd"]
        runs.append(train_here(tmp_path / name, *options, "max_epochs=1", "optimizer.lr=1e-3", "valid_fraction=0.25"))
    one, *others = (weights(run) for run in runs)
    for other in others:
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, atol=1e-12, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
    histories = [pd.read_csv(run / "history.csv") for run in runs]
    assert histories[0]["step"].iloc[0] == histories[1]["step"].iloc[0] == 4
    np.testing.assert_allclose(histories[0]["train/loss"], histories[1]["train/loss"], rtol=1e-12)


def test_balance_changes_a_run_at_one_study_a_step(train_here, tmp_path, mrnet_root):
    runs = [
        train_here(
            tmp_path / b,
            *QUICK,
            "batch_size=1",
            "max_epochs=1",
            f"loss.balance={b}",
            f"dataset.root={mrnet_root}",
            "optimizer=sgd",
        )
        for b in ("label", "none")
    ]
    assert not same(weights(runs[0]), weights(runs[1]))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_for_any_number_of_workers(train_here, tmp_path, mrnet_root):
    options = [*QUICK, "head.hidden=[16]", "head.dropout=0.5", f"dataset.root={mrnet_root}"]
    one = train_here(tmp_path / "one", *options)
    two = train_here(tmp_path / "two", *options, "num_workers=2")
    other = train_here(tmp_path / "other", *options, "seed=1")
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(other))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("backbone=resnet18", "backbone cannot change"),
        ("seed=1", "seed cannot change"),
        ("batch_size=8", "batch_size cannot change"),
        ("max_epoch=3", "Did you mean max_epochs"),
    ],
)
def test_resume_refuses_what_would_change_its_course(finished, typed, said):
    with pytest.raises(UserError, match=said):
        resumed_config(str(finished[0]), [typed])
    assert resumed_config(str(finished[0]), ["max_epochs=9"]).max_epochs == 9


def test_resume_takes_the_words_that_the_run_was_begun_by_and_values_that_it_has(finished):
    saved = read_config(finished[0])
    begun = read_begun(finished[0])["typed"]
    assert "task=[acl,abnormal]" in begun
    resumed = resumed_config(str(finished[0]), [*begun, f"seed={saved.seed}", "max_epochs=9"])
    assert {k for k in saved if saved[k] != resumed[k]} == {"max_epochs", "resume"}


@pytest.mark.slow
def test_a_resume_that_cannot_be_leaves_the_run_as_it_was(finished, command, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    before = {p: p.read_bytes() for p in run.rglob("*.*") if p.is_file()}
    done = command("train", f"resume={run}", "max_epochs=1")
    assert done.returncode == 2
    assert "has 2 epochs behind it" in done.stderr
    (run / "checkpoints" / "last.ckpt").write_bytes(before[run / "checkpoints" / "last.ckpt"][:3000])
    with pytest.raises(UserError, match="not a whole checkpoint"):
        train(resumed_config(str(run), []), run, [])
    assert all(p.read_bytes() == data for p, data in before.items() if p.suffix in (".yaml", ".json", ".csv"))


def test_a_finished_run_that_is_resumed_says_that_nothing_is_left_to_train(finished, tmp_path, caplog):
    run = shutil.copytree(finished[0], tmp_path / "run")
    caplog.set_level("INFO", "xraylab")
    raising = logging.raiseExceptions
    train(resumed_config(str(run), []), run, [])
    assert "nothing is left to train after epoch 2: the run is evaluated again" in caplog.text
    assert logging.raiseExceptions is raising
    assert same(weights(finished[0]), weights(run))
    caplog.clear()
    train(resumed_config(str(run), ["max_epochs=3"]), run, ["max_epochs=3"])
    assert "nothing is left to train" not in caplog.text


def test_a_run_goes_on_in_its_own_directory(finished, command, tmp_path):
    done = command("train", f"resume={finished[0]}", f"hydra.run.dir={tmp_path / 'elsewhere'}")
    assert done.returncode == 2
    assert "goes on in its own directory" in done.stderr
    assert not list(tmp_path.glob("elsewhere/*"))


def test_evaluate_refuses_the_checkpoint_of_another_model(finished, train_here, tmp_path, mrnet_root):
    options = [*QUICK, "max_epochs=1", f"dataset.root={mrnet_root}", "head.hidden=[8]", "task=[acl,abnormal]"]
    other = train_here(tmp_path / "other", *options)
    before = (finished[0] / "evaluation.json").read_text()
    with pytest.raises(UserError, match="of another model than"):
        run_job("evaluate", f"run={finished[0]}", f"checkpoint={other / 'checkpoints' / 'best.ckpt'}")
    assert (finished[0] / "evaluation.json").read_text() == before


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_job_that_fails_and_says_why(command, tmp_path, mrnet_root):
    done = command("train", "-m", *QUICK, "max_epochs=1", f"dataset.root={mrnet_root}", "optimizer.lr=abc,1e-4,-1", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: optimizer.lr=abc: it should be a number" in done.stderr
    assert "error: optimizer: Invalid learning rate: -1" in done.stderr
    (sweep,) = tmp_path.glob("outputs/mrnet/multirun/*")
    assert [p.parent.name for p in sweep.glob("*/evaluation.json")] == ["1"]
    rows = pd.read_csv(sweep / "comparison.csv")
    assert list(rows.columns) == [
        "job", "overrides", "split", "unit", "label", "metric", "value", "low", "high", "n", "selected_on", "in_sample",
        "measured", "reason", "data",
    ]  # fmt: skip
    assert set(rows["job"]) == {1}
    evaluation = json.loads((sweep / "1" / "evaluation.json").read_text())
    row = rows[(rows["split"] == "test") & (rows["label"] == "acl") & (rows["metric"] == "auroc")].iloc[0]
    auroc = evaluation["splits"]["test"]["labels"]["acl"]["auroc"]
    assert (row["value"], row["low"], row["high"], row["n"]) == tuple(auroc[k] for k in ("value", "low", "high", "n"))
    assert "optimizer.lr=0.0001" in row["overrides"]
    assert "Synthetic sample" in (sweep / "report.html").read_text()


def test_what_was_skipped_is_named_in_the_results(train_here, tmp_path, mrnet_root):
    root = shutil.copytree(mrnet_root, tmp_path / "MRNet-v1.0")
    (root / "train" / "axial" / "0003.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 arrays that cannot be used: train/axial/0003.npy"):
        train_here(tmp_path / "stop", *QUICK, f"dataset.root={root}")
    run = train_here(tmp_path / "skip", *QUICK, "max_epochs=1", f"dataset.root={root}", "dataset.on_error=skip", report=True)
    skipped = json.loads((run / "evaluation.json").read_text())["skipped"]
    assert list(skipped.values()) == [["train/axial/0003.npy (unreadable: No data left in file)"]]
    assert "0003.npy" in (run / "report.html").read_text()


def test_a_diverged_model_is_said(train_here, tmp_path, mrnet_root):
    with pytest.raises(UserError, match="training has diverged"):
        train_here(tmp_path / "x", *QUICK, f"dataset.root={mrnet_root}", "optimizer=sgd", "optimizer.lr=1e30")


def test_monitors_are_checked_before_training(train_here, tmp_path, mrnet_root):
    for option, said in (
        ("monitor=valid/auc", "there is no such metric"),
        ("early_stopping.monitor=valid/los", "Did you mean valid/loss"),
        ("scheduler.monitor=valid/acll/auroc", "Did you mean valid/acl/auroc"),
    ):
        with pytest.raises(UserError, match=said):
            train_here(tmp_path / "x", *QUICK, f"dataset.root={mrnet_root}", option)


def test_a_split_of_one_class_is_said_and_cannot_be_monitored(train_here, tmp_path, mrnet_root, caplog):
    root = shutil.copytree(mrnet_root, tmp_path / "MRNet-v1.0")
    lines = (root / "valid-acl.csv").read_text().split()
    (root / "valid-acl.csv").write_text("".join(f"{line.split(',')[0]},0\n" for line in lines))
    with pytest.raises(UserError, match="undefined in valid"):
        train_here(tmp_path / "a", *QUICK, f"dataset.root={root}", "selection=official")
    options = [*QUICK, f"dataset.root={root}", "monitor=valid/loss", "max_epochs=1"]
    run = train_here(tmp_path / "b", *options)
    assert "test: label acl has 0 positive and 30 negative studies: its AUROC is undefined" in caplog.text
    auroc = json.loads((run / "evaluation.json").read_text())["splits"]["test"]["labels"]["acl"]["auroc"]
    assert auroc["value"] is None
    assert auroc["reason"] == "no positive study"


@pytest.mark.slow
def test_exclusive_classes_train_with_cross_entropy(train_here, tmp_path, mrnet_root):
    from xraylab.data.synthetic.medmnist import write_medmnist

    root = write_medmnist(tmp_path / "organmnist3d.npz", "organmnist3d", train=66, val=33, test=33)
    options = ["dataset=medmnist", f"dataset.root={root}", "max_epochs=1", "bootstrap=20", "batch_size=8",
               "+backbone.kwargs.channels=[8,8,16,16]", "precision=32"]  # fmt: skip
    run = train_here(tmp_path / "run", *options)
    predictions = pd.read_csv(run / "predictions" / "test.csv")
    np.testing.assert_allclose(predictions.filter(like="p_").sum(axis=1), 1, atol=1e-5)
    assert json.loads((run / "evaluation.json").read_text())["splits"]["test"]["exclusive"]["accuracy"]["n"] == 33
    with pytest.raises(UserError, match="is for exclusive labels"):
        train_here(tmp_path / "x", *QUICK, "loss=cross_entropy", f"dataset.root={mrnet_root}")


def test_colour_images_bring_three_channels_unless_typed(train_here, tmp_path):
    from xraylab.data.synthetic.medmnist import write_medmnist

    root = write_medmnist(tmp_path / "bloodmnist.npz", "bloodmnist", train=32, val=32, test=32)
    options = ["dataset=medmnist", f"dataset.root={root}", "max_epochs=1", "bootstrap=0", "+backbone.kwargs.channels=[8,8,8,8]"]
    with pytest.raises(UserError, match=r"backbone.in_chans=1 must be 3"):
        train_here(tmp_path / "grey", *options, "backbone.in_chans=1")
    run = train_here(tmp_path / "colour", *options)
    config = OmegaConf.load(run / "config.yaml")
    assert (config.backbone.in_chans, config.loss._target_) == (3, "xraylab.losses.CrossEntropy")
