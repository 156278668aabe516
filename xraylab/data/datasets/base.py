"""The base class of dataset readers: where a dataset is found, and what all readers have in common."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xraylab.data.published import Published
from xraylab.data.study_table import StudyTable, stop_or_skip
from xraylab.data.synthetic.mark import SAMPLE_VERSION, is_synthetic
from xraylab.errors import UserError, refusing
from xraylab.system.paths import ENVIRONMENT, cache_dir, tree
from xraylab.system.remote import local

log = logging.getLogger(__name__)


class DatasetReader(ABC):
    """Base class of the readers, which turn a downloaded tree into a study table: a subclass, a YAML and a test a dataset.

    Args:
        root: the published folder or its parent, as a path or a URL of fsspec; ``sample`` for the embedded synthetic sample,
            or None to look for it.
        on_error: ``stop`` or ``skip`` studies that are wrong.
        sample: arguments of :meth:`write_sample`.

    >>> from xraylab.data import MedMNIST
    >>> parent = Path(tempfile.mkdtemp())
    >>> _ = MedMNIST().write_sample(parent, train=8, val=4, test=4)
    >>> reader = MedMNIST(root=str(parent))
    >>> path = reader.find()
    >>> path.name, len(reader.read(path).frame)
    ('pneumoniamnist.npz', 16)
    """

    #: settings that this data needs where they are not typed, e.g. the backbone's channels
    settings: dict[str, Any]
    published_name: str  # of the folder or file as published
    other_names: tuple[str, ...] = ()  # of other releases that are read as well
    expected: str  # the published tree, for messages
    register: str  # where the data is to be had
    heldout: str = "held-out"  # what the publication calls the held-out split
    writer: Callable[..., Path] | None = None  # of a synthetic dataset, to a path that ends in the published name

    def __init__(self, root: str | None, on_error: str, sample: dict[str, Any] | None = None) -> None:
        if on_error not in ("stop", "skip"):
            raise UserError(f"dataset.on_error={on_error}: it is stop or skip.")
        if root is not None and not isinstance(root, str):
            raise UserError(f"dataset.root={root}: it is a path.")
        self.root, self.on_error, self.sample = root, on_error, dict(sample or {})
        self.settings = {}

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether the path looks like the published folder or file."""

    @abstractmethod
    def read(self, path: Path) -> StudyTable:
        """The studies of the dataset at a path that matches.

        Raises:
            UserError: files or rows are wrong and ``on_error`` is ``stop``.
        """

    def write_sample(self, parent: Path, **options: Any) -> Path:
        """Write a synthetic dataset under ``parent`` in the published layout; returns its path.

        Raises:
            UserError: there is none.
        """
        writer = type(self).writer
        self.require_sample()
        assert writer is not None
        return writer(parent / self.published_name, **options)

    def require_sample(self) -> None:
        """Check that there is a synthetic dataset, before one is announced.

        Raises:
            UserError: there is none.
        """
        if type(self).writer is None and type(self).write_sample is DatasetReader.write_sample:
            raise UserError(
                f"there is no sample of {self.published_name}: give dataset.root=<its folder>. The data: {self.register}"
            )

    def table_of(
        self, path: Path, frame: pd.DataFrame, problems: Mapping[str, Sequence[str]], total: int, **about: Any
    ) -> StudyTable:
        """The study table of what was read at a path.

        Args:
            frame: the studies in which nothing is wrong.
            problems: what is wrong with others: kind -> names.
            total: how many studies there are with those.
            about: the other fields of a :class:`StudyTable`.

        Raises:
            UserError: there are problems and ``on_error`` is ``stop``.
        """
        found = stop_or_skip(problems, self.on_error, str(path), total)
        return StudyTable(frame, synthetic=is_synthetic(path), problems=found, **about)

    def whole(self, path: Path) -> list[DatasetReader]:
        """Readers that together read everything of the dataset at a path that matches, whatever the keys chose of it."""
        return [self]

    def proposal(self, path: Path) -> str | None:
        """How data of one's own may be read, which cannot be as it is; None: it can, or nothing is to be proposed."""
        return None

    def published(self, table: StudyTable) -> list[Published]:
        """What is published of the numbers of the dataset that was read."""
        return []

    def lists(self, path: Path) -> tuple[str, ...]:
        """The files beside the images that belong to the dataset at a path that matches, relative to it."""
        return ()

    def find(self) -> Path | None:
        """The dataset's path: ``root``, else under ``$XRAYLAB_DATA``, else under ``./data``; None: the embedded sample.

        Raises:
            UserError: ``root`` was given and is missing or does not match; or the dataset lies in one of the other places
                and does not match.
        """
        if self.root == "sample":
            return None
        if self.root is not None:
            given = local(self.root)
            found = self._within(given)
            if found is None:
                raise UserError(self._no_match(given))
            return found
        for name, parent in ((f"${ENVIRONMENT}", os.environ.get(ENVIRONMENT)), ("./data", "data")):
            if not parent:
                continue
            folder = Path(parent).expanduser()
            if name != "./data" and not folder.is_dir():
                raise UserError(f"{name}={parent}: there is no such folder. Mend or unset it.")
            if (found := self._within(folder)) is not None:
                return found
            for half in (folder / name for name in (self.published_name, *self.other_names)):
                if half.exists():  # half of the data must not become the sample
                    raise UserError(self._no_match(half))
        return None

    def embedded(self, options: dict[str, Any]) -> Path:
        """The embedded synthetic sample with these options, written on first use to the user's cache."""
        parts = "_".join(f"{k}-{v}" for k, v in sorted(options.items())).replace(" ", "")
        folder = cache_dir() / "samples" / f"{self.published_name}_v{SAMPLE_VERSION}_{parts}"
        if (found := self._within(folder)) is not None:
            return found
        log.info("writing the synthetic sample to %s ...", folder)
        unwritten = refusing(f"{folder}: cannot be written", OSError, end=". Name another cache by $XRAYLAB_CACHE.")
        with unwritten, refusing("dataset.sample", TypeError, end=""):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
                self.write_sample(Path(partial) / "sample", **options)
                with contextlib.suppress(OSError):  # another process was faster
                    (Path(partial) / "sample").rename(folder)
        found = self._within(folder)
        if found is None:
            raise UserError(f"{folder}: holds something else than the sample. Delete it.")
        return found

    def _within(self, path: Path) -> Path | None:
        names = (self.published_name, *self.other_names)
        nested = [p for name in names for p in sorted(path.glob(f"*/{name}"))] if path.is_dir() else []
        for candidate in (path, *(path / name for name in names), *nested):
            if candidate.exists() and self.matches(candidate):
                return candidate
        return None

    def _no_match(self, given: Path) -> str:
        found = tree(given) if given.exists() else "  (there is no such file or folder)"
        asked = f"dataset.root={self.root}" if self.root is not None else str(given)
        return (
            f"{asked}: {self.published_name} is not there.\n"
            f"expected:\n{self.expected.rstrip()}\nfound at {given.absolute()}:\n{found}\n"
            f"The data: {self.register}\n"
            "Without dataset.root, $XRAYLAB_DATA, then ./data, are searched, and else a synthetic sample is used."
        )
