"""Prediction tables on disk: ours, and those of other tools.

A prediction table has one row a study: ``id, patient, group, split``, then ``p_<label>`` (probability) and ``y_<label>``
(raw label: 1, 0, -1 uncertain, empty not mentioned) for every label, then ``logit_<label>`` (natural log-odds before
calibration) where it is known: its order survives where probabilities round to 0 or 1. One by image has a further key,
``image``.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd

from xraylab.data.study_table import SYNTHETIC, patients_of
from xraylab.errors import UserError, did_you_mean, listed, refusing
from xraylab.evaluation.probabilities import logit
from xraylab.evaluation.result import Evaluation
from xraylab.system.files import beside

if TYPE_CHECKING:
    from torch import Tensor

KEYS = ["id", "patient", "group", "split"]
# what columns are called, unless told
COLUMNS = {name: name for name in (*KEYS, "image")} | {"p": "p_{label}", "y": "y_{label}", "logit": "logit_{label}"}
UNKNOWN = {"patient": "", "group": "all", "split": "test"}  # what another tool's table need not say
SELECTED_ON = ("train", "valid")  # splits that are taken as chosen on where nothing says it
SPLIT = r"\w([\w .-]{0,62}\w)?(?<!_images)"  # files are called after it
MACRO = "macro"  # how results call the mean over findings
PREFIXES = ("p_", "y_", "logit_")  # of a label, in this order
ROUNDING = 1e-6  # by which a probability may lie below that of a smaller logit
UNREADABLE = "cannot be read as a prediction table"


THRESHOLD = 0.5
COUNTS_AS = {"ignore": np.nan, "negative": 0.0, "positive": 1.0}
Labels = TypeVar("Labels", np.ndarray, "Tensor")


@dataclass(frozen=True)
class Scoring:
    """What labels that are neither positive nor negative count as in an evaluation.

    Attributes:
        blank: of what is not mentioned: ``ignore`` (not scored), ``negative`` or ``positive``.
        uncertain: the same.
    """

    blank: str = "ignore"
    uncertain: str = "ignore"

    @classmethod
    def of(cls, evaluation: Evaluation) -> Scoring:
        """That of the content of an ``evaluation.json``; one that does not say it has certain labels scored."""
        return cls(**evaluation.get("scored", {}))

    def __str__(self) -> str:
        return f"blank {self.blank}, uncertain {self.uncertain}"


CERTAIN = Scoring()  # certain labels only, which is so unless told


def scored_labels(raw: Labels, scoring: Scoring = CERTAIN) -> Labels:
    """What labels count as in an evaluation: 1, 0, or NaN where not scored.

    Args:
        raw: floating, of any shape: 1, 0, -1 uncertain, NaN not mentioned.
        scoring: what blank and uncertain labels count as.
    """
    blank, uncertain = COUNTS_AS[scoring.blank], COUNTS_AS[scoring.uncertain]
    if isinstance(raw, np.ndarray):
        return np.where(raw == -1, uncertain, np.where(np.isnan(raw), blank, raw)).astype(raw.dtype)
    return raw.masked_fill(raw != raw, blank).masked_fill(raw == -1, uncertain)


def logit_columns(table: pd.DataFrame) -> list[str]:
    """The columns of logits."""
    return [c for c in map(str, table) if c.startswith("logit_")]


def with_logits(table: pd.DataFrame, found: Mapping[str, np.ndarray | None]) -> pd.DataFrame:
    """The table with these logits by label behind its other columns, and no others; None: not known."""
    out = table.drop(columns=logit_columns(table))
    return out.assign(**{f"logit_{label}": z for label, z in found.items() if z is not None})


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """Probabilities and raw labels of studies, or of images, a row each.

    Attributes:
        frame: ``id, patient, group, split[, image]`` as text, then of every label ``p_<label>``, ``y_<label>`` and where it is
            known ``logit_<label>``, float64. See the words at the top of this module.

    >>> frame = pd.DataFrame({"id": ["a", "b"], "patient": "", "group": "all", "split": "test", "p_acl": [0.9, 0.2]})
    >>> table = PredictionTable(frame.assign(y_acl=[1.0, -1.0]))
    >>> table.labels, table.unit, len(table)
    (['acl'], 'study', 2)
    >>> table.truth().tolist(), table.truth(Scoring(uncertain="negative")).tolist()
    ([[1.0], [nan]], [[1.0], [0.0]])
    """

    frame: pd.DataFrame

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def predicted(self) -> list[str]:
        """Labels with a probability."""
        return [c[2:] for c in self.frame.columns if c.startswith("p_")]

    @property
    def labels(self) -> list[str]:
        """Labels with both a probability and a truth."""
        columns = self.frame.columns
        return [c[2:] for c in columns if c.startswith("p_") and f"y_{c[2:]}" in columns]

    @property
    def unit(self) -> str:
        """What a row is: ``study`` or ``image``."""
        return "image" if "image" in self.frame else "study"

    @property
    def patients(self) -> pd.Series:
        """Texts (N,), blank where the patient is not known."""
        return self.frame["patient"]

    @property
    def clusters(self) -> np.ndarray:
        """The number of each row's patient, int64 (N,); a study whose patient is not known is a patient of its own."""
        return pd.factorize(patients_of(self.frame))[0]

    def raw(self, label: str) -> np.ndarray:
        """Raw labels, float64 (N,): 1, 0, -1 uncertain, NaN not mentioned."""
        return self.frame[f"y_{label}"].to_numpy(np.float64)

    def truth(self, scoring: Scoring = CERTAIN) -> np.ndarray:
        """What labels count as, float64 (N,L): 1, 0, or NaN where not scored."""
        return scored_labels(self.frame[[f"y_{label}" for label in self.labels]].to_numpy(np.float64), scoring)

    def probability(self, label: str) -> np.ndarray:
        """Probabilities, float64 (N,) in [0,1]."""
        return self.frame[f"p_{label}"].to_numpy(np.float64)

    def has_logits(self, label: str) -> bool:
        """Whether a label's logits are known."""
        return f"logit_{label}" in self.frame

    def scores(self, label: str) -> np.ndarray:
        """What ranks the rows for a label, float64 (N,): the logits where they are known, else the probabilities."""
        return self.frame[f"logit_{label}"].to_numpy(np.float64) if self.has_logits(label) else self.probability(label)

    def log_odds(self, label: str) -> np.ndarray:
        """The logits of a label, float64 (N,); those of the probabilities where none are known, see :func:`logit`."""
        found = self.scores(label)
        return found if self.has_logits(label) else logit(found)

    def ranked(self, label: str, threshold: float = THRESHOLD) -> tuple[np.ndarray, float]:
        """What ranks the rows for a label (N,), and the value from which on these are the rows with a probability from
        ``threshold`` on: logits where they are known, for their order survives where probabilities round to 0 or 1."""
        score = self.scores(label)
        return score, float(score[self.probability(label) >= threshold].min(initial=np.inf))

    def scored(self, label: str, scoring: Scoring = CERTAIN) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Truth 0/1, probability and place of the rows whose label is scored, (M,)."""
        truth = scored_labels(self.raw(label), scoring)
        rows = np.flatnonzero((truth == 0) | (truth == 1))
        return truth[rows].astype(int), self.probability(label)[rows], rows

    @classmethod
    def of_studies(
        cls, frame: pd.DataFrame, labels: Sequence[str], split: str, rows: np.ndarray, probabilities: np.ndarray,
        logits: np.ndarray | None = None,
    ) -> PredictionTable:  # fmt: skip
        """The prediction table of some rows of a study table, or of one by image.

        Args:
            rows: (N,) index into ``frame``; in one by image, an image's view, where it is known, is its group.
            probabilities: (N,L).
            logits: (N,L), of these probabilities; None: not known.
        """
        part = frame.loc[rows, ["id", "patient", "group"]].assign(split=split).reset_index(drop=True)
        if "view" in frame:
            part["group"] = frame.loc[rows, "view"].to_numpy()
        if "image" in frame:
            part["image"] = [names[0] for names in frame.loc[rows, "called" if "called" in frame else "images"]]
        for i, label in enumerate(labels):
            part[f"p_{label}"] = probabilities[:, i].astype(np.float64)
        for label in labels:
            part[f"y_{label}"] = frame.loc[rows, label].to_numpy(np.float64)
        return cls(part if logits is None else with_logits(part, dict(zip(labels, logits.T, strict=True))))

    def write(self, path: Path, synthetic: bool = False) -> None:
        """Write it as CSV, as a whole or not at all; probabilities keep all their digits.

        Args:
            synthetic: mark every row by a last column, ``data``.
        """
        out = self.frame.assign(data=SYNTHETIC) if synthetic else self.frame.copy()
        for column in out.columns:
            if column.startswith("y_"):
                out[column] = out[column].astype("Int64")
        with beside(path) as partial:
            out.to_csv(partial, index=False)

    @classmethod
    def read(cls, path: Path, columns: Mapping[str, str] | None = None) -> PredictionTable:
        """A prediction table from CSV, every row of it checked.

        Args:
            columns: what another tool calls its columns, any of :data:`COLUMNS`; ``p`` and ``y`` have ``{label}`` in them, as
                ``predicted_{label}``, or are two columns of one label, which is called as the second. Columns of ``patient``,
                ``group`` and ``split`` that are not named need not be there: no patient is known then, all are of one group,
                and of the split ``test``. Logits need not be there, of any label.

        Returns:
            ``id, patient, group, split[, image], p_<label>…, y_<label>…[, logit_<label>…][, data]``: texts, and float64 of the
            labels.

        Raises:
            UserError: it is not one, or has a finding called ``macro``; rows that have no id, one that another row has, a
                split that cannot name a file, a probability that is missing or outside 0 to 1, a logit that is missing or not
                finite, or that contradicts the probabilities, or a label other than 1, 0, -1 and blank are named.
        """
        names, header = {**COLUMNS, **(columns or {})}, _header(path)
        if unknown := set(names) - set(COLUMNS):
            raise UserError(f"columns.{min(unknown)}: there is no such key. There are: {', '.join(COLUMNS)}.")
        optional = {k for k in ("image", *UNKNOWN) if columns is not None or k == "image" if names[k] == COLUMNS[k]}
        missing = [names[k] for k in (*KEYS, "image") if names[k] not in header and k not in optional]
        if missing:
            hint = did_you_mean(missing[0], header) or f" There are: {listed(header)}."
            raise UserError(f"{path}: not a prediction table: no column {listed(missing)}.{hint}")
        pairs = _labels(path, header, names["p"], names["y"])
        if MACRO in pairs:
            raise UserError(f"{path}: a finding is called {MACRO}, which is what results call the mean over findings. Rename it.")
        logits = _logits(path, header, names["logit"], pairs)
        unreadable = refusing(f"{path}: {UNREADABLE}", OSError, ValueError, pd.errors.ParserWarning, end="")
        with unreadable, warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            read = pd.read_csv(
                path, encoding="utf-8-sig", dtype={names[k]: str for k in KEYS}, index_col=False, keep_default_na=False,
                na_values={c: [""] for c in (*logits.values(), *(c for pair in pairs.values() for c in pair))},
            )  # fmt: skip
        if read.empty:
            raise UserError(f"{path}: a prediction table without rows.")
        out = pd.DataFrame({k: read[names[k]].fillna("") if names[k] in read else UNKNOWN[k] for k in KEYS})
        if names["image"] in read:
            out["image"] = read[names["image"]]
        by_kind = {"p": {k: p for k, (p, _) in pairs.items()}, "y": {k: y for k, (_, y) in pairs.items()}, "logit": logits}
        for kind, columns_of in by_kind.items():
            values = {f"{kind}_{label}": pd.to_numeric(read[c], errors="coerce") for label, c in columns_of.items()}
            out = pd.concat([out, pd.DataFrame(values, index=out.index).astype(np.float64)], axis=1)
        _check(path, out, read, pairs, logits, names["split"])
        synthetic = "data" in read and (read["data"] == SYNTHETIC).any()  # as write marks it
        return cls(out.assign(data=SYNTHETIC) if synthetic else out)


def _header(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
        if "\0" in "".join(header):
            raise UnicodeError("of 16 bits a letter")
    except UnicodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 (it may be UTF-16): {error}. Save it as a CSV in UTF-8.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: {UNREADABLE}: {error}") from error
    for mark, called in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise UserError(f"{path}: its columns are separated by {called}. Save it with commas (and decimal points).")
    twice = sorted({c for c in header if header.count(c) > 1})
    if twice:
        raise UserError(f"{path}: two columns are called {listed(twice)}.")
    return header


def _labels(path: Path, header: list[str], p: str, y: str) -> dict[str, tuple[str, str]]:
    """Label to its columns of probability and truth."""
    for key, name in (("p", p), ("y", y)):
        if name.count("{label}") > 1 or ("{label}" in p) != ("{label}" in y):
            raise UserError(f"columns.{key}={name}: both of columns.p and columns.y have {{label}} in them once, or neither has.")
    if "{label}" not in p:
        found = {y: (p, y)}
    else:
        found_p, found_y = ({m[1]: c for c in header if (m := re.fullmatch(_pattern(n), c))} for n in (p, y))
        found = {label: (c, found_y[label]) for label, c in found_p.items() if label in found_y}
        alone = [c for label, c in found_p.items() if label not in found and p != "{label}"]
        alone += [c for label, c in found_y.items() if label not in found and y != "{label}"]
        if found and alone:
            raise UserError(
                f"{path}: a label has a probability ({p}) and a truth ({y}); one of them is not there of {listed(alone)}."
            )
    if not found or any(c not in header for pair in found.values() for c in pair):
        what = f"{p} and {y}".replace("{label}", "<label>")
        raise UserError(f"{path}: not a prediction table: no column {what}. There are: {listed(header, 20)}.")
    return found


def _logits(path: Path, header: list[str], name: str, labels: Iterable[str]) -> dict[str, str]:
    """Label to its column of logits, of those that have one."""
    found = {label: name.replace("{label}", label) for label in labels}
    if len(set(found.values())) < len(found):
        raise UserError(f"columns.logit={name}: it has {{label}} in it, for there are several labels: {listed(found)}.")
    there = {label: c for label, c in found.items() if c in header}
    if not there and name != COLUMNS["logit"]:
        raise UserError(f"{path}: no column {listed(found.values())} (columns.logit). There are: {listed(header, 20)}.")
    return there


def _pattern(name: str) -> str:
    before, after = name.split("{label}")
    return f"{re.escape(before)}(.+){re.escape(after)}"


def _check(
    path: Path, table: pd.DataFrame, read: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], logits: Mapping[str, str],
    split: str,
) -> None:  # fmt: skip
    """Refuse a table with rows that are wrong."""
    problems: dict[str, list[str]] = {}

    def note(kind: str, wrong: np.ndarray, column: str | None = None) -> None:
        for row in np.flatnonzero(wrong):
            value = "" if column is None else f": {column} is {_text(read[column].iloc[row])}"
            named = f" ({table['id'].iloc[row]})" if table["id"].iloc[row] else ""
            problems.setdefault(kind, []).append(f"row {row + 1}{named}{value}")

    keys = [k for k in ("id", "image") if k in table]
    nameless = (table["id"] == "").to_numpy()
    note("rows without an id", nameless)
    again = table.duplicated(keys).to_numpy() & ~nameless
    note(f"rows of {'an image' if 'image' in keys else 'a study'} that an earlier row has", again)
    note("splits that cannot name a file", ~table["split"].str.fullmatch(SPLIT).to_numpy(bool), split)
    for label, (p, y) in pairs.items():
        values, truth = table[f"p_{label}"].to_numpy(), table[f"y_{label}"].to_numpy()
        note("probabilities that are missing or no numbers", np.isnan(values), p)
        note("probabilities outside 0 to 1", (values < 0) | (values > 1), p)
        note("labels other than 1, 0, -1 and blank", ~np.isin(truth, (1, 0, -1)) & read[y].notna().to_numpy(), y)
    for label, column in logits.items():
        z, values = table[f"logit_{label}"].to_numpy(), table[f"p_{label}"].to_numpy()
        note("logits that are missing or no finite numbers", ~np.isfinite(z), column)
        order = np.lexsort((values, z))
        below = np.maximum.accumulate(values[order]) - values[order] > ROUNDING
        note(f"logits whose probability is below that of a smaller logit ({pairs[label][0]})", below[np.argsort(order)], column)
    if problems:
        lines = [f"\n  {len(names)} {kind}: {listed(names, 5)}" for kind, names in problems.items()]
        raise UserError(f"{path}: a prediction table with mistakes; row 1 is the one below the header.{''.join(lines)}")


def _text(value: object) -> str:
    return "blank" if value == "" or pd.isna(value) else str(value)  # type: ignore[call-overload]
