"""What the columns and words of an unknown CSV may be, told by their names, their cells and the files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.attributes import is_age
from xraylab.data.datasets import csv_cells
from xraylab.data.datasets.tables.beside import Named, Pictures, named_pictures
from xraylab.data.datasets.tables.class_names import NOTHING
from xraylab.data.datasets.tables.columns import filled, part_of
from xraylab.errors import listed
from xraylab.system.command_line import command_line, value_of, word

#: names of columns, without what is no letter; of several that are there the first
STUDIES = (
    "studyinstanceuid", "studyuid", "studyid", "study", "accessionnumber", "accessionno", "accession", "examid", "exam",
    "caseid", "case", "uid", "id",
)  # fmt: skip
PATIENTS = (
    "patientid", "patient", "patientno", "patientnumber", "subjectid", "subject", "personid", "person", "pid", "mrn",
)  # fmt: skip
GROUPS = ("group", "bodypart", "bodypartexamined", "anatomy", "region", "plane")
ATTRIBUTES = {
    "sex": ("sex", "gender", "patientsex", "patientgender"), "view": ("view", "viewposition", "projection", "viewname"),
    "site": ("site", "hospital", "institution", "centre", "center"),
    "scanner": ("scanner", "manufacturer", "manufacturermodelname", "modelname", "device"),
}  # fmt: skip
DIAGNOSES = (
    "label",
    "labels",
    "class",
    "classname",
    "diagnosis",
    "finding",
    "findings",
    "findinglabels",
    "dx",
    "category",
    "target",
)
GRADES = ("grade", "kl", "klgrade", "birads", "score", "level", "class", "label", "diagnosis", "severity", "stage")
MEANINGS = {
    1: ("positive", "pos", "yes", "y", "true", "present", "abnormal"),
    0: ("negative", "neg", "no", "n", "false", "absent", "normal"),
    -1: ("uncertain", "unclear", "equivocal", "indeterminate", "possible", "maybe"),
    None: ("unknown", "n/a", "na", "nan", "not mentioned"),
}
SPLITS = {"training": "train", "testing": "test", "dev": "valid", "development": "valid", "evaluation": "test", "eval": "test"}
WIDE = 50  # characters; longer values are not aligned
PATIENT_FOLDER = re.compile(r"(?:patient|pat|subject|sub|p|s)[-_]?\d+", re.IGNORECASE)


@dataclass
class Proposal:
    """What a CSV's columns may be.

    Attributes:
        rows: what each key is proposed to be and why, or why it is not known: key, value, reason.
        columns, values, dataset: what follows from that, for ``columns``, ``values`` and ``dataset``.
        unused: the columns that are nothing of these.
    """

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether enough is known to read the table."""
        return {"id", "images", "labels"} <= set(self.columns)

    @property
    def typable(self) -> bool:
        """Whether Hydra's grammar has a way to write the words of ``values``."""
        from hydra.errors import HydraException  # readers do without Hydra

        try:
            value_of(_mapping("values", self.values))
        except HydraException:
            return False
        return True

    def command(self, path: Path, name: str = "train") -> str:
        """The command that reads the table so."""
        words = ["dataset=table", word("dataset.root", path)]
        words += [word(f"columns.{key}", value) for key, value in self.columns.items()]
        words += [word(f"dataset.{key}", value) for key, value in self.dataset.items()]
        return command_line(name, [*words, *([_mapping("values", self.values)] if self.values and self.typable else [])])

    def text(self) -> list[str]:
        """Lines of what is proposed, and why."""
        widths = [max((len(row[k]) for row in self.rows if len(row[k]) < WIDE), default=0) for k in (0, 1)]
        lines = [f"  {key:<{widths[0]}}  {value:<{widths[1]}}  {why}".rstrip() for key, value, why in self.rows]
        if not self.typable:
            lines.append("  A command line cannot hold these words: write `values` into a YAML of your own, see --config-dir.")
        return [*lines, *([f"  not used: {listed(self.unused, 30)}"] if self.unused else [])]

    def add(self, key: str, value: Any, why: str) -> None:
        """Propose a column or more for a key."""
        self.columns[key] = value
        shown = [f"{name}: {of}" for name, of in value.items()] if isinstance(value, dict) else value
        self.rows.append((key, listed(shown, 8) if isinstance(shown, list) else str(shown), why))

    def unknown(self, key: str, why: str) -> None:
        """Say that nothing is known of a key."""
        self.rows.append((key, "not known", why))


def propose(path: Path) -> Proposal:
    """What the columns of a CSV may be.

    Raises:
        UserError: it cannot be read as CSV.
    """
    cells = csv_cells.read_cells(path)[0].map(str.strip)
    cells.columns = [str(name) for name in cells]
    found, left = Proposal(), [str(name) for name in cells if (cells[name] != "").any()]
    pictures = Pictures(path.parent)
    named = named_pictures(cells[left], pictures)
    _images(found, named, pictures, path)
    _patient(found, cells, left, named)
    if named is not None and named.column in left:
        left.remove(named.column)
    _study(found, cells, left, named)
    _split(found, cells, left)
    if group := _called(GROUPS, left):
        left.remove(group)
        found.add("group", group, f"by its name; {listed(sorted(set(cells[group]) - {''}), 5)}")
    attributes = {name: of for name, names in ATTRIBUTES.items() if (of := _called(names, left))}
    if (age := next(filter(is_age, left), None)) is not None:
        attributes["age"] = age
    left = [name for name in left if name not in attributes.values()]
    _labels(found, cells, left)
    if attributes:
        found.add("attributes", attributes, "by their names: they come along for audits")
    found.unused = left
    return found


def _images(found: Proposal, named: Named | None, pictures: Pictures, path: Path) -> None:
    where = path.parent
    if named is None:
        have = f"there are {pictures.number:,} pictures in and below {where}, and no column names most of them"
        found.unknown("images", have if pictures.number else f"there is no picture in or below {where}")
        return
    why = f"column {named.column}: {named.found:,} of {named.cells:,} name files in and below {named.folder or '.'}"
    if named.text:
        found.add("images", named.text, why)
    else:
        found.unknown("images", why + ", and no one text, as images/{column}.png, makes their paths of it")


def _patient(found: Proposal, cells: pd.DataFrame, left: list[str], named: Named | None) -> None:
    if column := _called(PATIENTS, left):
        left.remove(column)  # it may name the pictures as well
        found.add("patient", column, f"by its name; {cells[column].nunique():,} different in {len(cells):,} rows")
        return
    paths = [] if named is None else cells[named.column].tolist()
    for k in range(6):
        parts = [part_of(cell, str(k)) for cell in paths]
        if parts and all(PATIENT_FOLDER.fullmatch(part) for part in parts) and len(set(parts)) > 1:
            assert named is not None
            why = f"a part of each path, as {parts[0]}; {len(set(parts)):,} different"
            found.add("patient", f"{{{named.column}:{k}}}", why)
            return
    found.unknown("patient", "no column is called so: two studies of one patient may come into train and test")


def _study(found: Proposal, cells: pd.DataFrame, left: list[str], named: Named | None) -> None:
    column = _called(STUDIES, [name for name in left if (cells[name] != "").all()])
    if column is None:
        if named is None:
            found.unknown("id", "no column is called so")
        else:
            found.add("id", named.column, "no column is called so: each picture is a study")
        return
    left.remove(column)
    patient = str(found.columns.get("patient", ""))
    patients = filled(cells, patient) if patient else cells[column]
    several = bool((patients.groupby(cells[column]).nunique().to_numpy() > 1).any())
    text = f"{patient if '{' in patient else f'{{{patient}}}'}/{{{column}}}" if several else column
    number = filled(cells, text).nunique()
    why = (
        f"by its name; {number:,} different in {len(cells):,} rows"
        + ", with the patient, whose studies have names of their own" * several
    )
    found.add("id", text, why)


def _split(found: Proposal, cells: pd.DataFrame, left: list[str]) -> None:
    for column in left:
        words = {cell: cell.lower() for cell in set(cells[column]) if cell}
        meant = {cell: csv_cells.SPLIT_NAMES.get(low) or SPLITS.get(low) for cell, low in words.items()}
        if meant and None not in meant.values() and "train" in meant.values() and len(set(meant.values())) > 1:
            left.remove(column)
            found.add("split", column, f"its words are those of splits: {csv_cells.counted(cells[column])}")
            found.values |= {cell: of for cell, of in meant.items() if words[cell] not in csv_cells.SPLIT_NAMES}
            return
    found.unknown("split", "no column has the words of splits: a part of the patients is held out (dataset.test_fraction)")


def _labels(found: Proposal, cells: pd.DataFrame, left: list[str]) -> None:
    """Columns of labels, with words or numbers; else one of class names."""
    meaning = {text: value for value, texts in MEANINGS.items() for text in texts}
    labels: list[str] = []
    constant: list[str] = []
    values: dict[str, float | None] = {}
    for column in left:
        texts = set(cells[column]) - {""}
        read = {text: meaning.get(text.lower(), csv_cells.label_value(text)) for text in texts}
        known = {value for value in read.values() if value is not None and not np.isnan(value)}
        if texts and not any(value == np.inf for value in read.values()):
            if {0, 1} <= known or (known == {1} and "" in set(cells[column])):
                labels.append(column)
                values |= {text: value for text, value in read.items() if csv_cells.label_value(text) == np.inf}
            else:
                constant.append(column)
    if labels:
        for column in labels:
            left.remove(column)
        safe = [re.fullmatch(r"[^/]+", column) is not None for column in labels]
        chosen: Any = labels if all(safe) else {re.sub(r"\W+", "_", column): column for column in labels}
        positive = f"{len(labels)} columns" if len(labels) > 1 else "a column"
        positive += " of 1, 0, -1, blanks" + f" or words as {listed(map(repr, sorted(values)), 4)}" * bool(values)
        alone = f"; of one value only, and not taken: {listed(constant, 5)}" if constant else ""
        found.add("labels", chosen, positive + alone)
        found.values |= {text: None if value is None or np.isnan(value) else int(value) for text, value in values.items()}
        if values:
            found.rows.append(("values", _shown(values), "what those words mean"))
        return
    _class_names(found, cells, left)


def _class_names(found: Proposal, cells: pd.DataFrame, left: list[str]) -> None:
    texts = {column: set(cells[column]) - {""} for column in left}
    numbers = {c for c, of in texts.items() if all(_is_whole(text) for text in of)}
    apart = {c: {w for text in of for w in re.split(r"\s*[|,]\s*", text) if w} for c, of in texts.items()}
    most = {c: len(cells) // (2 if _plain(c) in DIAGNOSES else 4) for c in left}
    few = [c for c in left if c not in numbers and 1 < len(apart[c]) <= min(60, max(2, most[c]))]
    grades = [c for c in left if c in numbers and 1 < len(texts[c]) <= 10 and _plain(c) in GRADES]
    column = (
        _called(DIAGNOSES, few) or (few[0] if len(few) == 1 and not grades else None) or (grades[0] if len(grades) == 1 else None)
    )
    if column is None:
        which = f"; class names may be those of {listed(few + grades, 6)}: columns.labels=[<column>]" if few or grades else ""
        found.unknown("labels", f"no column holds 1, 0, -1 and blanks, or words as positive and negative{which}")
        return
    left.remove(column)
    found.add("labels", [column], f"{len(apart[column])} class names: {listed(sorted(apart[column]), 6)}")
    ids = filled(cells, found.columns["id"]) if "id" in found.columns else pd.Series(cells.index, cells.index)
    if (cells[column].groupby(ids).nunique().to_numpy() > 1).any():
        found.dataset["exclusive"] = False
        found.rows.append(("exclusive", "false", "rows of one study name several: each is a label"))
    elif column in grades:
        found.dataset["exclusive"] = True
    elif len(texts[column]) == 2 and sum(text.lower() in NOTHING for text in texts[column]) != 1:
        one, other = sorted(texts[column])
        found.values |= {one: 0, other: 1}
        found.rows.append(("values", _shown({one: 0, other: 1}), "not known, a guess: say which of the two is positive"))


def _is_whole(text: str) -> bool:
    """Whether a cell is a whole number."""
    return re.fullmatch(r"\d+(\.0+)?", text) is not None


def _called(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column that is called as the first of the names that one is called by."""
    plain = {_plain(column): column for column in reversed(columns)}
    return next((plain[name] for name in names if name in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f"{text}: {'null' if value is None else value}" for text, value in values.items())


def _mapping(key: str, values: dict[str, Any]) -> str:
    """``key={word: value}``; what Hydra's grammar takes for its own is escaped in words."""
    escaped = {re.sub(r"([\\()\[\]{}:=,])", r"\\\1", text): value for text, value in values.items()}
    return f"{key}={{{_shown(escaped)}}}"
