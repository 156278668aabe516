"""Building of the packed cache: prepared images in memory-mapped arrays, made once and shared by runs, processes and sweeps.

A shard is a folder of one array and its index, for one published split and group of a dataset at one resolution:
``<cache>/<dataset>/<split>_<group>_<size>[_rescaled]_<checksum>/{images.npy,index.json}``. The checksum covers place, size
and times of change of every file, so a shard that is stale bears another name than the one that is looked for. A shard is
built in ``<name>.partial`` and renamed, so one that is half-built is never found.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from importlib import metadata
from itertools import compress, repeat
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd

from xraylab.config.settings import Settings
from xraylab.data.cache.shard import Fault, Shard, root_of, safe_name
from xraylab.data.cache.source import FORMAT, PackedSource, open_array
from xraylab.data.images.source import of_one_value
from xraylab.data.preprocessing import EACH_AXIS
from xraylab.data.study_table import BLANK, UNREADABLE, StudyTable, stop_or_skip
from xraylab.errors import Stopped, UserError, listed, refusing
from xraylab.system.files import locked, read_json, write_text
from xraylab.system.paths import cache_dir
from xraylab.system.processes import cores
from xraylab.system.progress import Progress, clock, data_size, mapped

log = logging.getLogger(__name__)

CHUNK = 64  # references that are read, written and marked as done together ...
CHUNK_BYTES = 16_000_000  # ... or fewer, where they are large
ELSEWHERE = "Go on without it by cache=off, or name another folder by cache=<folder> or $XRAYLAB_CACHE."


def with_cache(table: StudyTable, settings: Settings, on_error: str) -> tuple[StudyTable, bool]:
    """The table, read from packed images where ``cache`` says so, and whether it is.

    Raises:
        UserError: images cannot be read, or the cache cannot be written.
    """
    size, rescale = settings.image.size, settings.image.rescale
    files = table.source.path(table.frame["images"].iloc[0][0]) is not None
    slow = table.source.costly(size is not None or rescale)
    if settings.cache == "off" and files and table.source.costly(False):
        more = "; one that cannot be read will stop it, not be skipped" if on_error == "skip" else ""
        log.warning("cache=off: no image is looked into before training, nor found to be of one value%s.", more)
    if not files:
        images = [image for study in table.frame["images"] for image in study]
        say_blank(table, [image for image in images if of_one_value(table.source.read([image]))])
    if settings.cache == "off" or not files or (settings.cache == "auto" and not slow):
        return table, False
    folder = cache_dir() / "packed" if settings.cache == "auto" else Path(settings.cache).expanduser()
    try:
        table = pack_table(table, folder, size, rescale, on_error, resize=settings.image.resize)
    except KeyboardInterrupt:
        raise Stopped("stopped; what is packed so far is kept, and the same command goes on from there.") from None
    if table.frame.empty:
        raise UserError(f"{table.name}: not one image can be read. python -m xraylab.check tells more.")
    return table, True


def pack_table(
    table: StudyTable, folder: Path, size: int | None, rescale: bool, on_error: str, workers: int | None = None,
    resize: str = EACH_AXIS,
) -> StudyTable:  # fmt: skip
    """The table with a source of prepared images, from shards that are built where they are missing or stale.

    Its images are what ``prepare(table.source.read(images), size, rescale, resize)`` gives, one reference at a time.

    Args:
        table: of files; shards follow its splits as published, so that seeds and folds share them.
        folder: of the cache, shared by all datasets.
        size, rescale, resize: see :func:`xraylab.data.preprocessing.prepare`.
        on_error: ``stop``, or ``skip`` images that cannot be read, and studies left without any; ``problems`` names them.
        workers: threads that read; None: one for every core.

    Raises:
        UserError: images cannot be read (all are named), or differ in size where none is set, or change meanwhile; the
            cache cannot be written, or the disk is too small.
    """
    names: dict[tuple[str, str], dict[str, None]] = {}
    published = "published" if "published" in table.frame else "split"
    held_by = "parts" if table.parts else "group"  # so that studies of planes share the shards of each plane
    for split, of, images in zip(*(table.frame[c] for c in (published, held_by, "images")), strict=True):
        for image, name in zip(images, of if table.parts else repeat(of), strict=False):
            names.setdefault((str(split), str(name)), {})[image] = None
    place = folder / safe_name(table.name)
    shards = [Shard(table, place, split, group, list(images), size, rescale, resize) for (split, group), images in names.items()]
    shards.sort(key=lambda shard: shard.folder.name)  # the order in which every process takes their locks
    missing = [shard for shard in shards if not shard.ready()]
    if missing:
        with refusing(f"{folder}: the packed cache cannot be written", OSError, end=f". {ELSEWHERE}"):
            _build(missing, place, workers or cores())

    indexes = [shard.index() or {} for shard in shards]  # {}: deleted this moment, as PackedSource will say
    _require_one_size({(i["shape"][1], i["shape"][2]) for i in indexes if i and i["shape"][0]})
    faults = {name: reason for index in indexes for name, (reason, _) in index.get("unreadable", {}).items()}
    unreadable = [f"{name} ({reason})" for name, reason in faults.items()]
    stop_or_skip({UNREADABLE: unreadable}, on_error, root_of(table.source), sum(map(len, names.values())), "images")
    say_blank(table, [name for index in indexes for name in index.get("blank", ())])
    source = PackedSource([shard.folder for shard in shards])
    if not faults:
        return replace(table, source=source)
    frame = table.frame.copy()
    readable = [[name not in faults for name in images] for images in frame["images"]]
    for column in {"images", "views", "parts"} & set(frame):
        kept = [tuple(compress(*pair)) for pair in zip(frame[column], readable, strict=True)]
        frame[column] = pd.Series(kept, index=frame.index, dtype=object)
    whole = frame["parts" if table.parts else "images"].map(lambda of: len(of) > 0 and set(of) >= set(table.parts))
    problems = {**table.problems, UNREADABLE: [*table.problems.get(UNREADABLE, []), *unreadable]}
    if gone := frame.loc[~whole, "id"].astype(str).tolist():
        lacks = f"of which {' or '.join(table.parts)} cannot be read" if table.parts else "of whose images none can be read"
        problems[f"studies {lacks}"] = gone
    return replace(table, frame=frame[whole].reset_index(drop=True), source=source, problems=problems)


def say_blank(table: StudyTable, blank: Sequence[str]) -> None:
    """Log which images of a table are of one value, if any is."""
    if blank:
        log.warning("%s: %d %s, trained on as they are: %s", table.name, len(blank), BLANK, listed(blank))


class _Building:
    """A shard being built, or built on: its plan, what of it is done, and the rest."""

    def __init__(self, shard: Shard, pool: ThreadPoolExecutor) -> None:
        self.shard, self.stop = shard, Event()
        if shard.folder.exists():
            log.warning("%s is damaged, or was made when files could not be read, and is built again", shard.folder)
            shutil.rmtree(shard.folder)
        self.places: dict[str, tuple[int, int]] = {}
        self.faults: dict[str, Fault] = {}
        self.blank: list[str] = []  # images of one value
        self.sizes: set[tuple[int, int]] = set()
        rows = 0
        for reference, found in zip(shard.references, mapped(pool, shard.measure, shard.references), strict=True):
            if isinstance(found, Fault):
                self.faults[reference] = found
            else:
                self.places[reference] = (rows, found[0])
                self.sizes.add(found[1:])
                rows += found[0]
        one = next(iter(self.sizes), (0, 0))  # where there are more, nothing is built
        self.shape = (rows, *one, *([3] if shard.colour else []))
        self.row_bytes = int(np.prod(self.shape[1:], dtype=np.int64))
        self.chunks = self._cut()
        self.done = self._done_before()

    def _cut(self) -> list[list[str]]:
        chunks: list[list[str]] = []
        first = 0
        for reference, (start, count) in self.places.items():
            if not chunks or len(chunks[-1]) == CHUNK or (start + count - first) * self.row_bytes > CHUNK_BYTES:
                chunks.append([])
                first = start
            chunks[-1].append(reference)
        return chunks

    def _plan(self) -> dict[str, Any]:
        files = {"files": len(self.shard.references), "bytes": self.shard.file_bytes}
        made = {"format": FORMAT, "version": metadata.version("xraylab"), "checksum": self.shard.checksum, "shape": self.shape}
        return {**made, **self.shard.about, **files, "images": self.places, "unreadable": self.faults}

    def _done_before(self) -> set[int]:
        """Chunks that an interrupted build of the same plan has behind it; without one, none."""
        partial = self.shard.partial
        ours = json.loads(json.dumps({**self._plan(), "chunks": [len(chunk) for chunk in self.chunks]}))
        plan = read_json(partial / "plan.json") or {}
        same = all(plan.get(key) == ours[key] for key in ("checksum", "shape", "images", "chunks"))
        if not same or open_array(partial / "images.npy", self.shape) is None:
            shutil.rmtree(partial, ignore_errors=True)
            return set()
        done = set()
        for line in (partial / "done.txt").read_text(encoding="utf-8").splitlines() if (partial / "done.txt").exists() else []:
            with suppress(ValueError):  # an empty line, or one whose writing was cut short
                number, faults, blank = json.loads(line)
                done.add(int(number))
                self.faults.update({name: Fault(*fault) for name, fault in faults.items()})
                self.blank += blank
        return done

    def images(self, numbers: Iterable[int]) -> int:
        """How many images the chunks hold."""
        return sum(self.places[reference][1] for number in numbers for reference in self.chunks[number])

    def missing_bytes(self) -> int:
        """What the disk has to take yet."""
        there = self.shard.partial / "images.npy"
        blocks = there.stat().st_blocks * 512 if there.exists() else 0
        return max(self.shape[0] * self.row_bytes - blocks, 0)

    def run(self, pool: ThreadPoolExecutor, progress: Progress) -> None:
        """Read what is not done yet, then give the shard its name."""
        partial = self.shard.partial
        if not partial.exists():
            partial.mkdir()
            np.lib.format.open_memmap(partial / "images.npy", "w+", np.uint8, self.shape)
            plan = {**self._plan(), "chunks": [len(chunk) for chunk in self.chunks]}
            write_text(partial / "plan.json", json.dumps(plan))
        chunks = {pool.submit(self._read, chunk): n for n, chunk in enumerate(self.chunks) if n not in self.done}
        try:
            with (partial / "done.txt").open("a", encoding="utf-8") as marks:
                for future in as_completed(chunks):
                    faults, blank = future.result()
                    # on a line of its own, however the last one ended
                    marks.write("\n" + json.dumps([chunks[future], faults, dict.fromkeys(blank)]))
                    marks.flush()
                    os.fsync(marks.fileno())
                    self.faults.update(faults)
                    self.blank += blank
                    progress.add(self.images([chunks[future]]))
        finally:
            self.stop.set()
            for future in chunks:
                future.cancel()
            wait(chunks)
        self._finish()

    def _read(self, references: list[str]) -> tuple[dict[str, Fault], list[str]]:
        """Read and write a chunk, which is then on the disk; the images that cannot be read, and those of one value."""
        first = self.places[references[0]][0]
        last, count = self.places[references[-1]]
        rows = np.zeros((last + count - first, *self.shape[1:]), np.uint8)
        faults, blank = {}, []
        for reference in references:
            if self.stop.is_set():
                raise CancelledError
            start, count = self.places[reference]
            try:
                images = self.shard.prepared(reference)
                if images.shape != (count, *self.shape[1:]):
                    raise UserError(f"{reference}: of shape {images.shape}, which is not what its header says.")
                rows[start - first :][:count] = images
                if of_one_value(images):
                    blank.append(reference)
            except UserError as error:
                faults[reference] = self.shard.fault(reference, error)
        # written, not mapped: a full disk is then an error and not the end of the process
        with (self.shard.partial / "images.npy").open("r+b") as file:
            file.seek(os.fstat(file.fileno()).st_size - (self.shape[0] - first) * self.row_bytes)
            file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        return faults, blank

    def _finish(self) -> None:
        shard = self.shard
        if shard.sum_of(shard.references)[0] != shard.checksum:
            shutil.rmtree(shard.partial)
            raise UserError(f"{root_of(shard.source)}: files changed while they were packed. Start again when they are complete.")
        images = {name: place for name, place in self.places.items() if name not in self.faults}
        write_text(shard.partial / "index.json", json.dumps({**self._plan(), "images": images, "blank": sorted(self.blank)}))
        os.rename(shard.partial, shard.folder)
        for name in ("plan.json", "done.txt"):
            (shard.folder / name).unlink(missing_ok=True)
        shard.remove_stale()


def _build(missing: list[Shard], place: Path, workers: int) -> None:
    """Build shards, or wait for the process that does.

    Raises:
        OSError: the cache cannot be written.
    """
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        locks = {shard: stack.enter_context(ExitStack()) for shard in missing}
        missing = []
        for shard, held in locks.items():
            held.enter_context(locked(shard.lock, f"packs {shard.about['dataset']}, {shard.title}"))
            if shard.ready():  # another process has built it
                held.close()
            else:
                missing.append(shard)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        if missing:
            log.info("looking at %s files to be packed", f"{sum(len(shard.references) for shard in missing):,}")
        buildings = [_Building(shard, pool) for shard in missing]
        _require_one_size({size for building in buildings for size in building.sizes})
        needed, free = sum(b.missing_bytes() for b in buildings), shutil.disk_usage(place).free
        if needed > free:
            raise UserError(
                f"{place}: the packed cache needs {data_size(needed)} ({needed} bytes), and {data_size(free)} ({free} bytes) are "
                f"free. Make room, or set a smaller image.size. {ELSEWHERE}"
            )
        total = sum(b.shape[0] for b in buildings)
        done = sum(b.images(b.done) for b in buildings)
        if total:
            size = missing[0].size
            log.info(
                "packing %s images of %s (%s) %s, %s, into %s%s",
                f"{total:,}", missing[0].about["dataset"], listed((s.title for s in missing), 14),
                "as they are" if size is None else f"at {size} pixels",
                data_size(sum(b.shape[0] * b.row_bytes for b in buildings)), place,
                f"; {done:,} of them are done" if done else "",
            )  # fmt: skip
        progress = Progress(total, _say, done, desc="packing", unit=" images")
        with closing(progress.bar):
            for building in buildings:
                building.run(pool, progress)
                locks[building.shard].close()
        if total:
            log.info("packed in %s", clock(time.monotonic() - progress.pace.start))


def _say(done: int, total: int, rate: float, left: float) -> None:
    log.info("packing: %s of %s images, %.0f images/s, %s left", f"{done:,}", f"{total:,}", rate, clock(left))


def _require_one_size(sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        found = listed([f"{height}x{width}" for height, width in sorted(sizes)], 6)
        raise UserError(f"images of different sizes ({found}) cannot be packed: set image.size=<pixels>.")
