"""Image source that reads from a packed cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xraylab.data.images.source import ImageSource
from xraylab.errors import UserError, listed
from xraylab.system.files import read_json

FORMAT = 4  # of the folders, and of what ``prepare`` makes; a new one leaves old shards unread


class PackedSource(ImageSource):
    """Prepared images from shards; references are those of the files they were made from.

    Args:
        folders: of whole shards.

    Raises:
        UserError: one is not a whole shard.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._shapes: list[tuple[int, ...]] = []
        self._places: dict[str, tuple[int, int, int]] = {}  # shard, first and last + 1 of its rows
        for number, folder in enumerate(self.folders):
            index = is_whole(folder)
            if index is None:
                raise UserError(f"{folder}: not a whole shard of the packed cache. Start again; it is then built anew.")
            self._shapes.append(tuple(index["shape"]))
            self._places.update({name: (number, start, start + n) for name, (start, n) in index["images"].items()})
        self._open()

    def _open(self) -> None:
        # held open from the start: a shard that another process finds stale and deletes stays readable here
        arrays = [open_array(folder / "images.npy", shape) for folder, shape in zip(self.folders, self._shapes, strict=True)]
        if any(array is None for array in arrays):
            raise UserError(f"{listed(self.folders)}: deleted or changed since the start. Start again; it is then built anew.")
        self._arrays = [array for array in arrays if array is not None]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, images: Sequence[str]) -> np.ndarray:
        """uint8 (N,H,W[,3]), the references' images one after another; a copy."""
        runs: list[tuple[int, int, int]] = []
        for image in images:
            number, start, stop = self._place(image)
            if runs and runs[-1][0] == number and runs[-1][2] == start:
                runs[-1] = (number, runs[-1][1], stop)
            else:
                runs.append((number, start, stop))
        parts = [self._arrays[number][start:stop] for number, start, stop in runs]
        return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)

    def shape(self, image: str) -> tuple[int, int, int]:
        number, start, stop = self._place(image)
        return stop - start, self._shapes[number][1], self._shapes[number][2]

    def _place(self, image: str) -> tuple[int, int, int]:
        try:
            return self._places[image]
        except KeyError:
            raise UserError(f"{image}: not in the packed cache {listed(self.folders)}.") from None


def is_whole(folder: Path) -> dict[str, Any] | None:
    """The index of a shard; None if it is not there, of another format, or its array is not whole."""
    index = read_json(folder / "index.json")
    if index is None or index.get("format") != FORMAT:
        return None
    return None if open_array(folder / "images.npy", tuple(index["shape"])) is None else index


def open_array(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mapped array of uint8; None if it is not there or not of this shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = array.dtype == np.uint8 and array.shape == tuple(shape) and array.offset + array.nbytes == path.stat().st_size
    return np.asarray(array) if whole else None
