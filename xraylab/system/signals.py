"""Signals that a scheduler sends before it ends a job."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytorch_lightning as pl

END_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class SignalReceived(KeyboardInterrupt):
    """One of :data:`END_SIGNALS` came where there is no training step to wait for."""


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Context in which :data:`END_SIGNALS` raise :class:`SignalReceived`, as Ctrl-C does; in its children they do not."""
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise SignalReceived(signal.Signals(number).name)

    with _handled(end):
        yield


def keep_from(trainer: pl.Trainer) -> pl.Trainer:
    """Make a Lightning trainer (2.6) leave :data:`END_SIGNALS` alone; returns it.

    Its handlers talk to other processes from wherever they are called, which then wait for each other, and pass a signal over
    where nothing is trained; and at every batch it asks all processes whether one was called, for which the host of a GPU waits.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


@contextmanager
def ignore_signals() -> Iterator[None]:
    """Context in which :data:`END_SIGNALS` change nothing. torchrun sends one to all when a process is lost."""
    with _handled(lambda number, frame: None):
        yield


@contextmanager
def _handled(by: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # the only one that signals reach
        yield
        return
    old = {number: signal.signal(number, by) for number in END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
