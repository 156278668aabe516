"""How the processes of a run meet and what they say to each other; with one process, all of it is nothing.

Objects and numbers of the CPU go over gloo, tensors of a GPU over NCCL.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from xraylab.errors import Lost, Stopped, UserError
from xraylab.system.processes import Processes, cores
from xraylab.system.signals import ignore_signals
from xraylab.training.distributed.collectives import PATIENT, Groups, abort_nccl, is_lost

log = logging.getLogger(__name__)

JOIN = timedelta(minutes=10)  # for processes to start and to find each other
GRACE = 10.0  # seconds for others to end, or to say why they did

_store: Any = None


def _store_of_others(processes: Processes) -> tuple[Any, bool]:
    """The store at which processes meet that this one did not start, and whether this one keeps it."""
    if processes.launcher:
        shared = processes.launcher == "torchrun" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        hosting = processes.rank == 0 and not shared
        return dist.TCPStore(processes.address, processes.port, None, hosting, JOIN, wait_for_workers=False), hosting
    store = dist.TCPStore(processes.address, processes.port, is_master=False, timeout=JOIN)
    store.set(f"here/{processes.rank}", "1")
    return store, False


def _part(children: list[subprocess.Popen[bytes]]) -> None:
    with ignore_signals():
        with suppress(Exception):  # where others are gone
            dist.destroy_process_group()
        Groups.patient = None
        _end(children)


@contextmanager
def process_group(processes: Processes, start: Callable[[Processes], bytes] | None = None) -> Iterator[None]:
    """Meet the other processes, and part from them at the end.

    Args:
        start: for processes that nothing started: of the process that each will be, what :func:`main` reads.

    Raises:
        Lost: they do not come, or one went away, or failed.
        UserError: the mistake that another one ended with.
    """
    global _store
    if processes.world == 1:
        yield
        return
    timeout = timedelta(minutes=processes.timeout)
    children: list[subprocess.Popen[bytes]] = []
    threads, named = torch.get_num_threads(), "OMP_NUM_THREADS" in os.environ
    backend, hosting = "gloo", False
    if torch.cuda.is_available():
        if processes.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(processes.local_rank)
        backend = "cpu:gloo,cuda:nccl"
        # on an error NCCL gives its work up and leaves the process to us; by default it would end it without a word
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    try:
        if start is not None:
            store = dist.TCPStore(processes.address, 0, is_master=True, timeout=JOIN, wait_for_workers=False)
            children = _start(processes, store.port, start)
            _await(children, store)
        else:
            store, hosting = _store_of_others(processes)
        try:
            # torchrun's store outlives a restart, and what is in it
            _store = dist.PrefixStore(f"xraylab{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            dist.init_process_group(
                backend, store=_store, rank=processes.rank, world_size=processes.world, timeout=timeout
            )  # fmt: skip
            Groups.patient = dist.new_group(backend="gloo", timeout=PATIENT)
        except (RuntimeError, ValueError) as error:
            raise Lost(f"{processes.name} on {socket.gethostname()}: the others did not come: {_line(error)}") from error
        yield
    except Exception as error:
        with ignore_signals():
            outcome = outcome_of(processes, error)
            abort_nccl()
            with suppress(Exception):
                dist.destroy_process_group()  # the others notice
            tell_others(processes, outcome, hosting)
        if outcome is error:
            raise
        raise outcome from error
    finally:
        _part(children)
        _store = None
        torch.set_num_threads(threads)  # Lightning shares them out, also for later jobs of a sweep
        if not named:
            os.environ.pop("OMP_NUM_THREADS", None)


def lost_words(processes: Processes, error: BaseException) -> str:
    """What is said where another process does not answer."""
    return f"{processes.name}, on {socket.gethostname()}: another process of this run ended or does not answer ({_line(error)})."


def _line(error: BaseException) -> str:
    """The first sentence, without the place in torch's source."""
    text = (str(error).splitlines() or [""])[0].partition(". ")[0]
    return re.sub(r"^\[\S+:\d+\] ", "", text)[:160].rstrip(".")


def outcome_of(processes: Processes, error: Exception) -> Exception:
    """What this process ends with: its own error, of which the others are told; or theirs, where it only lost one of them."""
    if isinstance(error, Lost) or is_lost(error) or is_lost(error.__cause__):
        return _reason() or (Lost(lost_words(processes, error)) if isinstance(error, RuntimeError) else error)
    if isinstance(error, Stopped):  # as all are
        return error
    with suppress(Exception):
        mistake = isinstance(error, UserError)
        where = f"{processes.name}, on {socket.gethostname()}, failed"
        text = str(error) if mistake else f"{where}: {type(error).__name__}: {_line(error)}. Its output has the whole of it."
        _store.compare_set("reason", "", json.dumps([mistake, text]))  # unless another was first
    return error


def _reason() -> UserError | Lost | None:
    """What another process ended with, if it said so."""
    with suppress(Exception):
        _store.wait(["reason"], timedelta(seconds=1))
        mistake, text = json.loads(_store.get("reason"))
        return UserError(text) if mistake else Lost(text)
    return None


def tell_others(processes: Processes, error: Exception, hosting: bool) -> None:
    """Let the first say it, once; the others do so only if it does not."""
    with suppress(Exception):
        if processes.rank == 0:
            _store.set("said", "")
            deadline = time.monotonic() + GRACE
            while hosting and _store.add("heard", 0) < processes.world - 1 and time.monotonic() < deadline:
                time.sleep(0.05)  # what is said here goes with this process
            return
        _store.wait(["said"], timedelta(seconds=GRACE))
        if isinstance(error, UserError | Stopped | Lost):
            error.args = ("",)
        _store.add("heard", 1)


def _start(processes: Processes, port: int, start: Callable[[Processes], bytes]) -> list[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(cores() // processes.local_world, 1))),
    }
    children = []
    for number in range(1, processes.world):
        of = Processes(**{**vars(processes), "rank": number, "local_rank": number, "port": port})
        child = subprocess.Popen(
            [sys.executable, "-m", "xraylab.training.distributed.launch"], stdin=subprocess.PIPE, env=environment
        )
        assert child.stdin is not None
        child.stdin.write(start(of))
        child.stdin.close()
        children.append(child)
    return children


def _await(children: list[subprocess.Popen[bytes]], store: Any) -> None:
    deadline = time.monotonic() + JOIN.total_seconds()
    while not store.check([f"here/{number}" for number in range(1, len(children) + 1)]):
        for number, child in enumerate(children, 1):
            if child.poll() is not None:
                raise Lost(f"process {number} of {len(children) + 1} ended with code {child.returncode} before it began.")
        if time.monotonic() > deadline:
            raise Lost(f"the other processes did not begin within {JOIN}.")
        time.sleep(0.05)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + GRACE + 5
    for child in children:
        try:
            child.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def main() -> None:
    """One of the processes that the first starts: what to do comes by standard input."""
    module, arguments = pickle.loads(sys.stdin.buffer.read())
    importlib.import_module(module).other(*arguments)


if __name__ == "__main__":
    main()
