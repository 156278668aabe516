"""TPUs, by torch_xla: what is there, how a step is run, and what was compiled.

XLA compiles a graph for every shape of its inputs, so batches are filled, see :class:`xraylab.data.batching.StudyDataset`, and
nothing in a step may depend on a value. Metrics need nothing of it: logits leave the device once an epoch.

torch_xla is an optional package, so it is imported where it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning.accelerators import XLAAccelerator
from pytorch_lightning.plugins import XLAPrecision
from pytorch_lightning.plugins.io import XLACheckpointIO
from torch import Tensor

from xraylab.errors import UserError
from xraylab.training.checkpoints import CheckpointFiles

log = logging.getLogger(__name__)
PRECISIONS = {"auto": "bf16-mixed", "bf16": "bf16-mixed", "32": "32-true"}


def tpu_there() -> bool:
    """Whether torch_xla is installed and has a TPU."""
    return find_spec("torch_xla") is not None and XLAAccelerator.is_available()


def on_tpu(accelerator: dict[str, Any]) -> bool:
    """Whether these arguments of a Trainer name a TPU."""
    return accelerator.get("accelerator") == "tpu"


def require_tpu(processes: int, others: str) -> None:
    """Check that there is a TPU for one process.

    Args:
        processes: of the run.
        others: the devices that are there, in words.

    Raises:
        UserError: there is none, or more than one core is asked for.
    """
    if find_spec("torch_xla") is None:
        raise UserError(f"accelerator=tpu: torch_xla, which a TPU needs, is not installed beside this torch; there is {others}.")
    if not tpu_there():
        raise UserError(f"accelerator=tpu: torch_xla {version('torch_xla')} finds no TPU here; there is {others}.")
    if processes > 1:
        raise UserError(f"accelerator=tpu: {processes} processes, but of a TPU one core is used: accelerator.devices=1.")


def precision_of_tpu(precision: str) -> str:
    """The Trainer's name of a precision on a TPU.

    Raises:
        UserError: a TPU has not that precision.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision}: on a TPU it is bf16 or 32.")
    return PRECISIONS[precision]


def device_options(accelerator: dict[str, Any], precision: str, *plugins: Any) -> dict[str, Any]:
    """Arguments of every Trainer: of a device and its precision, of our own samplers, and plugins beside what a TPU needs."""
    ours = {**accelerator, "use_distributed_sampler": False, "enable_model_summary": False}
    if on_tpu(accelerator):
        return {**ours, "plugins": [XLAStep(precision), *plugins]}
    return {**ours, "precision": precision, "plugins": list(plugins)}


class XLAStep(XLAPrecision):
    """XLA's precision plugin: steps end where their graph does; weights are float32, matrix products float32 or bfloat16.

    Not Lightning's ``bf16-true``: that makes XLA keep every number in bfloat16, weights and the sum of an epoch's losses too,
    where a step of 1e-5 on a weight of 0.01 changes nothing.

    Args:
        precision: ``32-true`` or ``bf16-mixed``.
    """

    def __init__(self, precision: str) -> None:
        super().__init__("32-true")
        self.precision = precision  # type: ignore[assignment]

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Context in which the network computes."""
        with torch.autocast("xla", dtype=torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext():
            yield

    @contextmanager
    def train_step_context(self) -> Iterator[None]:
        """A step that begins where its graph does: what validation left undone would make an epoch's first step another graph."""
        import torch_xla

        torch_xla.sync()
        with self.forward_context():
            yield

    @contextmanager
    def val_step_context(self) -> Iterator[None]:
        """A step that is run at its end: nothing else would run it before the epoch's, as one graph of all of them."""
        import torch_xla

        with self.forward_context():
            yield
        torch_xla.sync()

    test_step_context = predict_step_context = val_step_context

    def post_backward(self, tensor: Tensor, module: pl.LightningModule) -> Tensor:  # type: ignore[override]
        """Run what an optimiser step accumulates batch by batch, for the graph of several has the shapes of all of them."""
        import torch_xla

        loss = super().post_backward(tensor, module)
        if module.trainer.accumulate_grad_batches > 1:
            torch_xla.sync()
        return loss


class XLACheckpointFiles(CheckpointFiles, XLACheckpointIO):
    """Checkpoint files of a run on a TPU, by way of the host; of Lightning's kind, which XLA's strategy wants."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Copy a checkpoint to the host, and write it or begin to.

        Raises:
            CannotWrite: this one, or the one before it, cannot be written.
        """
        super().save_checkpoint(move_data_to_device(checkpoint, torch.device("cpu")), path, storage_options)


def log_compiled() -> None:
    """Say what was compiled so far, and what XLA could not."""
    from torch_xla.debug import metrics

    compiled, nanoseconds, _ = metrics.metric_data("CompileTime") or (0, 0, None)
    log.info("XLA: %d graphs compiled, in %.1f s (profiler=xla tells more)", compiled, nanoseconds / 1e9)
    # reading one number, as a log line does, is counted as if it were an operation that XLA lacks
    lacking = [name for name in metrics.counter_names() if name.startswith("aten::") and name != "aten::_local_scalar_dense"]
    if lacking:
        log.warning("XLA lacks %s: they ran on the CPU, while the device waited.", ", ".join(lacking))
