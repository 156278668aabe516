"""A GPU gives what the CPU gives, and no step waits for it. Most of this runs only where one is."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from conftest import assemble, compose_config
from pytorch_lightning.callbacks import Callback
from test_processes import SMALL, environment, same_run
from torch.utils._python_dispatch import TorchDispatchMode

from xraylab.config.resume import resumed_config
from xraylab.train import train
from xraylab.training.distributed.collectives import abort_nccl, summed
from xraylab.training.fit import fit

GPUS = torch.cuda.device_count()
one_gpu = pytest.mark.skipif(GPUS < 1, reason=f"needs a GPU that torch {torch.__version__} can use; there is none")
two_gpus = pytest.mark.skipif(GPUS < 2, reason=f"needs two GPUs; there are {GPUS}")
OPTIONS = [
    "backbone=cnn", "backbone.layers=2", "backbone.filters=8", "image.size=32", "batch_size=4", "accumulate=2", "max_epochs=3",
    "optimizer=sgd", "optimizer.lr=1e-3", "monitor=valid/loss", "early_stopping=null", "bootstrap=0", "num_workers=0", "cases=0",
]  # fmt: skip
DATASETS = {
    "mrnet": ["dataset=mrnet", "plane=all", "task=[acl,abnormal]"],
    "mura": ["dataset=mura", "loss.balance=group"],
    "chexpert": ["dataset=chexpert", "findings=competition", "view=all", "unit=image", "loss.u=0.7", "loss.w=0.5"],
}


@pytest.fixture
def of_dataset(request):
    """``of_dataset(name)``: overrides that train on the tiny tree of that dataset."""

    def options(name):
        return [*OPTIONS, *DATASETS[name], f"dataset.root={request.getfixturevalue(f'{name}_root')}"]

    return options


class NoNumbers(TorchDispatchMode):
    """Refuses operations whose result, or its shape, the host has to wait for."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "repeat_interleave")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, name
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]), f"{name} by a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", DATASETS)
def test_a_step_asks_its_device_for_no_number(name, of_dataset):
    """Also seen without a GPU: forward, loss and backward."""
    options = of_dataset(name)
    job = assemble(compose_config(*options), options)
    batch = next(iter(job.data.train_dataloader()))
    with NoNumbers():
        job.module.training_step(batch, 0).backward()
    assert all(p.grad is not None for p in job.module.parameters() if p.requires_grad)
    with NoNumbers(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        float(batch.labels.sum())
    with NoNumbers(), pytest.raises(AssertionError, match="index by a mask"):
        batch.labels[batch.labels > 0]


@one_gpu
@pytest.mark.parametrize("name", DATASETS)
def test_in_bf16_a_gpu_learns_what_the_cpu_learns(name, of_dataset, train_here, tmp_path):
    options = of_dataset(name)
    cpu = train_here(tmp_path / "cpu", *options, "accelerator=cpu", "precision=32")
    gpu = train_here(tmp_path / "gpu", *options, "accelerator=gpu", "precision=bf16")
    record = json.loads((gpu / "environment.json").read_text())
    assert (record["device"], record["precision"]) == ("gpu", "bf16-mixed")
    a, b = (pd.read_csv(run / "history.csv") for run in (cpu, gpu))
    for column in ("train/loss", "valid/loss"):
        np.testing.assert_allclose(b[column], a[column], rtol=1e-2)
    a, b = (pd.read_csv(run / "predictions" / "test.csv", dtype={"id": str}) for run in (cpu, gpu))
    assert b["id"].tolist() == a["id"].tolist()
    for column in a.filter(regex="^p_"):
        np.testing.assert_allclose(b[column], a[column], atol=1e-2)


class NoSync(Callback):
    """From the third batch on, whatever makes the host wait for the GPU is an error, up to validation."""

    def __init__(self):
        self.watched = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx >= 2:  # the first make the optimizer's state, and choose algorithms
            self.watched += 1
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # else callbacks after this one are watched too
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer, pl_module, exception):
        torch.cuda.set_sync_debug_mode("default")


@one_gpu
@pytest.mark.parametrize("name", DATASETS)
def test_no_step_waits_for_a_gpu(name, of_dataset, tmp_path):
    """With what a run has: Adam, clipping, dropout, averaged weights, and callbacks that look at the loss every so often."""
    options = [*of_dataset(name), "accelerator=gpu", "precision=bf16", "optimizer=adam", "gradient_clip=1.0", "head.dropout=0.2",
               "callbacks=ema", "log_every=1000", "max_epochs=2"]  # fmt: skip
    watch = NoSync()
    fit(assemble(compose_config(*options), options), tmp_path, more=[watch])
    assert watch.watched > 4
    one = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            float(one)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@one_gpu
def test_a_run_resumed_on_a_gpu_is_that_which_was_not_stopped(train_here, tmp_path, mrnet_root, monkeypatch):
    """To the rounding of sums that a GPU takes in any order; with other dropout or pictures it would not be near."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = [*OPTIONS, f"dataset.root={mrnet_root}", "accelerator=gpu", "precision=32", "head.dropout=0.5",
               "augmentation=mrnet", "optimizer=adam", "optimizer.lr=1e-4"]  # fmt: skip
    whole = train_here(tmp_path / "whole", *options)
    part = train_here(tmp_path / "part", *options, "max_epochs=2")
    words = [f"resume={part}", "max_epochs=3"]
    train(resumed_config(str(part), words), part, words)
    a, b = (pd.read_csv(run / "history.csv") for run in (whole, part))
    np.testing.assert_allclose(b["train/loss"], a["train/loss"], rtol=1e-3)
    other = train_here(tmp_path / "other", *options, "seed=1")
    assert not np.allclose(pd.read_csv(other / "history.csv")["train/loss"], a["train/loss"], rtol=1e-3)


@one_gpu
def test_a_gpu_runs_the_main_job(train_here, tmp_path, mrnet_root):
    options = ["image.size=64", "backbone.pretrained=false", "bootstrap=20", "max_epochs=2", "batch_size=4"]
    run = train_here(tmp_path / "run", *options, "accelerator=gpu", "precision=auto", f"dataset.root={mrnet_root}", report=True)
    assert json.loads((run / "evaluation.json").read_text())["splits"]["test"]["n"] == 30
    assert (run / "report.html").is_file()


@two_gpus
def test_two_gpus_are_one_run(train_here, tmp_path, mrnet_root, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = [*(o for o in SMALL if o != "accelerator=cpu"), f"dataset.root={mrnet_root}"]
    one = train_here(tmp_path / "one", *options, "accelerator=gpu")
    done = subprocess.run(
        [sys.executable, "-m", "xraylab.train", *options, "accelerator=gpus", "accelerator.devices=2",
         f"hydra.run.dir={tmp_path / 'two'}"],
        cwd=tmp_path, env=environment(NVIDIA_TF32_OVERRIDE="0"), capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    same_run(one, tmp_path / "two")


def test_what_a_gpu_waits_for_is_given_up_and_gloo_is_left_alone(monkeypatch, tmp_path):
    """By a stand-in for NCCL: a process that is lost, and the work that waits for it, takes two GPUs to be seen."""
    aborted = []
    backend = SimpleNamespace(name=lambda: "nccl", abort=lambda: aborted.append("nccl"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    abort_nccl()  # nothing is joined
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        abort_nccl()
        assert summed(torch.ones(2)).tolist() == [1, 1]
        dist.barrier()
        group = dist.distributed_c10d._get_default_group()
        monkeypatch.setattr(dist.distributed_c10d, "_get_default_group", lambda: SimpleNamespace(_get_backend=lambda _: backend))
        abort_nccl()
        assert aborted == ["nccl"]
        dist.barrier(group)
    finally:
        monkeypatch.undo()
        dist.destroy_process_group()
