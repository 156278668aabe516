"""A TPU's path, on the XLA CPU device: ``make test-xla`` makes the environment that has torch_xla and runs these."""

from __future__ import annotations

import os
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch

if find_spec("torch_xla") is None:
    pytest.skip("torch_xla is not installed beside this torch: make test-xla", allow_module_level=True)
os.environ.setdefault("PJRT_DEVICE", "CPU")

import torch_xla
from conftest import assemble
from lightning_fabric.accelerators import XLAAccelerator
from pytorch_lightning.callbacks import Callback
from torch_xla.debug import metrics

import xraylab
from xraylab.data.synthetic.knee import write_mrnet
from xraylab.errors import UserError
from xraylab.models import Attention, MaxFeature, MaxProbability, MeanProbability
from xraylab.system.processes import Processes
from xraylab.training.devices import hardware
from xraylab.training.fit import fit
from xraylab.training.xla import XLAStep, device_options

torch_xla.device()  # before torch's first backward pass, which counts the kinds of devices once and for all
pytestmark = pytest.mark.timeout(1800)  # compiling takes long where others compute too

SMALL = ["backbone=cnn", "backbone.layers=2", "backbone.filters=4", "image.size=16", "batch_size=4", "optimizer.lr=1e-3",
         "bootstrap=0", "num_workers=0", "cases=0", "early_stopping=null", "gradient_clip=1.0"]  # fmt: skip


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The CPU stands in for a TPU's core."""
    monkeypatch.setattr(XLAAccelerator, "auto_device_count", staticmethod(lambda: 1))
    monkeypatch.setattr(XLAAccelerator, "is_available", staticmethod(lambda: True))


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """MRNet with exams of 2 to 9 slices, so that batches of 4 have 8 to 36; 41 - 8 of train leave a batch of one."""
    return write_mrnet(tmp_path_factory.mktemp("xla") / "MRNet-v1.0", train=41, valid=30, slices=(2, 9))


def compiled() -> int:
    return (metrics.metric_data("CompileTime") or [0])[0]


def fallbacks() -> dict[str, int]:
    return {name: metrics.counter_value(name) for name in metrics.counter_names() if name.startswith("aten::")}


class Watch(Callback):
    """Compilations, host syncs and shapes by training step, and compilations by epoch."""

    def __init__(self) -> None:
        self.steps, self.epochs = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch_xla.sync()  # what validation left is not of the step
        self.before = compiled(), fallbacks()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        count, fell = self.before
        shape = tuple(batch.images.shape[:1]), len(batch.labels)
        self.steps.append((trainer.current_epoch, shape, compiled() - count, fallbacks() != fell))

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(compiled())


def test_ragged_exams_are_compiled_once_and_nothing_falls_back(compose, tmp_path, ragged):
    """With what a run has: batch normalisation, dropout, augmentation, accumulation, clipping."""
    options = [*SMALL, f"dataset.root={ragged}", "accelerator=tpu", "max_epochs=6", "head.dropout=0.2", "augmentation=mrnet",
               "accumulate=2", "log_every=1000"]  # fmt: skip
    job = assemble(compose(*options), options)
    assert job.precision == "bf16-mixed"
    watch = Watch()
    job.callbacks.append(watch)
    fit(job, tmp_path)
    assert next(job.module.parameters()).dtype == torch.float32
    shapes = {shape for _, shape, _, _ in watch.steps}
    assert len(shapes) > 2, "more than one size, and the last batch"
    seen: Counter[object] = Counter()
    for k, (_, shape, count, _) in enumerate(watch.steps):
        graph = shape, k % len(job.data.train_dataloader()) % 2  # the second batch of a step adds to gradients that are there
        assert count == 0 or seen[graph] < 2, str(watch.steps)
        seen[graph] += 1
    assert max(seen.values()) > 4
    # of the few numbers that checkpoints are chosen by, some graph is new where an epoch is the first that is better, or worse
    assert watch.epochs[-1] - watch.epochs[2] <= 4, watch.epochs
    # before the first step is done its loss is looked at, as after every log_every steps
    assert not any(fell for *_, fell in watch.steps[1:]), "no operation runs on the CPU, and no step waits for a number"
    assert set(fallbacks()) <= {"aten::_local_scalar_dense"}


def test_ragged_batches_that_are_not_filled_compile_again_and_again(compose, tmp_path, ragged):
    """What the test above would not see, were its measure blind."""
    options = [*SMALL, f"dataset.root={ragged}", "accelerator=tpu", "accelerator.static_shapes=false", "max_epochs=4"]
    job = assemble(compose(*options), options)
    watch = Watch()
    job.callbacks.append(watch)
    fit(job, tmp_path)
    assert sum(count for epoch, _, count, _ in watch.steps if epoch >= 2) > 0


@pytest.mark.parametrize(("precision", "rtol"), [("32", 1e-3), ("bf16", 3e-2)])
def test_the_loss_curve_is_that_of_the_cpu(precision, rtol, train_here, tmp_path, ragged):
    # Adam makes steps of what rounding leaves of the gradient of a bias that batch normalisation takes out again
    options = [*SMALL, f"dataset.root={ragged}", f"precision={precision}", "max_epochs=3", "monitor=valid/loss",
               "optimizer=sgd", "optimizer.lr=0.005"]  # fmt: skip
    runs = {kind: train_here(tmp_path / kind, *options, f"accelerator={kind}") for kind in ("cpu", "tpu")}
    cpu, tpu = (pd.read_csv(run / "history.csv") for run in runs.values())
    for column in ("train/loss", "valid/loss"):
        np.testing.assert_allclose(tpu[column], cpu[column], rtol=rtol)
    tables = [pd.read_csv(run / "predictions" / "test.csv") for run in runs.values()]
    assert tables[0]["id"].tolist() == tables[1]["id"].tolist()
    np.testing.assert_allclose(tables[1]["p_acl"], tables[0]["p_acl"], atol=rtol)
    image = np.load(ragged / "valid" / "axial" / "0041.npy")
    model = xraylab.load(runs["tpu"])
    assert next(model.parameters()).device.type == "cpu"
    expected = tables[1].set_index("id").loc[41, "p_acl"]
    assert model.predict(image)["acl"] == pytest.approx(expected, abs=rtol)


def test_a_resumed_run_is_that_which_was_not_stopped(compose, train_here, tmp_path, ragged):
    from xraylab.config.resume import resumed_config
    from xraylab.train import train

    options = [*SMALL, f"dataset.root={ragged}", "accelerator=tpu", "head.dropout=0.5"]
    whole = train_here(tmp_path / "whole", *options, "max_epochs=3")
    part = train_here(tmp_path / "part", *options, "max_epochs=2")
    words = [f"resume={part}", "max_epochs=3"]
    train(resumed_config(str(part), words), part, words)
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, part))
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [MaxFeature, MeanProbability, MaxProbability, Attention])
def test_pools_and_their_gradients_are_lowered(pool):
    torch.manual_seed(0)
    made, head = pool(), torch.nn.Linear(5, 4)
    made.build(5, 2)
    x, study, weights = torch.randn(9, 5), torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3]), torch.randn(3, 2)
    found = []
    for device in ("cpu", "xla"):
        made, head = made.to(device), head.to(device)
        features = x.to(device).detach().requires_grad_()
        out = made(features, study.to(device), 3, head)
        out.square().sum().backward()
        by_group = weights.to(device)[torch.tensor([0, -1, 1], device=device)]
        found.append([t.detach().cpu() for t in (out, features.grad, by_group)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
    assert set(fallbacks()) <= {"aten::_local_scalar_dense"}


def test_what_a_tpu_has_not_is_refused(monkeypatch, compose):
    with pytest.raises(UserError, match="averaged weights do not work on a TPU"):
        assemble(compose("accelerator=tpu", "callbacks=ema"), ["accelerator=tpu", "callbacks=ema"])
    with pytest.raises(UserError, match=r"precision=16: on a TPU it is bf16 or 32"):
        hardware({"accelerator": "tpu"}, "16")
    with pytest.raises(UserError, match="2 processes, but of a TPU one core"):
        hardware({"accelerator": "tpu"}, "auto", Processes(2, local_world=2))
    options, precision = hardware({"accelerator": "auto", "devices": 1}, "auto")
    assert (options["accelerator"], options["static_shapes"], precision) == ("tpu", True, "bf16-mixed")
    assert isinstance(device_options(options, precision)["plugins"][0], XLAStep)
    monkeypatch.setattr(XLAAccelerator, "is_available", staticmethod(lambda: False))
    with pytest.raises(UserError, match=r"accelerator=tpu: torch_xla 2\.9\.0 finds no TPU here; there is the CPU"):
        hardware({"accelerator": "tpu"}, "auto")
