"""What breaks a run is said in words, with what to do, and what was written before stays whole."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from test_survive import SMALL, resume, same, weights
from test_survive import whole as whole

from xraylab.config.settings import check_config
from xraylab.errors import UserError
from xraylab.run import claimed
from xraylab.system.files import beside
from xraylab.training import fit as fitting
from xraylab.training.callbacks.finite_loss import FiniteLoss
from xraylab.training.checkpoints import read_checkpoint
from xraylab.training.devices import memory_in_words
from xraylab.training.study_module import StudyModule


def test_a_broken_checkpoint_is_named_with_those_that_are_whole(whole, train_here, tmp_path, mrnet_root):
    run = shutil.copytree(whole, tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"last.ckpt: not a whole checkpoint(?s:.*)resume={run}/checkpoints/best.ckpt   # epoch"):
        resume(run)
    assert best["global_step"] == 8
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
