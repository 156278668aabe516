"""A column that names the class of each study, or its findings, in place of a column for each."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from xraylab.data.datasets.csv_cells import Faults
from xraylab.data.datasets.folder import NEGATIVES
from xraylab.errors import UserError, did_you_mean, listed

log = logging.getLogger(__name__)

APART = re.compile(r"\s*[|,]\s*")  # stands between the findings of a cell
NOTHING = (*NEGATIVES, "no finding", "no_finding", "none")  # findings that are none


class ReadLabels(NamedTuple):
    """Labels of the rows of a table.

    Attributes:
        labels: those asked for, in order.
        raw: float32, one row a row of the table, one column a label: raw labels; infinite where a cell is none.
        every: the same of every label there is, whichever are asked for.
        exclusive: exactly one label of a study is 1.
    """

    labels: tuple[str, ...]
    raw: pd.DataFrame
    every: pd.DataFrame
    exclusive: bool


def read_class_names(
    column: pd.Series, ids: pd.Series, wanted: Sequence[str] | None, exclusive: bool | None, where: str, faults: Faults
) -> ReadLabels:
    """The labels that a column of class names stands for.

    A cell may name several findings, separated by ``|`` or ``,``: each is a label then. Else a row names one class: two classes
    are one label, that of the positive one, and more are exclusive.

    Args:
        column: named as in the CSV.
        ids: of each row's study.
        wanted: classes, in order; others are left out. None: all, sorted.
        exclusive: True: what a cell holds is one class, separators or not; False: each class is a label, and the rows of a study
            name its findings together; None: by the cells.
        where: the table and column, for messages.
        faults: studies of a class that is not wanted, without one, or of several that exclude each other, are added.

    Raises:
        UserError: there are no classes, or it is not known which of two is positive.
    """
    cells = column.str.strip()
    several = exclusive is False or (exclusive is None and bool(cells.str.contains(r"[|,]").any()))
    words = _words(cells, several)
    there = sorted({word for of in words.values() for word in of}, key=_by_number)
    numeric = bool(there) and all(_is_number(word) for word in there)
    named = {word: f"{column.name}_{float(word):g}" if numeric else word.replace("/", "_") for word in there}
    classes = there if wanted is None else _wanted(wanted, there, named, where)
    if len(there) < 2 or (len(there) * 2 > ids.nunique() and len(there) > 20):
        raise UserError(
            f"{where}: {len(there)} different texts in {len(cells)} rows are no classes: {listed(map(repr, there), 3)}. Name "
            "another column: columns.labels=[<column>]."
        )
    rows = {cell: [float(c in of) for c in there] for cell, of in words.items()}
    table = np.array([rows.get(cell, [np.nan] * len(there)) for cell in cells], np.float32)
    every = pd.DataFrame(table, cells.index, [named[word] for word in there])
    every = every.groupby(ids, sort=False).transform("max")
    if several:
        negative = next((word for word in there if word.lower() in NOTHING), "") if wanted is None else ""
        labels = tuple(named[word] for word in classes if word != negative)
        if negative:
            log.info("%s: %r says that there is no finding, and is no label.", where, negative)
        return ReadLabels(labels, every[list(labels)], every, False)
    faults.add_rows(f"rows without a class in {column.name}", ids[cells == ""])
    others = (cells != "") & ~cells.map({cell: of[0] for cell, of in words.items()}).isin(classes)
    faults.add_rows(f"rows of another class than {listed(classes, 20)}", ids[others], cells)
    torn = every.sum(axis=1) > 1
    kind = "rows of one id that name different classes (dataset.exclusive=false reads them as findings, one label each)"
    faults.add_rows(kind, ids[torn], cells)
    if len(classes) > 2 or exclusive:
        labels = tuple(named[word] for word in classes)
        return ReadLabels(labels, every[list(labels)], every, True)
    left = [word for word in classes if word.lower() not in NOTHING]
    if len(left) != 1:
        one, other = classes
        raise UserError(
            f"{where}: the classes are {one} and {other}: say which is positive, 'values={{{one}: 0, {other}: 1}}' or "
            f"'values={{{one}: 1, {other}: 0}}'."
        )
    return ReadLabels((named[left[0]],), every[[named[left[0]]]], every, False)


def _words(cells: pd.Series, several: bool) -> dict[str, list[str]]:
    """The class names of each cell that is not blank; of names that differ in case only, one spelling stands for all."""
    words = {cell: [w for w in APART.split(cell) if w] if several else [cell] for cell in cells.unique() if cell}
    spelling = {word.casefold(): word for word in sorted({word for of in words.values() for word in of}, reverse=True)}
    return {cell: [spelling[word.casefold()] for word in of] for cell, of in words.items()}


def _wanted(wanted: Sequence[str], there: Sequence[str], named: dict[str, str], where: str) -> list[str]:
    """Words of the cells that are asked for, by the word or by the name of its label."""
    of = {**{label: word for word, label in named.items()}, **{word: word for word in there}}
    if unknown := [name for name in wanted if name not in of]:
        raise UserError(
            f"{where}: no row is of the class {unknown[0]}.{did_you_mean(unknown[0], of)} There are: {listed(there, 40)}."
        )
    found = [of[name] for name in wanted]
    if len(set(found)) < len(found) or len(found) < 1:
        raise UserError(f"dataset.classes=[{','.join(wanted)}]: it is a list of classes, each once; null: all there are.")
    return found


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _by_number(text: str) -> tuple[float, str]:
    return (float(text), "") if _is_number(text) else (np.inf, text)
