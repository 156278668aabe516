"""Runs that are killed, stopped, starved or led astray: what is left, what is said, and how they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from xraylab.config.resume import resumed_config
from xraylab.config.settings import check_config
from xraylab.errors import Stopped, UserError
from xraylab.run import claimed, holder_of, new_run_dir
from xraylab.system.files import write_json
from xraylab.train import train
from xraylab.training import session as training
from xraylab.training.callbacks.interrupt import StopOnInterrupt
from xraylab.training.checkpoints import read_checkpoint
from xraylab.training.study_module import StudyModule

SMALL = [
    "dataset=mrnet", "backbone=cnn", "backbone.layers=3", "image.size=16", "bootstrap=0", "num_workers=0", "precision=32",
    "batch_size=4", "max_epochs=2", "cases=0", "cache=off", "optimizer.lr=1e-3",
    "split_seed=2",  # of which the first epoch is the best, so that there is something to go on with from it
]  # fmt: skip


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def resume(run: Path | str, *typed: str) -> None:
    directory = Path(str(run)).parents[1] if str(run).endswith(".ckpt") else Path(run)
    train(resumed_config(str(run), [f"resume={run}", *typed]), directory, [f"resume={run}", *typed])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, mrnet_root):
    """A run of two epochs of eight steps that nothing happened to."""
    from conftest import compose_config

    directory = tmp_path_factory.mktemp("whole") / "run"
    options = [*SMALL, f"dataset.root={mrnet_root}"]
    train(compose_config(*options), directory, options)
    return directory


@pytest.mark.slow
def test_a_run_killed_at_random_points_ends_as_one_that_was_not(tmp_path):
    """Kills while it starts, within epochs, while a checkpoint is written and while it evaluates; the script's own main job."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "experiments" / "survive" / "kill.py", "--kills", "4", "--out", tmp_path, "max_epochs=2"],
        capture_output=True, text=True, timeout=500, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nkill ") == 4
    assert "the same: weights, optimiser" in done.stdout


@pytest.mark.slow
def test_a_scheduler_that_ends_a_job_can_go_on_with_it(whole, tmp_path, mrnet_root, command):
    """SIGTERM to all its processes, readers too: saved, 75, the command; and ``resume=auto`` is that command."""
    words = [*SMALL, f"dataset.root={mrnet_root}", "num_workers=2", "resume=auto", "max_epochs=200", "early_stopping=null",
             f"hydra.run.dir={tmp_path / 'run'}"]  # fmt: skip
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "xraylab.train", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (run / "history.csv").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    with pytest.raises(UserError, match=rf"another process works there: process {process.pid} on "), claimed(run):
        pass
    with pytest.raises(UserError, match="another process works there"):
        resume(run)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 75, out + err
    assert "SIGTERM: stopped before the end; everything is saved" in err
    assert f"python -m xraylab.train resume={run}" in err
    assert "Traceback" not in err + out
    assert "no unfinished run of this command" in out
    assert not (run / "evaluation.json").exists(), "there may be no time for it"
    assert holder_of(run) is None, "the lock went with its process"


@pytest.mark.slow
@pytest.mark.parametrize("to", ["first", "second"])
def test_a_signal_to_one_of_two_processes_saves_and_ends_both(to, tmp_path, mrnet_root):
    """Not to the group: that process alone must not talk to the other from within its handler."""
    run = tmp_path / "run"
    words = [*SMALL, f"dataset.root={mrnet_root}", "max_epochs=500", "early_stopping=null", "batch_size=4", "accelerator=cpu",
             "accelerator.devices=2", f"hydra.run.dir={run}"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "xraylab.train", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (run / "history.csv").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "xraylab.training.distributed.launch"],
        capture_output=True,
        text=True,
        check=False,
    )
    os.kill(process.pid if to == "first" else int(found.stdout.split()[0]), signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert "SIGTERM: stopped before the end; everything is saved" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("epochs", [2, 1])
def test_a_signal_in_validation_is_saved_too_in_the_last_epoch_as_well(
    number, epochs, train_here, tmp_path, mrnet_root, monkeypatch
):
    begin = StudyModule.on_validation_epoch_end

    def signalled(self):
        signal.raise_signal(number)
        signal.raise_signal(number)  # as torchrun does, beside the scheduler
        begin(self)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StudyModule, "on_validation_epoch_end", signalled)
        with pytest.raises(Stopped, match=f"{number.name}: stopped before the end; everything is saved"):
            train_here(run, *SMALL, f"dataset.root={mrnet_root}", f"max_epochs={epochs}")
    done = read_checkpoint(run / "checkpoints" / "last.ckpt")["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    assert done == 1
    resume(run)
    assert json.loads((run / "environment.json").read_text())["finished"]


def test_slurms_signal_stops_after_the_step(whole, train_here, tmp_path, mrnet_root, monkeypatch):
    after = StopOnInterrupt.on_train_batch_end

    def signalled(self, trainer, *args):
        if trainer.global_step == 11:
            signal.raise_signal(signal.SIGUSR1)
        after(self, trainer, *args)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_train_batch_end", signalled)
        with pytest.raises(Stopped, match=f"SIGUSR1: stopped before the end.*\n.*resume={run}"):
            train_here(run, *SMALL, f"dataset.root={mrnet_root}")
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 11
    resume(run)
    assert same(weights(run), weights(whole))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_auto_goes_on_with_the_last_unfinished_run_of_the_same_command(whole, compose, tmp_path, monkeypatch, caplog):
    from omegaconf import OmegaConf

    from xraylab.run import write_begun

    monkeypatch.chdir(tmp_path)
    config = OmegaConf.to_container(compose(*SMALL))
    other = OmegaConf.to_container(compose(*SMALL, "seed=1"))
    for name, content in (("1", config), ("2", config), ("3", other), ("4", config)):
        write_begun(Path("outputs/mrnet") / name, content, SMALL)
        os.utime(Path("outputs/mrnet") / name / ".begun.yaml", (int(name), int(name)))
    write_json(Path("outputs/mrnet/4/environment.json"), {"finished": True})
    assert new_run_dir("mrnet", "auto", config) == "outputs/mrnet/2"
    held = subprocess.Popen(
        [sys.executable, "-c", "from pathlib import Path; from xraylab.run import claimed\n"
         "with claimed(Path('outputs/mrnet/2')):\n print('held', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert held.stdout.readline() == b"held\n"
    assert new_run_dir("mrnet", "auto", config) == "outputs/mrnet/1"
    assert f"is being trained by process {held.pid} on" in caplog.text
    held.kill()
    held.communicate()
    assert new_run_dir("mrnet", "auto", config) == "outputs/mrnet/2", "the lock vanished with its process"
    new = new_run_dir("mrnet", "auto", {**config, "seed": 2})
    assert new not in {f"outputs/mrnet/{n}" for n in range(1, 5)}
    assert list(Path(new).iterdir()) == []


@pytest.mark.slow
def test_a_run_stopped_before_its_first_checkpoint_begins_again_in_place(
    whole, train_here, tmp_path, mrnet_root, monkeypatch, caplog
):
    caplog.set_level("INFO")
    run = tmp_path / "run"

    def terminated(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training.Experiment, "from_config", terminated)
        with pytest.raises(Stopped, match=r"(?s)stopped before the first checkpoint; it begins again with:.*resume="):
            train_here(run, *SMALL, f"dataset.root={mrnet_root}")
    assert not (run / "config.yaml").exists()
    resume(run)
    assert "has no checkpoint yet: it begins again" in caplog.text
    assert same(weights(run), weights(whole))
    assert json.loads((run / "environment.json").read_text())["finished"]


def test_a_signal_before_there_is_anything_says_so_and_leaves_nothing(tmp_path):
    """While it imports; the same code, for a scheduler's job is to be given again as it was."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "xraylab.train", "dataset=mrnet"], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert process.stderr is not None
    next(line for line in process.stderr if "numpy" in line)  # of torch, by which Hydra has made the run's directory
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert err.splitlines()[-1].startswith(
        "SIGTERM: stopped before there was anything to keep; the same command begins it again."
    )
    assert not list(tmp_path.iterdir())
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "xraylab.log").touch()  # what kill -9 would have left
    with pytest.raises(UserError, match="killed: stopped before there was anything to keep"):
        resumed_config(str(tmp_path / "killed"), [])


def test_a_run_that_stopped_early_does_not_train_on_when_resumed(train_here, tmp_path, mrnet_root, caplog):
    caplog.set_level("INFO")
    options = [*SMALL, f"dataset.root={mrnet_root}", "max_epochs=9", "early_stopping.patience=1", "early_stopping.min_delta=9"]
    run = train_here(tmp_path / "run", *options)
    before, history = weights(run), (run / "history.csv").read_bytes()
    assert history.count(b"\n") == 3
    resume(run)
    assert (run / "history.csv").read_bytes() == history
    assert same(weights(run), before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_evaluation_ends_it_and_it_goes_on(number, whole, train_here, tmp_path, mrnet_root, monkeypatch):
    """Lightning's own handlers, which would pass it over, or hang where processes are several, are not there."""

    def theirs(self):
        raise AssertionError("Lightning listens")

    monkeypatch.setattr(_SignalConnector, "register_signal_handlers", theirs)  # an error where Lightning has another
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StudyModule, "predict_step", lambda *_: signal.raise_signal(number))
        with pytest.raises(Stopped, match="stopped at once; the last checkpoint is whole"):
            train_here(run, *SMALL, f"dataset.root={mrnet_root}")
    assert not (run / "evaluation.json").exists()
    resume(run)
    assert same(weights(run), weights(whole))
    assert (run / "predictions" / "test.csv").read_bytes() == (whole / "predictions" / "test.csv").read_bytes()


def test_intervals_are_checked(compose):
    for wrong in ("5", "0 steps", "1.5 steps", "often"):
        with pytest.raises(UserError, match="checkpoint_every"):
            check_config(compose(*SMALL, f"checkpoint_every={wrong}"))
    check_config(compose(*SMALL, "checkpoint_every=2.5 minutes"))
