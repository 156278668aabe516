"""Progress of long jobs: a bar on a terminal, lines in a log, and how long they will take."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

R = TypeVar("R")
T = TypeVar("T")
log = logging.getLogger(__name__)
INTERVAL = 10.0  # seconds between two lines of progress, where there is no terminal


def data_size(number: float) -> str:
    """A number of bytes to read: ``1.2 GB``, ``3.4 MB``."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def clock(seconds: float) -> str:
    """A duration to read: ``40 s``, ``3 min``, ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Pace:
    """Pace of a long job, which says when a line of progress is due.

    Args:
        total: what is to be done, in any unit.
        done: of it, before the start.
    """

    def __init__(self, total: float, done: float = 0) -> None:
        self.total, self.before = total, done
        self.start = self.said = time.monotonic()

    def due(self, done: float) -> tuple[float, float] | None:
        """How much is done a second, and seconds to go; None: no line is due yet."""
        now = time.monotonic()
        if now - self.said < INTERVAL or done <= self.before:
            return None
        self.said, rate = now, (done - self.before) / (now - self.start)
        return rate, max(self.total - done, 0) / rate


class Progress:
    """Progress of a job that is done in parts of any size: a bar on a terminal, else now and then a line.

    Args:
        total: what is to be done; 0: not known.
        say: logs a line: what is done, of how much, how much a second, and seconds to go.
        done: before the start.
        bar: of tqdm, as its title and unit.
    """

    def __init__(self, total: int, say: Callable[[int, int, float, float], None], done: int = 0, **bar: Any) -> None:
        self.done, self.say, self.pace = done, say, Pace(total, done)
        hidden = not sys.stderr.isatty()
        self.bar = tqdm(total=total or None, initial=done, leave=False, dynamic_ncols=True, disable=hidden, **bar)

    def add(self, number: int) -> None:
        """So many more are done."""
        self.done += number
        self.bar.update(number)
        if self.bar.disable and (due := self.pace.due(self.done)):
            self.say(self.done, int(self.pace.total), *due)


def mapped(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """A function's results in order, a few thousand calls at a time: each that waits takes 2 kB."""
    for start in range(0, len(items), 4096):
        yield from pool.map(function, items[start : start + 4096])


def on_all_cores(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """A function's results in order, from as many threads as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def in_threads(function: Callable[[T], R], items: Sequence[T], title: str) -> Iterator[R]:
    """A function's results in order, from a pool of threads, with progress and the time left."""
    pool = ThreadPoolExecutor()
    try:
        yield from watched(mapped(pool, function, items), len(items), title)
    finally:
        pool.shutdown(cancel_futures=True)


def watched(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """The items, and how many are done: a bar on a terminal, else now and then a line."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=title, total=total, leave=False, dynamic_ncols=True, mininterval=0.5)
        return
    pace = Pace(total)
    for done, item in enumerate(items, start=1):
        yield item
        if done < total and (due := pace.due(done)):
            left = tqdm.format_interval(due[1])
            log.info("%s: %s of %s, %.0f a second, %s to go", title, f"{done:,}", f"{total:,}", due[0], left)
