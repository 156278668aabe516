"""Synthetic studies of the kind that a run was trained on, for who has none at hand."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import open_dict

from xraylab.config.dataset import resolved_again
from xraylab.config.instantiate import build, plain
from xraylab.config.settings import check_config
from xraylab.data.images.source import ARRAY
from xraylab.data.study_table import SPLITS, SYNTHETIC, StudyTable
from xraylab.errors import UserError
from xraylab.run import Run, home_of, read_config
from xraylab.serving.uploads import Decoded, Facts, Refusal, Study
from xraylab.training.experiment import split_table

MOST = 6  # studies that are offered


class Samples:
    """Studies of the synthetic sample of a run's dataset; none where the dataset has no such sample.

    Args:
        run: its directory. A combination, or a checkpoint on its own, offers none.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._table: StudyTable | None = None
        self._rows: dict[str, int] | None = None

    def names(self) -> list[dict[str, Any]]:
        """``{"name", "findings"}`` of each: findings that the drawing has."""
        rows, table = self._read()
        if table is None:
            return []
        truth = table.frame.loc[list(rows.values()), list(table.labels)].to_numpy()
        found = [[label for label, y in zip(table.labels, of, strict=True) if y == 1] for of in truth]
        return [{"name": name, "findings": of} for name, of in zip(rows, found, strict=True)]

    def study(self, name: str, folder: Path) -> Study:
        """A sample, written as a visitor's study is.

        Raises:
            Refusal: there is no such sample.
        """
        rows, table = self._read()
        if table is None or name not in rows:
            raise Refusal("no_such_sample", "there is no such sample; /api/samples names them.", 400)
        of = table.frame.loc[rows[name]]
        parts = of["parts"] if table.parts else [of["group"]] * len(of["images"])
        decoded = []
        for number, (image, part) in enumerate(zip(of["images"], parts, strict=True)):
            images = table.source.read([image])
            array = np.stack(images) if isinstance(images, list) else images
            path = folder / f"{number:05d}{ARRAY}"
            np.save(path, array)
            decoded.append(Decoded(f"{part}/{Path(str(image)).name}", path, len(array), Facts()))
        return Study(f"sample {name}", decoded)

    def _read(self) -> tuple[dict[str, int], StudyTable | None]:
        with self._lock:
            if self._rows is None:
                self._table = self._sample()
                self._rows = {} if self._table is None else _chosen(self._table)
            return self._rows, self._table

    def _sample(self) -> StudyTable | None:
        home = home_of(self.run)
        if home is None or not (home / "config.yaml").is_file() or (home / "combination.json").is_file():
            return None
        config = read_config(home)
        own = Run(home).evaluation["data"] == SYNTHETIC
        with open_dict(config):
            config.dataset.root = config.dataset.root if own else "sample"
            if "first" in config.loss:
                config.loss.first = None
        try:
            found = resolved_again(config)
            options = found.reader.sample | plain(config.dataset.get("embedded") or {}).get("sample", {})
            path = found.data() if own else found.reader.embedded(options)
            return split_table(found.reader, path, check_config(found.config), build(found.config.loss, "loss").held_back)
        except UserError:  # of a dataset without a sample
            return None


def _chosen(table: StudyTable) -> dict[str, int]:
    """Studies with and without findings in turn, of what is held out."""
    split = next(name for name in reversed(SPLITS) if len(table.part(name)))
    part = table.part(split)
    positive = (part[list(table.labels)] == 1).any(axis=1)
    mixed = [row for pair in zip(part.index[positive], part.index[~positive], strict=False) for row in pair]
    return {str(number): int(row) for number, row in enumerate(mixed[:MOST], start=1)}
