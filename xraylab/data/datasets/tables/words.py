"""What the words of a table mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from xraylab.data.datasets.csv_cells import SPLIT_NAMES, label_value
from xraylab.errors import UserError

VALUES = (1, 0, -1)


class Words:
    """Meaning of the words of a table, whatever their case: of a label 1, 0, -1 or None (blank), of a split its name.

    Args:
        values: word -> meaning.

    Raises:
        UserError: a meaning is none of these.

    >>> words = Words({"Positive": 1, "unclear": -1, "Training": "train"})
    >>> words.label("positive "), words.label("0"), words.label("perhaps"), words.split("TRAINING")
    (1.0, 0.0, inf, 'train')
    """

    def __init__(self, values: Mapping[Any, Any] | None = None) -> None:
        if values is not None and not isinstance(values, Mapping):
            raise UserError(f"values={values}: it says what words mean, as 'values={{Positive: 1, Negative: 0}}'.")
        self.labels: dict[str, float] = {}
        self.splits: dict[str, str] = {}
        for word, meaning in (values or {}).items():
            if isinstance(meaning, str) and meaning.lower() in SPLIT_NAMES:
                self.splits[_plain(word)] = SPLIT_NAMES[meaning.lower()]
            elif meaning is None or (meaning in VALUES and not isinstance(meaning, bool | str)):
                self.labels[_plain(word)] = np.nan if meaning is None else float(meaning)
            else:
                raise UserError(
                    f"values={{{word}: {meaning}}}: a word means 1, 0, -1 (uncertain) or null (not mentioned) of a label, or "
                    "train, valid or test of a split."
                )

    def label(self, cell: str) -> float:
        """The raw label of a cell, see :func:`xraylab.data.datasets.csv_cells.label_value`."""
        found = self.labels.get(_plain(cell))
        return label_value(cell) if found is None else found

    def split(self, cell: str) -> str | None:
        """The split that a cell names; None: it names none."""
        return self.splits.get(_plain(cell)) or SPLIT_NAMES.get(cell.strip().lower())

    def unheard(self, cells: Iterable[str]) -> list[str]:
        """The words that are in no cell."""
        there = {_plain(cell) for cell in cells}
        return [word for word in (*self.labels, *self.splits) if word not in there]


def _plain(word: Any) -> str:
    """A word without its case; numbers are one however they are written. Of a command line null comes as None."""
    text = "null" if word is None else str(word).strip().casefold()
    try:
        return f"{float(text):g}"
    except ValueError:
        return text
