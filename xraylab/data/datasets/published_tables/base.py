"""The base class of readers of sets that are a CSV beside their pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.csv_table import CsvTable
from xraylab.data.published import Published
from xraylab.data.study_table import StudyTable
from xraylab.data.synthetic.mark import is_synthetic

log = logging.getLogger(__name__)


class PublishedTable(CsvTable):
    """Base class of readers of published sets that :class:`~xraylab.data.CsvTable` reads.

    Args:
        columns: in place of those of the set, as a copy of it may need.

    The others are as of it.
    """

    file: str  # the CSV, relative to the set's folder
    usual: Mapping[str, Any]  # its columns
    images: str | None = None  # the folder that its paths start from, relative to the CSV's
    counts: tuple[Published, ...] = ()

    def __init__(
        self, root: str | None = None, columns: Mapping[str, Any] | None = None, test_fraction: float | None = 0.2,
        split_seed: int = 0, bits: int | None = None, on_error: str = "stop", sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            root, None, self.images, test_fraction, split_seed, bits=bits, on_error=on_error, sample=sample,
            columns={**self.usual, **(columns or {})},
        )  # fmt: skip
        self.given = columns

    def matches(self, path: Path) -> bool:
        """A folder that holds the CSV."""
        return path.is_dir() and (path / self.file).is_file()

    def find(self) -> Path | None:
        """See :meth:`DatasetReader.find`."""
        return DatasetReader.find(self)

    def _no_match(self, given: Path) -> str:
        return DatasetReader._no_match(self, given)

    def read(self, path: Path) -> StudyTable:
        """One row an image."""
        return replace(super().read(path / self.file), name=self.published_name, synthetic=is_synthetic(path))

    def lists(self, path: Path) -> tuple[str, ...]:
        """The CSV."""
        return (self.file,)

    def proposal(self, path: Path) -> str | None:
        """Nothing: the columns are known."""
        return None

    def published(self, table: StudyTable) -> list[Published]:
        """How many images there are."""
        return list(self.counts)

    def write_sample(self, parent: Path, **options: Any) -> Path:
        """See :meth:`DatasetReader.write_sample`."""
        return DatasetReader.write_sample(self, parent, **options)
