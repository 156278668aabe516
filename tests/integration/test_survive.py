"""Runs that are killed, stopped, starved or led astray: what is left, what is said, and how they go on."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from xraylab.config.resume import resumed_config
from xraylab.config.settings import check_config
from xraylab.errors import Stopped, UserError
from xraylab.run import claimed, holder_of, new_run_dir
from xraylab.system.files import beside, write_json
from xraylab.train import train
from xraylab.training import fit as fitting
from xraylab.training import session as training
from xraylab.training.callbacks.finite_loss import FiniteLoss
from xraylab.training.callbacks.interrupt import StopOnInterrupt
from xraylab.training.checkpoints import read_checkpoint
from xraylab.training.devices import memory_in_words
from xraylab.training.study_module import StudyModule

SMALL = [
    "dataset=mrnet", "backbone=cnn", "backbone.layers=3", "image.size=16", "bootstrap=0", "num_workers=0", "precision=32",
    "batch_size=4", "max_epochs=2", "cases=0", "cache=off", "optimizer.lr=1e-3",
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


def test_a_broken_checkpoint_is_named_with_those_that_are_whole(whole, train_here, tmp_path, mrnet_root):
    run = shutil.copytree(whole, tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"last.ckpt: not a whole checkpoint(?s:.*)resume={run}/checkpoints/best.ckpt   # epoch"):
        resume(run)
    assert best["global_step"] in (8, 16)
    resume(run / "checkpoints" / "best.ckpt")
    assert same(weights(run), weights(whole)), "from the best on, the run is what it was"


def test_a_full_disk_leaves_the_last_checkpoint_whole(whole, train_here, tmp_path, mrnet_root, monkeypatch):
    """The disk fills while a checkpoint within an epoch is being written."""
    options = [*SMALL, f"dataset.root={mrnet_root}", "checkpoint_every=3 steps"]
    run = tmp_path / "run"
    plain, written = os.fsync, []

    def full(file):
        written.append(file)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match=r"(?s)cannot write .*last.ckpt: No space left on device. What was there before is whole."
        ):
            train_here(run, *options)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 9
    assert not list(run.rglob("*.partial"))
    resume(run)
    assert same(weights(run), weights(whole))


def test_a_file_too_large_for_its_limit_is_an_error_in_words(tmp_path):
    """The system's own refusal, in a process that may not write more than 10 kB into a file."""
    code = ("from pathlib import Path; from xraylab.system.files import write_text; import signal\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "try: write_text(Path('t.csv'), 'x' * 20000)\nexcept Exception as e: print(type(e).__name__, e)")  # fmt: skip
    (tmp_path / "t.csv").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )  # fmt: skip
    assert done.stdout == "CannotWrite cannot write t.csv: File too large. What was there before is whole.\n"
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in the run directory"), claimed(tmp_path / "file" / "run"):
        pass
    with pytest.raises(FileNotFoundError), beside(tmp_path / "a") as partial:
        partial.read_text()  # a mistake of ours stays what it is


@pytest.mark.parametrize("every", [1, 4])
def test_a_loss_that_is_not_finite_stops_at_its_batch_and_names_the_studies(every, train_here, tmp_path, mrnet_root, monkeypatch):
    """Also where it is looked at every few steps only, as on a GPU; what was saved before is of finite weights."""
    step = StudyModule.training_step
    ids = []

    def spoiled(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if done == 11:
            ids.extend(batch.ids)
        return loss * float("inf" if done >= 11 else 1)

    monkeypatch.setattr(StudyModule, "training_step", spoiled)
    looks, look = [], FiniteLoss._look

    def counted(self, *args):
        looks.append(len(self._batches))
        look(self, *args)

    monkeypatch.setattr(FiniteLoss, "_look", counted)
    monkeypatch.setattr(fitting, "FiniteLoss", lambda _: FiniteLoss(every))
    run = tmp_path / "run"
    with pytest.raises(UserError) as error:
        train_here(run, *SMALL, f"dataset.root={mrnet_root}", "accumulate=2", "max_epochs=3", "checkpoint_every=1 steps")
    assert "not a finite number at step 6, in epoch 2" in str(error.value)
    assert all(i in str(error.value) for i in ids)
    assert len(ids) == 4
    assert {n for n in looks if n} == {2}, "once a step, not at each of its batches"
    assert all(torch.isfinite(v).all() for v in weights(run).values())
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 5


def test_a_gradient_that_is_not_finite_is_found_before_a_checkpoint_of_it_is_written(
    train_here, tmp_path, mrnet_root, monkeypatch
):
    step = StudyModule.training_step
    ids = []

    def spoiled(self, batch, batch_idx):
        if self.trainer.global_step == 4:
            ids.extend(batch.ids)
            next(self.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(StudyModule, "training_step", spoiled)
    run = tmp_path / "run"
    with pytest.raises(UserError, match="the weights are not finite numbers after step 5, in epoch 1, of the studies") as error:
        train_here(run, *SMALL, f"dataset.root={mrnet_root}", "checkpoint_every=1 steps")
    assert all(i in str(error.value) for i in ids)
    assert len(ids) == 4
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert all(torch.isfinite(v).all() for v in weights(run).values())


def test_what_breaks_in_the_middle_says_how_to_go_on_from_what_is_kept(whole, train_here, tmp_path, mrnet_root, monkeypatch):
    step = StudyModule.training_step

    def breaks(self, batch, batch_idx):
        if self.trainer.global_step == 11:
            raise UserError("0100.npy: cannot be read.")
        return step(self, batch, batch_idx)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StudyModule, "training_step", breaks)
        with pytest.raises(UserError, match=rf"(?s)0100.npy: cannot be read. What was trained before is kept;.*resume={run}"):
            train_here(run, *SMALL, f"dataset.root={mrnet_root}")
    (run / "checkpoints" / "last.ckpt").unlink()  # as if it ended after best.ckpt was written, and before that
    resume(run)
    assert same(weights(run), weights(whole))
    (run / "checkpoints" / "last.ckpt").unlink()
    before = weights(run, "best")
    with pytest.raises(
        UserError, match=rf"(?s)last.ckpt is gone. Another may be gone on from.*resume={run}/checkpoints/best.ckpt"
    ):
        resume(run, "max_epochs=4")
    assert same(weights(run, "best"), before), "a finished run is not begun again"


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


@pytest.mark.parametrize(("name", "text"), [("environment.json", "{"), (".begun.yaml", "a: ["), (".begun.yaml", "typed: []")])
def test_a_damaged_record_is_named_with_what_to_do(name, text, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}.*Delete it to go on"):
        resume(run, "max_epochs=3")
    before = weights(run)
    (run / name).unlink()
    resume(run, "max_epochs=3")
    assert not same(weights(run), before)


def test_too_little_memory_says_what_to_change(whole, train_here, compose, tmp_path, mrnet_root, monkeypatch):
    def greedy(self, *args):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried")

    with monkeypatch.context() as patch:
        patch.setattr(StudyModule, "training_step", greedy)
        with pytest.raises(
            UserError, match=r"batch_size=2 accumulate=2 .*a smaller image.size .now 16.*precision=bf16, or a smaller backbone"
        ) as error:
            train_here(tmp_path / "run", *SMALL, f"dataset.root={mrnet_root}")
    assert "resume" not in str(error.value), "there is nothing to go on with"
    step = StudyModule.training_step

    def full(self, batch, batch_idx):
        if self.trainer.global_step == 11:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return step(self, batch, batch_idx)

    run = tmp_path / "late"
    with monkeypatch.context() as patch:
        patch.setattr(StudyModule, "training_step", full)
        with pytest.raises(
            UserError, match=rf"(?s)GPU's memory is too small: .*batch_size=2 .*whole: where there is more memory.*resume={run}"
        ):
            train_here(run, *SMALL, f"dataset.root={mrnet_root}")
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 8
    resume(run)
    assert same(weights(run), weights(whole)), "what was done is kept, and the step is repeated"
    settings = check_config(compose(*SMALL, "batch_size=1", "precision=bf16"))
    words = memory_in_words(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."), settings)
    assert words.startswith("the GPU's memory is too small: CUDA out of memory. What needs less: a smaller image.size")
    for said in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling", "Cuda failure 2 'out of memory'"):
        assert memory_in_words(RuntimeError(said), settings).startswith(
            f"the GPU's memory is too small: {said}. What needs less: "
        )
    killed = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    killed.__cause__ = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert "(/dev/shm), is too small: DataLoader worker" in memory_in_words(killed, settings)
    assert "What needs less: num_workers=0, " in memory_in_words(killed, settings)
    for said in ("shapes cannot be multiplied", "DataLoader worker (pid 7) is killed by signal: Terminated."):
        assert memory_in_words(RuntimeError(said), settings) is None


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


@pytest.mark.parametrize("kind", ["simple", "pytorch", "xla"])
def test_a_profiler_writes_where_the_time_goes(kind, train_here, tmp_path, mrnet_root, monkeypatch, caplog):
    caplog.set_level("INFO")
    options = [*SMALL, f"dataset.root={mrnet_root}", f"profiler={kind}"]
    if kind == "xla":
        with pytest.raises(UserError, match="it needs torch_xla"):
            train_here(tmp_path / "run", *options)
        return
    run, wanted = tmp_path / "run", {"optimizer_step", "[_TrainingEpochLoop].train_dataloader_next"}
    if kind == "simple":  # of a run that is stopped
        after = StopOnInterrupt.on_train_batch_end

        def signalled(self, trainer, *args):
            if trainer.global_step == 11:
                signal.raise_signal(signal.SIGTERM)
            after(self, trainer, *args)

        monkeypatch.setattr(StopOnInterrupt, "on_train_batch_end", signalled)
        with pytest.raises(Stopped):
            train_here(run, *options)
    else:
        train_here(run, *options)
        trace = json.loads((run / "profile" / "fit-pytorch.trace.json").read_text())["traceEvents"]
        assert [e.get("name") for e in trace].count("Optimizer.step#Adam.step") == 5
        wanted |= {"5 training steps, after 2", "Optimizer.step#Adam.step"}
    written = (run / "profile" / f"fit-{kind}.txt").read_text()
    assert all(words in written for words in wanted)
    assert f"where the time went: {run / 'profile'}" in caplog.text


def test_intervals_are_checked(compose):
    for wrong in ("5", "0 steps", "1.5 steps", "often"):
        with pytest.raises(UserError, match="checkpoint_every"):
            check_config(compose(*SMALL, f"checkpoint_every={wrong}"))
    check_config(compose(*SMALL, "checkpoint_every=2.5 minutes"))
