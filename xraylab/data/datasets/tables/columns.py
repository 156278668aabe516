"""Which column of a CSV is what, where the columns have names of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xraylab.data.attributes import ATTRIBUTE
from xraylab.errors import UserError, did_you_mean, listed

ROLES = ("id", "patient", "group", "split", "images")
#: a column in a text, and which part of a path: its name, that without the suffix, the part of a number, or all from there on
PLACE = re.compile(r"\{([^{}:]+)(?::(name|stem|-?\d+:?))?\}")
APART = re.compile(r"[;|]")  # stands between the images of a cell


class Columns:
    """Names of a table's columns.

    Args:
        given: for ``id``, ``patient``, ``group``, ``split`` and ``images`` a column, or a text with columns in braces
            (``images/{ImageId}.png``); None: the column of that name. Of paths, ``{Path:name}`` and ``{Path:stem}`` are the file
            with and without its suffix, ``{Path:0}`` the first part, ``{Path:1:}`` all after it. For ``labels`` and
            ``attributes`` a column, a list of them, or name -> column.
        labels: the same for ``labels``, in place of those of ``given``.

    Raises:
        UserError: it is none of these.

    >>> cells = pd.DataFrame({"Case": ["7", "8"], "ImageId": ["a;b", ""]})
    >>> columns = Columns({"id": "Case", "images": "pictures/{ImageId}.png"})
    >>> columns.applied(Path("mine.csv"), cells)["images"].tolist()
    ['pictures/a.png;pictures/b.png', '']
    """

    def __init__(self, given: Mapping[str, Any] | None = None, labels: Any = None) -> None:
        of = {str(key): value for key, value in (given or {}).items() if value is not None}
        own = of.pop("labels", None)
        labels = own if labels is None else labels
        attributes = of.pop("attributes", None)
        known = (*ROLES, "labels", "attributes")
        if unknown := [key for key in of if key not in ROLES]:
            raise UserError(f"columns.{unknown[0]}: it is one of {', '.join(known)}.{did_you_mean(unknown[0], known)}")
        self.of = {key: _text(f"columns.{key}", value) for key, value in of.items()}
        self.labels = None if labels is None else _named("columns.labels", labels)
        self.attributes = {} if attributes is None else _named("columns.attributes", attributes)

    def applied(self, path: Path, cells: pd.DataFrame) -> pd.DataFrame:
        """The cells of a CSV, its columns called as the reader calls them; those that were named otherwise are beside them.

        Raises:
            UserError: a column is not there.
        """
        names = [str(name) for name in cells.columns]
        needed = [(f"columns.{key}={text}", name) for key, text in self.of.items() for name in columns_in(text)]
        needed += [("columns.attributes", name) for name in self.attributes.values()]
        for key, name in needed:
            if name not in names:
                raise UserError(
                    f"{key}: there is no such column{f' as {name}' * (name not in key)} of {path}.{did_you_mean(name, names)} "
                    f"There are: {listed(names, 30)}."
                )
        made = {key: filled(cells, text, several=key == "images") for key, text in self.of.items()}
        made |= {ATTRIBUTE + name: cells[column] for name, column in self.attributes.items()}
        renamed = {name: column for name, column in (self.labels or {}).items() if name != column and column in names}
        if taken := [name for name in renamed if name in names]:
            raise UserError(f"columns.labels: {taken[0]}: {path} has a column of that name, which is another. Choose a new name.")
        cells = cells.rename(columns={column: name for name, column in renamed.items()})
        return cells.drop(columns="image", errors="ignore").assign(**made) if "images" in made else cells.assign(**made)

    def used(self) -> set[str]:
        """The columns of the CSV that were named, but for labels."""
        return {name for text in self.of.values() for name in columns_in(text)} | set(self.attributes.values())


def columns_in(text: str) -> list[str]:
    """The columns that a text has in braces; without braces it is one itself."""
    return [name for name, _ in PLACE.findall(text)] or [text]


def filled(cells: pd.DataFrame, text: str, several: bool = False) -> pd.Series:
    """The cells of a column, or a text with the cells of each row in its braces; empty where one of them is.

    Args:
        several: a cell may hold several, of each of which a text is made.
    """
    places = PLACE.findall(text) or [(text, "")]
    literal = PLACE.split(text)[::3] if PLACE.search(text) else ["", ""]
    columns = [cells[name].str.strip().tolist() for name, _ in places]
    out = []
    for row in zip(*columns, strict=True):
        parts = APART.split(row[0]) if several and len(row) == 1 else [None]
        texts = []
        for one in parts:
            chosen = row if one is None else (one.strip(),)
            chosen = tuple(part_of(cell, which) for cell, (_, which) in zip(chosen, places, strict=True))
            if all(chosen):
                texts.append("".join(before + cell for before, cell in zip(literal, (*chosen, ""), strict=True)))
        out.append(";".join(texts))
    return pd.Series(out, cells.index, dtype=object)


def part_of(cell: str, which: str) -> str:
    """A cell, or of a path that it is a part: ``name``, ``stem``, a number, or all from a number on (``1:``); empty where there
    is no such.

    >>> [part_of("/data/p7/front.png", which) for which in ("", "name", "stem", "1", "1:")]
    ['/data/p7/front.png', 'front.png', 'front', 'p7', 'p7/front.png']
    """
    if not which:
        return cell
    parts = [part for part in re.split(r"[/\\]", cell) if part]
    if which in ("name", "stem"):
        name = parts[-1] if parts else ""
        return os.path.splitext(name)[0] if which == "stem" else name
    if which.endswith(":"):
        return "/".join(parts[int(which[:-1]) :])
    return parts[int(which)] if -len(parts) <= int(which) < len(parts) else ""


def _text(key: str, value: Any) -> str:
    if (isinstance(value, bool | Mapping | Sequence) and not isinstance(value, str)) or not str(value).strip():
        raise UserError(f'{key}={value}: it is a column, or a text with columns in braces, as "images/{{ImageId}}.png".')
    return str(value).strip()


def _named(key: str, given: Any) -> dict[str, str]:
    """Name -> column."""
    if isinstance(given, Mapping):
        pairs = [(str(name), str(column)) for name, column in given.items()]
    else:
        pairs = [(str(name), str(name)) for name in ([given] if isinstance(given, str | int) else given)]
    if not pairs or len(dict(pairs)) < len(pairs) or len({column for _, column in pairs}) < len(pairs):
        where = "dataset.labels" if key == "columns.labels" else key
        shown = ",".join(name for name, _ in pairs)
        raise UserError(f"{where}=[{shown}]: it is a list of columns, each once; null: all there are.")
    return dict(pairs)
