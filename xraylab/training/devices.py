"""The device that a run computes on, its precision and its memory."""

from __future__ import annotations

import logging
import re
from typing import Any

import torch

from xraylab.config.settings import Settings
from xraylab.errors import UserError
from xraylab.system.processes import SINGLE_PROCESS, Processes
from xraylab.training.xla import precision_of_tpu, require_tpu, tpu_there

log = logging.getLogger(__name__)
TOO_LITTLE = "out of memory|ALLOC_FAILED|can't allocate memory|not enough memory"


def memory_in_words(error: BaseException, settings: Settings) -> str | None:
    """Which settings to change, if an error is about too little memory."""
    text = f"{error} {error.__cause__ or ''}".strip()
    on_gpu = isinstance(error, torch.OutOfMemoryError) or re.search("cuda|cublas|cudnn", text, re.I) is not None
    of_reader = re.search(r"DataLoader worker.*(?:signal: Killed|Bus error)", text, re.S) is not None
    if not (isinstance(error, MemoryError) or of_reader or re.search(TOO_LITTLE, text, re.I)):
        return None
    b, a = settings.batch_size, settings.accumulate
    part = 1 if b % 2 else b // 2
    fewer = [f"batch_size={part} accumulate={a * b // part} (the same step in smaller parts)"] if b > 1 else []
    size = f"a smaller image.size (now {settings.image.size or 'as the images are'})"
    precision = ["precision=bf16"] if settings.precision == "32" else []
    first = (text.splitlines() or ["MemoryError"])[0].split(". ")[0][:200]
    where = "the memory, or what of it readers share (/dev/shm)," if of_reader else "the GPU's memory" if on_gpu else "the memory"
    readers = ["num_workers=0"] if of_reader else []
    less = ", ".join([*readers, *fewer, size, *precision])
    return f"{where} is too small: {first}. What needs less: {less}, or a smaller backbone. These belong to a new run."


def no_gpu(asked: str) -> UserError:
    """The error where a GPU is asked for and none is there."""
    return UserError(
        f"accelerator={asked}: there is no GPU that torch {torch.__version__} can use here; there is the CPU (accelerator=cpu)."
    )


def hardware(accelerator: dict[str, Any], precision: str, processes: Processes = SINGLE_PROCESS) -> tuple[dict[str, Any], str]:
    """Arguments of the Trainer for the device that is there, and its precision; both are logged.

    Raises:
        UserError: the device asked for is not there, or does not have that precision.
    """
    # those are what the processes were planned by
    accelerator = {k: v for k, v in accelerator.items() if k != "timeout"}
    accelerator |= {"devices": processes.local_world, "num_nodes": processes.machines}
    gpu = torch.cuda.is_available()
    asked = accelerator.get("accelerator", "auto")
    accelerator["accelerator"] = kind = "gpu" if asked in ("gpus", "cuda") else asked
    if kind == "gpu" and not gpu:
        raise no_gpu(asked)
    if kind == "auto":
        accelerator["accelerator"] = kind = "gpu" if gpu else "tpu" if tpu_there() else "cpu"
    if kind == "tpu":
        require_tpu(processes.world, "the GPU (accelerator=gpu)" if gpu else "the CPU (accelerator=cpu)")
        chosen = precision_of_tpu(precision)
        accelerator = {"static_shapes": True, **accelerator}
        log.info("device: TPU; precision %s, shapes %s", chosen, "static" if accelerator["static_shapes"] else "as they come")
        return accelerator, chosen
    on_gpu = kind == "gpu"
    can = getattr(torch.cpu, "get_capabilities", dict[str, Any])()  # torch 2.9, which torch_xla needs, cannot tell
    has_bf16 = (
        torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    )
    if accelerator.get("sync_batchnorm"):
        raise UserError(
            "accelerator.sync_batchnorm: torch puts plain norms in the place of timm's, whose activations are lost. Leave "
            "it out: one process has the statistics of whole batches."
        )
    if precision == "16" and not on_gpu:
        raise UserError("precision=16 needs a GPU; on a CPU it is bf16 or 32.")
    chosen = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}.get(precision) or ("bf16-mixed" if has_bf16 else "32-true")
    count = torch.cuda.device_count() if on_gpu else 0
    if on_gpu and processes.local_world > count:
        raise UserError(
            f"accelerator={asked}: {processes.local_world} processes on a machine where torch sees {count} "
            f"GPU{'s' * (count > 1)}, and each takes one. "
            "Start fewer, or accelerator=cpu; on SLURM let every process see all (--gpus-per-node)."
        )
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    if processes.world > 1:
        machines = f" on {processes.machines} machines" if processes.machines > 1 else ""
        device = f"{processes.world} processes{machines}, ddp, each {device}"
    elif count > 1:
        device += f", one of {count} (accelerator=gpus takes all)"
    hint = " (precision=32 for plain float32)" if chosen != "32-true" else ""
    log.info("device: %s; precision %s, channels_last%s", device, chosen, hint)
    return accelerator, chosen
