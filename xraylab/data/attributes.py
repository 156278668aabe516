"""Attributes of studies: what a set says of them beside labels, as age, sex, view, site and scanner.

The study table holds each in a column of its own, ``attribute/<name>``: ages in years (NaN where not known), anything else as
the set writes it (empty where not known). Splits, caches and predictions do not know of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from xraylab.errors import listed

log = logging.getLogger(__name__)

ATTRIBUTE = "attribute/"
AGE = re.compile(r"(?:patient|subject)?_?age(?:_?(?:in_?)?y(?:ea)?rs?)?(?:_?at_?\w+)?")
#: how ages are written: years, or a number of years, months, weeks or days as DICOM has them (PS3.5, AS)
WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", re.IGNORECASE)
YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def is_age(name: str) -> bool:
    """Whether an attribute of that name is an age.

    >>> [is_age(name) for name in ("Age", "Patient Age", "PatientAge", "age_years", "image", "stage")]
    [True, True, True, True, False, False]
    """
    return AGE.fullmatch(re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")) is not None


def years(cell: str) -> float:
    """An age in years; NaN where the cell is blank or is no age.

    >>> years("058Y"), years("018M"), years("58"), years("over 89")
    (58.0, 1.5, 58.0, nan)
    """
    found = WRITTEN.fullmatch(cell.strip())
    return float(found[1]) * YEARS[found[2].upper()] if found else np.nan


def attributes_of(ids: pd.Series, cells: Mapping[str, pd.Series], where: str) -> pd.DataFrame:
    """The attributes of studies, one row an id: columns ``attribute/<name>``.

    Texts that differ among the rows of a study, as its views do, are sorted and joined by ``+``; of ages that differ none is
    taken. Ages that cannot be read, or differ, are said.

    Args:
        ids: of each row's study.
        cells: name -> what the set writes of the same rows.
        where: the table that they are of, for what is said.
    """
    out = pd.DataFrame(index=pd.Index(ids.drop_duplicates(), name="id"))
    for name, column in cells.items():
        column = column.str.strip()
        if is_age(name):
            numbers = column.map({cell: years(cell) for cell in column.unique()}).astype(np.float64)
            if odd := sorted(set(column[(column != "") & numbers.isna()])):
                log.warning("%s: ages that are not read, and not known therefore: %s", where, listed(map(repr, odd)))
            by_study = numbers.groupby(ids, sort=False)
            least, most = by_study.min(), by_study.max()
            if torn := sorted(least.index[least < most]):
                log.warning("%s: studies of several ages, of which none is taken: %s", where, listed(torn))
            out[ATTRIBUTE + name] = least.where(least == most)
        else:
            pairs = pd.DataFrame({"id": ids, "text": column})[column != ""].drop_duplicates()
            several = pairs["id"].duplicated(keep=False)
            texts = pd.concat(
                [pairs[~several].set_index("id")["text"], pairs[several].sort_values("text").groupby("id")["text"].agg("+".join)]
            )
            out[ATTRIBUTE + name] = texts.reindex(out.index, fill_value="")
    return out


def attribute_counts(frame: pd.DataFrame, most: int = 12) -> list[tuple[str, str]]:
    """Name and, in words, the values of each attribute of a study table: counts of texts, the range of ages."""
    out = []
    for column in [name for name in frame if str(name).startswith(ATTRIBUTE)]:
        values = frame[column]
        if values.dtype.kind == "f":
            known = values.dropna()
            words = [f"{known.min():.3g}-{known.max():.3g}, median {known.median():.3g}"] if len(known) else []
            unknown = len(values) - len(known)
        else:
            words = [listed((f"{text} {n:,}" for text, n in values[values != ""].value_counts().items()), most)]
            unknown = int((values == "").sum())
        words += [f"not known {unknown:,}"] * bool(unknown)
        out.append((str(column).removeprefix(ATTRIBUTE), ", ".join(word for word in words if word)))
    return out
