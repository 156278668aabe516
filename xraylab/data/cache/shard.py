"""A shard of the packed cache: the images of one published split and group, and whether they are as they were."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xraylab.data.cache.source import FORMAT, is_whole
from xraylab.data.images.source import ImageSource
from xraylab.data.preprocessing import prepare
from xraylab.data.study_table import StudyTable
from xraylab.errors import UserError
from xraylab.system.files import locked, read_json
from xraylab.system.progress import mapped

STATS = 16  # files that are looked at together


def volumes_of(table: StudyTable) -> dict[str, bool]:
    """A note for checkpoints, of a table whose volumes are files of one slice each: those slices are prepared one by one."""
    return {"volumes": False} if not table.views and not table.parts and (table.frame["images"].map(len) > 1).any() else {}


class Fault(NamedTuple):
    """Why an image is missing from a shard; ``passing``: the system's fault rather than the file's, so try again."""

    reason: str
    passing: bool


class Shard:
    """The images of one published split and group: what is looked for, and where."""

    def __init__(
        self, table: StudyTable, place: Path, split: str, group: str, references: list[str], size: int | None, rescale: bool,
        resize: str,
    ) -> None:  # fmt: skip
        self.source, self.references = table.source, references
        self.size, self.rescale, self.resize = size, rescale, resize
        self.title = f"{split} {group}".strip()
        self.colour = self.source.colour
        self.checksum, self.file_bytes = self.sum_of(references)
        #: what shards of other content but the same purpose have in common
        self.about = {
            "dataset": table.name, "synthetic": table.synthetic, "root": root_of(self.source), "split": split, "group": group,
            "size": size, "rescale": rescale, "resize": resize, "colour": self.colour,
            **({"recipe": self.source.recipe} if self.source.recipe else {}),
        }  # fmt: skip
        how = f"{'asis' if size is None else size}{'_rescaled' if rescale else ''}"
        self.folder = place / f"{safe_name(split)}_{safe_name(group)}_{how}_{self.checksum[:16]}"
        self.lock = self.folder.with_name(f"{self.folder.name}.lock")
        self.partial = self.folder.with_name(f"{self.folder.name}.partial")

    def sum_of(self, references: Iterable[str]) -> tuple[str, int]:
        """SHA-256 of how images are made and of every file's place, bytes and times of change; and all their bytes."""
        source = self.source
        how = [FORMAT, type(source).__name__, root_of(source), self.colour, source.bits, self.size, self.rescale, self.resize]
        digest = hashlib.sha256(json.dumps([*how, *source.recipe]).encode())

        def stat(path: str) -> os.stat_result | None:
            try:
                return os.stat(path)
            except OSError:
                return None

        references = sorted(references)
        pairs = [(reference, path) for reference in references for path in self._behind(reference)]
        files = list(dict.fromkeys(path for _, path in pairs))  # a file may hold many references
        with ThreadPoolExecutor(STATS) as pool:  # over a network, one by one takes minutes
            stats = dict(zip(files, mapped(pool, stat, files), strict=True))
        for reference, path in pairs:
            if (found := stats[path]) is None:
                digest.update(os.fsencode(f"\n{reference}\0missing"))
            else:
                when = f"{found.st_mtime_ns}\0{found.st_ctime_ns}"
                digest.update(os.fsencode(f"\n{reference}\0{found.st_size}\0{when}"))
        total = sum(found.st_size for found in stats.values() if found is not None)
        return digest.hexdigest(), total

    def _behind(self, reference: str) -> list[str]:
        if not (files := self.source.files(reference)):
            raise ValueError(f"{reference}: there is no file behind it, so it cannot be told when it changes.")
        return [str(file) for file in files]

    def index(self) -> dict[str, Any] | None:
        """What ``index.json`` says; None where the shard is not there, or not whole."""
        index = is_whole(self.folder)
        return index if index is not None and index["checksum"] == self.checksum else None

    def ready(self) -> bool:
        """Whether the shard is whole, and nothing it lacks can be read by now."""
        index = self.index()
        return index is not None and not any(
            passing and self.readable(name) for name, (_, passing) in index["unreadable"].items()
        )

    def readable(self, reference: str) -> bool:
        """Whether a reference can be read."""
        try:
            return bool(self.prepared(reference).size)
        except UserError:
            return False

    def prepared(self, reference: str) -> np.ndarray:
        """uint8 (N,H,W[,3]) of one reference. Raises UserError: it cannot be read."""
        images = self.source.read([reference])
        arrays, ndim = (images, 2) if isinstance(images, list) else ([images], 3)
        for array in arrays:
            if array.dtype != np.uint8 or array.ndim != ndim + self.colour or array.size == 0:
                raise UserError(f"{reference}: an array {array.dtype} {array.shape}, not one of images.")
        return prepare(images, self.size, self.rescale, self.resize)

    def measure(self, reference: str) -> tuple[int, int, int] | Fault:
        """(N,H,W) of one reference, prepared; or why there is none."""
        try:
            try:
                count, height, width = self.source.shape(reference)
            except Exception:  # what counts is whether the image can be read, not whether its header is understood
                count, height, width = self.prepared(reference).shape[:3]
            if count * height * width == 0:
                raise UserError(f"{reference}: holds no image.")
        except UserError as error:
            return self.fault(reference, error)
        return (count, height, width) if self.size is None else (count, self.size, self.size)

    def fault(self, reference: str, error: UserError) -> Fault:
        """The reason of an error in a few words."""
        words = str(error).splitlines()[0]
        for prefix in (str(self.source.path(reference)), reference, str(self.source.root)):
            words = words.removeprefix(f"{prefix}: ")
        cause = error.__cause__
        return Fault(words.partition(". ")[0].rstrip("."), isinstance(cause, OSError) and cause.errno is not None)

    def remove_stale(self) -> None:
        """Delete shards, whole or not, that were made from this folder of files for the same purpose before files changed.

        Those of other roots stay, and those of other studies of this root whose files are as they were.
        """
        for other in self.folder.parent.iterdir():
            if other == self.folder:
                continue
            index = read_json(other / "index.json") or read_json(other / "plan.json")
            if index is None or any(index.get(key) != value for key, value in {"recipe": None, **self.about}.items()):
                continue
            if self.sum_of([*index["images"], *index["unreadable"]])[0] == index["checksum"]:
                continue
            if other.suffix != ".partial":
                shutil.rmtree(other, ignore_errors=True)
                continue
            with suppress(BlockingIOError), locked(other.with_suffix(".lock"), None):
                shutil.rmtree(other, ignore_errors=True)


def root_of(source: ImageSource) -> str:
    return str((source.root or Path()).resolve())


def safe_name(name: str) -> str:
    """A name for files; two names may become one, their checksums differ."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name)[:60].strip(".-") or "all"
