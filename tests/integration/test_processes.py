"""Several processes are one run: the same tables and weights, one who writes, and none that goes on alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import traceback
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, TINY, compose_config
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

from xraylab.config.resume import resumed_config
from xraylab.data.batching import StepSampler, StudyDataset
from xraylab.errors import Lost, Stopped, UserError
from xraylab.sweeps.record import Journal
from xraylab.system.processes import Processes
from xraylab.train import train
from xraylab.training import data_checks, devices, experiment
from xraylab.training.callbacks.finite_loss import Diverged, FiniteLoss
from xraylab.training.callbacks.history import History
from xraylab.training.callbacks.interrupt import StopOnInterrupt
from xraylab.training.distributed.collectives import agree, in_turn, largest, rank
from xraylab.training.distributed.launch import process_group
from xraylab.training.study_module import StudyModule

# ragged exams, augmentation, class balance, a short last step, and a last batch of one study
SMALL = [
    *TINY, "image.size=32", "backbone=cnn", "backbone.layers=2", "backbone.filters=8", "backbone.batch_norm=false", "cases=2",
    "valid_fraction=0.225", "batch_size=3", "accumulate=2", "max_epochs=2", "optimizer=sgd", "optimizer.lr=1e-3",
    "early_stopping=null", "accelerator=cpu", "seed=3",
]  # fmt: skip


def state(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same_run(one, two, atol=1e-5):
    """Weights to ``atol``, tables row by row, history and evaluation."""
    for name in ("last", "best"):
        a, b = (state(run, name)["state_dict"] for run in (one, two))
        assert a.keys() == b.keys()
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, atol=atol, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    for file in sorted((one / "predictions").glob("*.csv")):
        a, b = (pd.read_csv(run / "predictions" / file.name, dtype={"id": str}) for run in (one, two))
        assert b[a.columns[0]].tolist() == a["id"].tolist()
        pd.testing.assert_frame_equal(a, b, atol=1e-5, rtol=1e-5)
    timed = ["seconds", "studies_per_s", "images_per_s"]
    a, b = (pd.read_csv(run / "history.csv").drop(columns=timed, errors="ignore") for run in (one, two))
    pd.testing.assert_frame_equal(a, b, atol=1e-4, rtol=1e-4)
    a, b = (json.loads((run / "evaluation.json").read_text())["splits"] for run in (one, two))
    assert {s: v["n"] for s, v in a.items()} == {s: v["n"] for s, v in b.items()}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def together():
    """``together(work)``: ``work(processes)`` in two processes that have met; returns what each gave, or raised, by rank."""

    def run(work, timeout=1.0):
        fork, port = multiprocessing.get_context("fork"), free_port()
        answers = fork.SimpleQueue()

        def process(number):
            of = Processes(2, number, 2, number, "srun", "127.0.0.1", port, timeout)
            try:
                with process_group(of):
                    answer = work(of)
            except (UserError, Stopped, Lost, KeyError) as error:
                answer = error
            except BaseException:
                answer = AssertionError(traceback.format_exc())
            answers.put((number, answer))

        both = [fork.Process(target=process, args=(number,)) for number in (0, 1)]
        for p in both:
            p.start()
        found = {}
        for p in both:
            p.join(120)
            assert p.exitcode is not None, "hangs"
        while not answers.empty():
            number, answer = answers.get()
            found[number] = answer
        if failed := [a for a in found.values() if isinstance(a, AssertionError)]:
            raise failed[0]
        return found

    return run


@pytest.fixture
def train_together(together, tmp_path):
    """As ``train_here``, in two processes; returns the directory and what each process raised."""

    def run(name, *overrides, config=None):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        cfg = compose_config(*overrides) if config is None else config
        return directory, together(lambda of: train(cfg, directory, list(overrides), of))

    return run


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


KILLING = """
import os
from pathlib import Path
from pytorch_lightning.callbacks import Callback

class Once(Callback):
    def __init__(self, flag):
        self.flag = Path(flag)

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == 8 and not self.flag.exists():
            self.flag.touch()
            os._exit(9)
"""


@pytest.mark.slow
def test_started_here_in_a_sweep_or_by_torchrun_that_restarts_them_two_processes_are_one_run(train_here, tmp_path, mrnet_root):
    options = [*SMALL, f"dataset.root={mrnet_root}", "save_train_predictions=true"]
    one = train_here(tmp_path / "one", *options)
    assert len(pd.read_csv(one / "predictions" / "train.csv")) % 3 == 1, "the second process has no share in the last batch"
    tested = json.loads((one / "evaluation.json").read_text())["splits"]["test"]
    assert tested["n"] == 30

    sweep = tmp_path / "sweep"
    drawn = ["sweep.method=tpe", "sweep.trials=2"] if find_spec("optuna") else []  # of which all processes must know
    done = subprocess.run(
        [sys.executable, "-m", "xraylab.train", "-m", *options[:-2], f"dataset.root={mrnet_root}", "save_train_predictions=true",
         "accelerator.devices=2", f"hydra.sweep.dir={sweep}", "max_epochs=2,1", *drawn],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    epochs = {len(pd.read_csv(sweep / job / "history.csv")): sweep / job for job in "01"}
    assert set(epochs) == {1, 2}
    same_run(one, epochs[2])
    assert [job.state for job in Journal.read(sweep).jobs] == ["finished"] * 2
    assert done.stdout.count("epoch 1/2") == 1, "only the first process speaks"
    record = json.loads((epochs[2] / "environment.json").read_text())
    assert record["processes"] == {"number": 2, "machines": 1}
    assert record["finished"]

    (tmp_path / "killing.py").write_text(KILLING)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--max-restarts=1", "--nproc-per-node=2", "-m", "xraylab.train", *options,
         "resume=auto", "+callbacks.kill._target_=killing.Once", f"+callbacks.kill.flag={tmp_path / 'killed'}"],
        cwd=tmp_path, env=environment(PYTHONPATH=f"{REPOSITORY}{os.pathsep}{tmp_path}"), capture_output=True, text=True,
        timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "killed").exists()
    (run,) = (tmp_path / "outputs" / "mrnet").iterdir()
    again = f"torchrun --nproc-per-node=2 -m xraylab.train resume={run}"
    assert f"The last checkpoint is whole. Go on with:\n  {again}" in done.stderr
    assert f"resume=auto: going on with {run}" in done.stdout, "the processes that torchrun started again"
    same_run(one, run)
    assert done.stdout.count("epoch 1/2") == 1


@pytest.mark.parametrize(
    "options",
    [["optimizer=sgd", "optimizer.lr=1", "accumulate=20", "max_epochs=1"], ["optimizer=adam", "optimizer.lr=1e-3"]],
    ids=["one step", "twelve steps"],
)
def test_in_float64_two_processes_are_one(options, train_here, train_together, tmp_path, mrnet_root, monkeypatch):
    """So what differs in float32 is rounding. A step of a whole epoch's exams, and twelve of Adam, which amplifies it."""
    plain = experiment.hardware
    monkeypatch.setattr(experiment, "hardware", lambda *args: (plain(*args)[0], "64-true"))
    options = [*SMALL, f"dataset.root={mrnet_root}", *options]
    one = train_here(tmp_path / "one", *options)
    two, raised = train_together("two", *options)
    assert raised == {0: None, 1: None}
    assert state(one)["global_step"] == (1 if "max_epochs=1" in options else 12)
    a, b = (state(run)["state_dict"] for run in (one, two))
    for key, value in a.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(b[key], value, atol=1e-12, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.slow
def test_views_learned_and_adapted_losses_agree(train_here, train_together, tmp_path, chexpert_root):
    """Images as the unit, u learned by gradient, w adapted on held-back studies, Adam, a plateau, the AUROCs of two units."""
    options = [
        "dataset=chexpert", f"dataset.root={chexpert_root}", "findings=competition", "view=all", "unit=image", *SMALL[:-8],
        "batch_size=12", "max_epochs=2", "accelerator=cpu", "optimizer.lr=1e-3", "loss.u=learned", "loss.w=adapted",
        "loss.u_lr=0.1", "loss.held_back=0.2", "early_stopping=null", "valid_fraction=0.3",
    ]  # fmt: skip
    one = train_here(tmp_path / "one", *options)
    two, raised = train_together("two", *options)
    assert raised == {0: None, 1: None}
    history = pd.read_csv(one / "history.csv")
    assert len(set(history.filter(regex="^u/").iloc[-1])) > 1
    assert (history.filter(regex="^w/").iloc[-1] != 0.5).any()
    same_run(one, two, 1e-4)  # Adam divides by roots of small squares


def test_unfrozen_layers_average_their_gradients_too(train_here, train_together, tmp_path, mrnet_root):
    """And stochastic weight averaging is the mean of the same steps."""
    options = [*SMALL, f"dataset.root={mrnet_root}", "backbone.trainable_from=head", "callbacks=unfreeze",
               "callbacks.unfreeze.at={2: null}", "optimizer.lr=1e-2", "+callbacks.swa.start=2",
               "+callbacks.swa._target_=xraylab.callbacks.StochasticWeightAveraging"]  # fmt: skip
    one = train_here(tmp_path / "one", *options)
    two, raised = train_together("two", *options)
    assert raised == {0: None, 1: None}
    assert pd.read_csv(one / "history.csv")["train/loss"].nunique() == 2
    assert "averaged over" in json.loads((two / "evaluation.json").read_text())["checkpoint"]["weights"]
    same_run(one, two)


def test_three_planes_agree_where_a_process_has_no_share(train_here, train_together, tmp_path, mrnet_root, monkeypatch):
    """Each plane of an exam that is none has images, blank ones that fill the batch aside: no maximum over nothing."""
    read = StudyDataset.batch

    def seen(self, of, studies, scored):
        batch = read(self, of, studies, scored)
        if not of:
            assert set(batch.study[: batch.real].tolist()) == {0, 1, 2}
            (tmp_path / f"without a share, process {rank()}").touch()
        return batch

    monkeypatch.setattr(StudyDataset, "batch", seen)
    options = [*SMALL, f"dataset.root={mrnet_root}", "plane=all"]
    one = train_here(tmp_path / "one", *options)
    two, raised = train_together("two", *options, "+accelerator.static_shapes=true")
    assert raised == {0: None, 1: None}
    assert [p.name for p in tmp_path.glob("without*")] == ["without a share, process 1"]
    same_run(one, two)


def test_batch_statistics_are_those_of_the_first_process(train_together, tmp_path, mrnet_root, monkeypatch):
    """What validates is what is saved: each process normalises by statistics of its own share while it trains, which is said."""
    monkeypatch.setattr(data_checks.log, "warning", lambda text, *of: (tmp_path / "said").write_text(text % of))
    options = [*(o for o in SMALL if o != "backbone.batch_norm=false"), f"dataset.root={mrnet_root}", "callbacks=ema",
               "callbacks.ema.decay=0.5", "head.hidden=[8]", "head.dropout=0.5", "max_epochs=3"]  # fmt: skip
    run, raised = train_together("run", *options)
    assert raised == {0: None, 1: None}
    history = pd.read_csv(run / "history.csv").set_index("epoch")
    evaluation = json.loads((run / "evaluation.json").read_text())
    best = history.loc[evaluation["checkpoint"]["epoch"]]
    valid = evaluation["splits"]["valid"]
    assert best["valid/macro/auroc"] == pytest.approx(valid["macro"]["auroc"]["value"])
    assert "2 layers take the statistics of each process's part of a batch, 2 of 3 at most" in (tmp_path / "said").read_text()
    with pytest.raises(UserError, match=r"accelerator.sync_batchnorm: .* whose activations are lost"):
        devices.hardware({"accelerator": "cpu", "sync_batchnorm": True}, "32")


@pytest.mark.slow
def test_all_stop_at_the_step_at_which_one_was_asked_and_any_number_goes_on(
    train_here, train_together, tmp_path, mrnet_root, monkeypatch
):
    def asks(self):
        raise AssertionError("a host sync at every batch, for what is agreed here already")

    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", asks)  # an error where Lightning has another
    options = [*SMALL, f"dataset.root={mrnet_root}", "callbacks=ema", "callbacks.ema.decay=0.5"]
    one = train_here(tmp_path / "one", *options)
    plain = StopOnInterrupt.on_train_batch_end

    def press(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 8 and rank() == 1:
            self.asked = signal.SIGINT
        plain(self, trainer, pl_module, outputs, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_train_batch_end", press)
        run, raised = train_together("run", *options)
    assert all(isinstance(error, Stopped) for error in raised.values())
    assert f"resume={run}" in str(raised[0])
    assert str(raised[1]) == "", "the first says it"
    assert state(run)["global_step"] == 8
    resumed = resumed_config(str(run), [f"resume={run}"])
    assert train_together("run", f"resume={run}", config=resumed)[1] == {0: None, 1: None}
    same_run(one, run)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_train_batch_end", press)
        other, _ = train_together("other", *options)
    train(resumed_config(str(other), [f"resume={other}"]), other, [f"resume={other}"])
    same_run(one, other)


def test_a_process_that_dies_ends_the_run_and_it_can_go_on(train_together, mrnet_root, monkeypatch):
    def die(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 8 and rank() == 1:
            os._exit(9)

    monkeypatch.setattr(History, "on_train_batch_end", die)
    monkeypatch.setattr("xraylab.training.distributed.launch.GRACE", 1.0)
    run, raised = train_together("run", *SMALL, f"dataset.root={mrnet_root}")
    assert list(raised) == [0]
    assert isinstance(raised[0], Stopped)
    assert re.search(r"process 0 of 2, on .*: another process of this run ended or does not answer", str(raised[0]))
    assert f"resume={run}" in str(raised[0])
    assert state(run)["global_step"] == 6
    record = json.loads((run / "environment.json").read_text())
    assert not record["finished"]


def test_what_goes_wrong_in_one_process_is_said_once_and_ends_all(together, train_together, mrnet_root, tmp_path, monkeypatch):
    def work(of):
        in_turn(lambda: 1 if of.rank == 0 else (_ for _ in ()).throw(UserError("no data on this machine")), of.local_rank)

    raised = together(work)
    assert (str(raised[0]), str(raised[1])) == ("no data on this machine", "")

    def mistaken(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2 and rank() == 1:
            raise UserError("one image cannot be batch-normalised")

    monkeypatch.setattr(History, "on_train_batch_end", mistaken)
    _, raised = train_together("run", *SMALL, f"dataset.root={mrnet_root}")
    assert {type(error) for error in raised.values()} == {UserError}
    assert sorted(str(error) for error in raised.values()) == ["", "one image cannot be batch-normalised"]


def test_processes_with_other_settings_or_data_are_refused(together):
    raised = together(lambda of: agree("settings", {"optimizer": {"lr": 1e-3 * (1 + of.rank)}, "seed": 0}))
    assert "processes 0 and 1 have different settings: optimizer ({'lr': 0.001} and {'lr': 0.002})" in str(raised[0])
    assert isinstance(raised[1], UserError)
    assert together(lambda of: agree("settings", {"seed": 0})) == {0: None, 1: None}
    assert together(lambda of: largest(of.rank, 3 - of.rank)) == {0: [1, 3], 1: [1, 3]}


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_of_ours_in_one_process_is_not_taken_for_its_loss(wrong, train_together, mrnet_root, monkeypatch):
    """Going on would only repeat it: no exit code that says so, and no command."""

    def fail(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2 and rank() == wrong:
            raise KeyError("of ours")

    monkeypatch.setattr(History, "on_train_batch_end", fail)
    _, raised = train_together("run", *SMALL, f"dataset.root={mrnet_root}")
    assert isinstance(raised[wrong], KeyError)
    assert isinstance(raised[1 - wrong], Lost), "exit code 1, as of the error"
    said = f"process 1 of 2, on {socket.gethostname()}, failed: KeyError: 'of ours'. Its output has the whole of it."
    assert str(raised[1 - wrong]) == (said if wrong == 1 else ""), "Python itself says the first's"


@pytest.mark.parametrize("every", [1, 4])
def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_the_same_words(
    every, train_together, tmp_path, mrnet_root, monkeypatch
):
    """Looked at every few steps, the first batch that was not finite in any process counts, by that process's studies."""
    step = StudyModule.training_step

    def spoiled(self, batch, batch_idx):
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if (rank(), done) == (1, 9):  # the first of the two of step 5
            (tmp_path / "ids").write_text(", ".join(batch.ids))
        return step(self, batch, batch_idx) * float("nan" if (rank(), done) in ((1, 9), (0, 11)) else 1)

    monkeypatch.setattr(StudyModule, "training_step", spoiled)
    monkeypatch.setattr("xraylab.training.fit.FiniteLoss", lambda _: FiniteLoss(every))
    run, raised = train_together("run", *SMALL, f"dataset.root={mrnet_root}")
    assert {type(error) for error in raised.values()} == {Diverged}
    told = f"the loss is not a finite number at step 5, in epoch 1, of the studies {(tmp_path / 'ids').read_text()}:"
    assert sorted(str(error)[: len(told)] for error in raised.values()) == ["", told], "said once"
    assert not (run / "checkpoints" / "last.ckpt").exists()


def test_more_processes_than_studies_in_a_batch_and_a_first_model_are_refused(train_together, mrnet_root, chexpert_root):
    _, raised = train_together("a", *SMALL, f"dataset.root={mrnet_root}", "batch_size=1")
    assert "batch_size=1 is over all 2 processes: give at least 2" in str(raised[0])
    _, raised = train_together("b", "dataset=chexpert", f"dataset.root={chexpert_root}", "loss=selftrained")
    assert "train the first model on its own" in str(raised[0])


def test_shares_of_every_batch_are_the_batch_and_parts_of_a_split_the_split():
    scored = np.arange(23) % 3
    for world in (2, 3, 4):
        whole = StepSampler(range(100, 123), scored, 4, 2, True, 1)
        parts = [StepSampler(range(100, 123), scored, 4, 2, True, 1, r, world) for r in range(world)]
        for sampler in (whole, *parts):
            sampler.set_epoch(5)
            sampler.skip = 2
        for draw, *shares in zip(whole, *parts, strict=True):
            assert sorted(row for share in shares for row in share.rows) == sorted(draw.rows)
            assert {share.scored for share in shares} == {draw.scored}
            assert all((share.blank is None) == bool(share.rows) for share in shares)
        plain = [StepSampler(range(100, 123), scored, 4, rank=r, world=world) for r in range(world)]
        assert [row for part in plain for draw in part for row in draw.rows] == list(range(100, 123))
        assert sum(len(list(part)) == len(part) for part in plain) == world
