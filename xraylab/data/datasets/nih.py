"""NIH ChestX-ray14: chest X-rays labelled from their reports (Wang et al. 2017, arXiv:1705.02315).

``images/00000001_000.png``, or ``images_001/images/…`` to ``images_012``. ``Data_Entry_2017_v2020.csv``, or without ``_v2020``,
has a row an image with its findings joined by ``|``, which are positive; the others are negative. In some copies its header and
its rows differ in length, for it has commas of its own. ``train_val_list.txt`` and ``test_list.txt`` name each split's images.
A copy of Kaggle's, resized to 224 pixels, has ``images-224/images-224/`` and ``train_val_list_NIH.txt``.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from xraylab.data.attributes import ATTRIBUTE
from xraylab.data.datasets.chest_xray import Radiographs, name_wrong, places_of, read_list, with_lines
from xraylab.data.datasets.csv_cells import text_lines
from xraylab.data.findings import NIH as FINDINGS
from xraylab.data.findings import finding
from xraylab.data.published import Published
from xraylab.data.stratification import written
from xraylab.data.study_table import ALL_LABELS, Problems, StudyTable, named
from xraylab.data.synthetic.chest import write_nih

ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = {"train": ("train_val_list.txt", "train_val_list_NIH.txt"), "heldout": ("test_list.txt", "test_list_NIH.txt")}
NONE = "no_finding"
IMAGE = r"\d+_\d+\.png"
# published
TOTALS = {None: {"images": 112120, "patients": 30805}, "train": {"images": 86524}, "heldout": {"images": 25596}}


class NIH(Radiographs):
    """Reader of ChestX-ray14, whose images are studies of their own; the group is the view, ap or pa.

    Arguments as of :class:`~xraylab.data.datasets.chest_xray.Radiographs`.

    >>> import tempfile
    >>> table = NIH(findings="hernia").read(write_nih(Path(tempfile.mkdtemp()) / "ChestX-ray14", train=20, test=20))
    >>> len(table.frame), table.labels
    (40, ('hernia',))
    """

    published_name = "ChestX-ray14"
    other_names = ("CXR8", "NIH", "nih-chest-xrays", "nih-chest-x-ray-14-224x224-resized")
    expected = """
  ChestX-ray14/
    images/00000001_000.png     (or images_001/images/00000001_000.png ... images_012/)
    Data_Entry_2017_v2020.csv   (or Data_Entry_2017.csv)
    train_val_list.txt  test_list.txt"""
    register = "free, https://nihcc.app.box.com/v/ChestXray-NIHCC"
    heldout = "test"
    known = FINDINGS
    on_request = (NONE,)
    writer = write_nih

    def matches(self, path: Path) -> bool:
        """A folder with the table and the lists of both splits."""
        return _entries(path) is not None and len(_lists(path)) == len(LISTS)

    def read(self, path: Path) -> StudyTable:
        """One row an image; the held-out split is the published test."""
        problems: Problems = defaultdict(list)
        file = path / str(_entries(path))
        about = ("Patient Age", "Patient Gender", "Patient Sex")  # one of the last two
        columns = ["Image Index", "Finding Labels", "Patient ID", "View Position", *about]
        rows = read_list(file, columns, problems, optional=about, ragged=True)
        names = rows["image_index"]
        good = names.str.fullmatch(IMAGE).astype(bool)
        name_wrong(names[~good], "an image", file.name, problems)
        rows, names = rows[good], names[good]
        twice = names.duplicated()
        problems[f"images twice in {file.name}"] += with_lines(names[twice])
        patient = rows["patient_id"].str.lstrip("0")
        torn = (patient != names.str.partition("_")[0].str.lstrip("0")) & ~twice
        strangers = names[torn] + " of Patient ID " + rows["patient_id"][torn]
        problems[f"images of {file.name} whose name is not of their patient"] += with_lines(strangers)
        keep = ~(twice | torn)
        rows, names = rows[keep], names[keep]

        splits = self._splits(path, names, problems)
        values = self._values(rows["finding_labels"], names, file.name, problems)
        folders = _folders(path)
        views = rows["view_position"].str.lower()
        images = pd.DataFrame(
            {
                "id": names,
                "patient": rows["patient_id"],
                "split": splits,
                "view": views.where(views.isin(["ap", "pa"]), "other"),
                "image": [f"{folders.get(name, 'images')}/{name}" for name in names],
                ATTRIBUTE + "age": rows["patient_age"],
                ATTRIBUTE + "sex": rows["patient_gender"].where(rows["patient_gender"] != "", rows["patient_sex"]),
                **values,
            }
        )
        usable = images["split"].notna() & ~np.isinf(values[list(self.findings)].to_numpy()).any(1)
        small = any(folder.startswith("images-224") for folder in set(folders.values()))
        return self.table(path, self.published_name + "-224" * small, images[usable], problems)

    def _splits(self, path: Path, names: pd.Series, problems: Problems) -> pd.Series:
        """The split of each image; blank where it is in no list or in both."""
        there = names.isin([])
        both, wrong, splits = there, named(problems), names.where(there)
        files = _lists(path)
        for split, file in files.items():
            listed = pd.Series([line.strip() for line in text_lines(path / file) if line.strip()], dtype=object)
            problems[f"images twice in {file}"] += listed[listed.duplicated()].tolist()
            problems[f"images of {file} without a row"] += listed[~listed.isin(names) & ~listed.isin(wrong)].tolist()
            here = names.isin(listed)
            both, there = both | (there & here), there | here
            splits[here] = split
        problems[f"images in both {' and '.join(files.values())}"] += names[both].tolist()
        problems[f"images in neither {' nor '.join(files.values())}"] += names[~there].tolist()
        return splits.where(~both)

    def _values(self, cells: pd.Series, names: pd.Series, name: str, problems: Problems) -> pd.DataFrame:
        """Labels, float32, 1 or 0; infinite in rows whose cell is wrong, which are named; and ``ALL_LABELS``."""
        codes, texts = pd.factorize(cells)
        every = np.zeros((len(texts), len(FINDINGS)), np.float32)
        table = np.full((len(texts), len(self.findings)), np.inf, np.float32)
        kinds = (
            "images of {} with a finding that is not known",
            "images of {} with a finding and No Finding",
            "images of {} without a label",
        )
        for k, text in enumerate(texts):
            given = {finding(word) for word in text.split("|") if word.strip()}
            faults = (given - {*FINDINGS, NONE}, NONE in given and len(given) > 1, not given)
            for kind, fault in zip(kinds, faults, strict=True):
                if fault:
                    where = names[codes == k]
                    problems[kind.format(name)] += [f"{image} ({text!r}, line {line})" for line, image in where.items()]
            every[k] = [label in given for label in FINDINGS]
            if not any(faults):
                table[k] = [label in given for label in self.findings]
        values = pd.DataFrame(table[codes], cells.index, list(self.findings))
        return values.assign(**{ALL_LABELS: written(pd.DataFrame(every)).to_numpy(object)[codes]})

    def published(self, table: StudyTable) -> list[Published]:
        """Images and patients, and images by split."""
        return [Published(unit, n, split) for split, of in TOTALS.items() for unit, n in of.items()]

    def lists(self, path: Path) -> tuple[str, ...]:
        """The table and the lists of both splits."""
        return str(_entries(path)), *_lists(path).values()


def _entries(path: Path) -> str | None:
    return next((name for name in ENTRIES if (path / name).is_file()), None)


def _lists(path: Path) -> dict[str, str]:
    """The list of each split that has one."""
    found = {split: [name for name in names if (path / name).is_file()] for split, names in LISTS.items()}
    return {split: names[0] for split, names in found.items() if names}


def _folders(path: Path) -> dict[str, str]:
    """The folder that each image lies in, relative to the dataset."""
    tops = sorted(found.name for found in path.glob("images*") if found.is_dir())
    return places_of(path, reversed([place for top in tops for place in (f"{top}/images", f"{top}/{top}", top)]), end=".png")
