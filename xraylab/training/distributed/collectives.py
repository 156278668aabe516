"""Collective operations: what the processes of a run tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from xraylab.errors import UserError, listed

Value = TypeVar("Value")
PATIENT = timedelta(days=7)  # for what one process does and all wait for, as packing a dataset

# in what gloo, the store and NCCL say of a process that is not there; of other errors they say other things
SILENCE = (
    "gloo/transport", "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe",
    "Timed out waiting", "ncclRemoteError", "remote process exited", "NCCL communicator was aborted",
    "collective operation timeout",
)  # fmt: skip


class Groups:
    """The process groups of a run beside that of all."""

    patient: Any = None  # of all, which waits as long as PATIENT


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; the first, 0, writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather(value: Value, patiently: bool = False) -> list[Value]:
    """The value of every process, by rank, in every process. On a GPU, give what is on the CPU."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=Groups.patient if patiently else None)
    return values


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over processes."""
    if world() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def largest(*numbers: int) -> list[int]:
    """The largest of each over processes; waits for the others, but for no device."""
    if world() == 1:
        return list(numbers)
    values = torch.tensor(numbers)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return [int(v) for v in values]


def from_first(tensors: Iterator[Tensor]) -> None:
    """Overwrite tensors by those of the first process."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def in_turn(work: Callable[[], Value], local_rank: int) -> Value:
    """Do the same in every process, on each machine first in one, which leaves caches for the others.

    Raises:
        UserError: that of any process, in all of them.
    """
    error: UserError | None = None
    done: list[Value] = []
    for turn in (True, False) if world() > 1 else (True,):
        if turn is (local_rank == 0):
            try:
                done.append(work())
            except UserError as raised:
                error = raised
        said = gather(None if error is None else f"{error}", patiently=True)
        if wrong := [(r, text) for r, text in enumerate(said) if text is not None]:
            if error is not None and rank() == wrong[0][0]:
                raise error
            raise UserError(wrong[0][1])
    return done[0]


def agree(what: str, value: dict[str, Any]) -> None:
    """Check that all processes have the same.

    Args:
        what: it is, for messages.
        value: anything that has a text, by name.

    Raises:
        UserError: they have not, in all processes.
    """
    texts = {name: str(v) for name, v in value.items()}
    first, *others = gather(texts, patiently=True)
    for number, other in enumerate(others, 1):
        if names := sorted(n for n in first.keys() | other.keys() if first.get(n) != other.get(n)):
            shown = [f"{n} ({first.get(n, 'none')[:80]} and {other.get(n, 'none')[:80]})" for n in names]
            raise UserError(f"processes 0 and {number} have different {what}: {listed(shown, 5)}. Start all with the same.")


def is_lost(error: BaseException | None) -> bool:
    """Whether an exception says that another process does not answer."""
    return world() > 1 and isinstance(error, RuntimeError) and any(word in str(error) for word in SILENCE)


def abort_nccl() -> None:
    """Give up what this GPU still waits for from other processes: whatever ends a run would wait for it as well."""
    if dist.is_initialized() and torch.cuda.is_available():
        with suppress(Exception):
            backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cuda"))
            if backend.name() == "nccl":
                backend.abort()
