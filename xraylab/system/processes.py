"""The processes of a run: one a device, each of which trains on its share of every batch.

They are started by torchrun, by srun, or by the first of them (:mod:`xraylab.training.distributed.launch`); from there on nothing
differs. All have the same settings and the same table; the first writes, prints and speaks for all. Nothing here imports torch,
but to count GPUs where all are asked for.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from xraylab.errors import UserError

TIMEOUT = 30.0  # minutes


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and which of them this one is.

    Attributes:
        world, rank: of all machines.
        local_world, local_rank: of this machine; every machine has as many.
        launcher: what started them: ``torchrun``, ``srun``, or empty: they are started here, or there is only one.
        address, port: where they meet.
        timeout: minutes without word from the others after which a process gives up; of one that ends they hear at once.
    """

    world: int = 1
    rank: int = 0
    local_world: int = 1
    local_rank: int = 0
    launcher: str = ""
    address: str = "127.0.0.1"
    port: int = 0
    timeout: float = TIMEOUT

    @property
    def machines(self) -> int:
        """How many there are."""
        return self.world // self.local_world

    @property
    def again(self) -> str:
        """The launcher that starts as many, in place of ``python``; of several machines its arguments cannot be known."""
        if self.launcher != "torchrun":
            return "python"
        return f"torchrun --nproc-per-node={self.local_world}" if self.machines == 1 else "torchrun …"

    @property
    def name(self) -> str:
        """This process, for messages."""
        return f"process {self.rank} of {self.world}"


SINGLE_PROCESS = Processes()


def launched(environment: Mapping[str, str] = os.environ) -> Processes:
    """The processes that torchrun or srun started, as they tell it this one; ``SINGLE_PROCESS`` where neither started it.

    Raises:
        UserError: machines have different numbers of processes.
    """
    e = environment
    if "RANK" in e and "WORLD_SIZE" in e:  # of torchrun, and of what does as torchrun does
        found = Processes(
            int(e["WORLD_SIZE"]), int(e["RANK"]), int(e.get("LOCAL_WORLD_SIZE", 1)), int(e.get("LOCAL_RANK", 0)), "torchrun",
            e.get("MASTER_ADDR", "127.0.0.1"), int(e.get("MASTER_PORT", 29500)),
        )  # fmt: skip
    elif int(e.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        world, machines = int(e["SLURM_STEP_NUM_TASKS"]), int(e.get("SLURM_STEP_NUM_NODES", 1))
        if e.get("SLURM_STEP_TASKS_PER_NODE", str(world)) not in (f"{world // machines}(x{machines})", str(world // machines)):
            raise UserError(f"srun started {e['SLURM_STEP_TASKS_PER_NODE']} processes a machine: every machine needs as many.")
        nodes = e.get("SLURM_STEP_NODELIST", e.get("SLURM_JOB_NODELIST", "127.0.0.1"))
        port = int(e.get("MASTER_PORT", 20000 + int(e.get("SLURM_JOB_ID", 0)) % 10000))
        found = Processes(
            world, int(e["SLURM_PROCID"]), world // machines, int(e["SLURM_LOCALID"]), "srun", first_host(nodes), port
        )
    else:
        return SINGLE_PROCESS
    if found.world % found.local_world:
        raise UserError(f"{found.launcher} started {found.world} processes, and not as many on each machine.")
    return found


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def sweep_words(here: Processes) -> str:
    """The message that refuses a sweep in processes that were started for it."""
    return (
        f"a sweep under {here.launcher}: each of the {here.world} processes would run all of it. Start it without "
        f"{here.launcher}; accelerator.devices=<number> starts the processes of each job."
    )


def first_host(nodes: str) -> str:
    """The first of SLURM's list of hosts: ``node[07-09,12],other`` is ``node07``."""
    head, bracket, rest = nodes.partition("[")
    if "," in head or not bracket:
        return head.split(",")[0]
    numbers, _, end = rest.partition("]")
    return head + numbers.split(",")[0].split("-")[0] + end.split(",")[0]


def planned(accelerator: Mapping[str, Any], sweep: bool = False, environment: Mapping[str, str] = os.environ) -> Processes:
    """The processes that a configuration asks for, if they are there or can be started.

    Args:
        accelerator: the group's keys; ``devices``: a number, ``all`` GPUs of the machine, or ``auto``: as many as were started;
            ``num_nodes``: a number, or ``auto``, as started by torchrun or srun.
        sweep: the configuration is a job of a sweep.

    Raises:
        UserError: another number was started, or they cannot be started here.
    """
    here = launched(environment)
    devices, nodes = accelerator.get("devices", "auto"), accelerator.get("num_nodes", 1)
    timeout = accelerator.get("timeout", TIMEOUT)
    for key, value, words in (("devices", devices, ("auto", "all")), ("num_nodes", nodes, ("auto",))):
        if value not in words and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"accelerator.{key}={value}: it is a number from 1 on, or {' or '.join(words)}.")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
        raise UserError(f"accelerator.timeout={timeout}: it is a number of minutes, above 0.")
    if "strategy" in accelerator:
        raise UserError("accelerator.strategy: it is ddp where there are several processes. Leave it out.")
    if devices == "all":
        import torch

        devices = max(torch.cuda.device_count(), 1)  # without a GPU, what is there is said later
    if here.launcher and sweep and here.world > 1:
        raise UserError(sweep_words(here))
    machines = f"{here.machines} machines" if here.machines > 1 else "one machine"
    started = f"{here.world} processes on {machines}" if here.world > 1 else "one process"
    if not here.launcher:
        if nodes == "auto" or nodes > 1:
            asked = "accelerator=multinode" if nodes == "auto" else f"accelerator.num_nodes={nodes}"
            raise UserError(
                f"{asked}: this process was started alone. Start as many on every machine, with\n"
                "  torchrun --nnodes=<machines> --nproc-per-node=<devices> --rdzv-backend=c10d --rdzv-endpoint=<first machine> "
                "-m xraylab.train …\nor with srun python -m xraylab.train … on SLURM. "
                "For this process alone: leave it out, or accelerator=auto."
            )
        world = 1 if devices == "auto" else devices
        return Processes(world, local_world=world, timeout=timeout)
    if nodes == "auto" and here.machines == 1:
        raise UserError(
            f"accelerator=multinode: {here.launcher} started {started}. Of several machines it has to be told (torchrun "
            "--nnodes=<machines>, srun --nodes=<machines>), or each trains on its own. For one machine: accelerator=auto."
        )
    if nodes not in ("auto", here.machines):
        raise UserError(
            f"{here.launcher} started {started}, but accelerator.num_nodes={nodes}. For several machines: accelerator=multinode."
        )
    if devices not in ("auto", here.local_world):
        raise UserError(
            f"{here.launcher} started {started}, {here.local_world} on each, but accelerator.devices={devices}: "
            f"they must agree. Leave accelerator.devices out, or start {devices} on each."
        )
    return Processes(**{**vars(here), "timeout": timeout})


def shared_gpus(count: int, devices: int, at_once: int) -> str:
    """How jobs that run at a time share the GPUs of a machine, in words.

    Args:
        count: GPUs.
        devices: of each job.
        at_once: jobs.

    Raises:
        UserError: jobs of several GPUs do not fit beside each other.
    """
    places = count // devices
    if at_once > places and (devices > 1 or not places):
        raise UserError(
            f"accelerator.devices={devices}: {at_once} jobs at a time take {at_once * devices} GPUs, and torch sees {count}. "
            f"Run fewer at a time (hydra.launcher.n_jobs={max(places, 1)}), or give each fewer."
        )
    if at_once > places:
        share = f"up to {-(-at_once // places)} share a GPU (hydra.launcher.n_jobs={places}: each has its own)"
    else:
        share = f"each on {devices} of its own" if devices > 1 else "each on its own"
    return f"{at_once} job{'s' * (at_once > 1)} at a time on {count} GPU{'s' * (count > 1)}: {share}"


_place: list[TextIO] = []  # held by this process until it ends


def own_gpus(folder: Path, devices: int) -> None:
    """Keep this process to GPUs of its own among those that are visible, as long as there are any that no other has.

    It does so once, before CUDA starts, by ``CUDA_VISIBLE_DEVICES``. The lowest place that no process holds is taken; it is free
    again when this one ends.

    Args:
        folder: where the processes that share them find each other.
        devices: GPUs that this one needs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if _place or len(visible) <= devices:
        return
    for k in itertools.count():
        file = (folder / f".gpu{k}.lock").open("a", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                continue
        _place.append(file)
        first = k % (len(visible) // devices) * devices
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first : first + devices])
        return


def silence() -> None:
    """Turn off the logs and warnings of this process; the first one speaks for all."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
