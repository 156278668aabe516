"""Native decoders in a process of their own, so that what ends or holds up one of them costs a file and not the run.

A child is started when it is first needed, serves one call after another, and is replaced when it ends. Each thread that calls
at the same time has its own, so has every process: a fork starts anew. Children import no torch, and end with their parent,
however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from xraylab.errors import UserError, refusing

T = TypeVar("T")
SECONDS, PER_SECOND = 60.0, 1e6  # that a call may take: so many, and one more for so many values
ROOM, PER_VALUE = 2**29, 40  # bytes that a call may take in memory: so many, and so many for each value


class _Child:
    """A process that serves calls."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            path = os.pathsep.join(place for place in sys.path if place)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from xraylab.data.images.decoder_process import serve; serve({theirs.fileno()})"],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            )  # fmt: skip

    def end(self) -> int:
        """Its exit code, negative of a signal."""
        self.connection.close()
        try:
            return self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


_idle: list[_Child] = []
_all: set[_Child] = set()


def apart(where: object, values: int, function: Callable[..., T], *arguments: Any, limit: float | None = None) -> T:
    """What a function gives, called in a child.

    Args:
        where: names the file in errors.
        values: how many the function makes, by which its time and memory are bounded.
        function: of a module, which the child imports.
        limit: seconds that it may take, whatever it makes; None: as many as its values may.

    Raises:
        UserError: the child ended, by itself or because it took too long; or the function raised it.
        MemoryError: there was not enough.
        ValueError: the function raised something else.
    """
    seconds = SECONDS + values / PER_SECOND if limit is None else limit
    with refusing(f"{where}: its decoder cannot be started", OSError):
        try:
            child = _idle.pop()
        except IndexError:
            child = _Child()
            _all.add(child)
    try:
        child.connection.send((seconds, ROOM + PER_VALUE * values, function, arguments))
        result, raised = child.connection.recv()
    except (EOFError, OSError):
        _all.discard(child)
        code = child.end()
        # only the system sends SIGKILL, when memory is out: a fault that passes
        passing = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) if code == -signal.SIGKILL else None
        raise UserError(f"{where}: {_ended(code, seconds)}") from passing
    except BaseException:  # e.g. Ctrl-C: the answer to come would be taken for the next
        _all.discard(child)
        child.process.kill()
        child.end()
        raise
    _idle.append(child)
    if raised is not None:
        raise raised
    return result


def _ended(code: int, seconds: float) -> str:
    if code == -signal.SIGALRM:
        return f"damaged: its decoder was not done after {seconds:.0f} s."
    if code == -signal.SIGKILL:
        return "its decoder was killed, as if memory was too small. Try again with fewer workers."
    return f"damaged: its decoder ended on it ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})."


def _forget() -> None:
    """In a fork, whose children are its parent's: were their connections open here, they would outlive it."""
    for child in _all:
        child.connection.close()
        child.process.returncode = 0  # not this process's to wait for
    _all.clear()
    _idle.clear()


os.register_at_fork(after_in_child=_forget)


def serve(number: int) -> None:
    """A child's life: answer calls until the parent closes the connection, whose file descriptor this is."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)  # it ends with its parent, which may save first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(number)
    while True:
        try:
            seconds, room, function, arguments = connection.recv()
        except EOFError:
            return
        with contextlib.suppress(OSError, ValueError):  # where the system has no /proc, or no such limit
            with open("/proc/self/statm", encoding="utf-8") as file:
                now = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + room, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_REAL, seconds)  # native code does not return for it, it ends
        answer: tuple[Any, Exception | None]
        try:
            answer = function(*arguments), None
        except (UserError, MemoryError) as error:
            answer = None, error
        except Exception as error:  # of as many kinds as there are decoders
            answer = None, ValueError(type(error).__name__)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)
