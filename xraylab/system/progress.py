"""Progress of long jobs: a bar on a terminal, lines in a log, and how long they will take."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")

T = TypeVar("T")

log = logging.getLogger(__name__)


def data_size(number: float) -> str:
    """A number of bytes to read: ``1.2 GB``, ``3.4 MB``."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def clock(seconds: float) -> str:
    """A duration to read: ``40 s``, ``3 min``, ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


INTERVAL = 10.0  # seconds between two lines of progress, where there is no terminal


def in_threads(function: Callable[[T], R], items: Sequence[T], title: str) -> Iterator[R]:
    """A function's results in order, from a pool of threads, with progress and the time left."""
    pool = ThreadPoolExecutor()
    try:
        parts = (pool.map(function, items[start : start + 4096]) for start in range(0, len(items), 4096))  # not all at once
        yield from _watched(itertools.chain.from_iterable(parts), len(items), title)
    finally:
        pool.shutdown(cancel_futures=True)


def _watched(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """The items, and how many are done: a bar on a terminal, else now and then a line."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        yield from tqdm(items, desc=title, total=total, leave=False, dynamic_ncols=True, mininterval=0.5)
        return
    start = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= INTERVAL and done < total:
            said, rate = now, done / (now - start)
            left = tqdm.format_interval((total - done) / rate)
            log.info("%s: %s of %s, %.0f a second, %s to go", title, f"{done:,}", f"{total:,}", rate, left)
