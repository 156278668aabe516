"""Chest X-rays labelled from their reports, in studies of several views: PadChest and Open-i."""

from __future__ import annotations

import ast
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.published_tables.base import PublishedTable
from xraylab.data.findings import VIEWS, chosen, finding, wanted_views
from xraylab.data.published import Published
from xraylab.data.synthetic.published_tables import (
    write_open_i,
    write_padchest,
)
from xraylab.errors import UserError, listed, refusing

log = logging.getLogger(__name__)


class ReportedTable(PublishedTable):
    """Base class of readers of sets labelled from reports, in studies of one or more views.

    Args:
        view: ``frontal``, ``lateral``, ``pa``, ``ap``, ``all``, or a list of them; images of another view are left out.
        findings: ``common``, some that are; ``all`` that any report has; or a list of findings, in any spelling.

    The others are as of :class:`PublishedTable`.
    """

    common: tuple[str, ...]
    usual: Mapping[str, Any] = {
        "id": "study", "patient": "person", "images": "file", "attributes": {"view": "view", "age": "age", "sex": "sex"},
    }  # fmt: skip

    def __init__(
        self, root: str | None = None, view: str | Sequence[str] = "frontal", findings: str | Sequence[str] = "common",
        columns: Mapping[str, Any] | None = None, test_fraction: float | None = 0.2, split_seed: int = 0,
        bits: int | None = None, on_error: str = "stop", sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, columns, test_fraction, split_seed, bits, on_error, sample)
        self.view, self.kinds, self.findings = view, wanted_views(view), findings

    def whole(self, path: Path) -> list[DatasetReader]:
        """One reader of all views."""
        more = (self.test_fraction, self.split_seed, self.bits, self.on_error, self.sample)
        return [type(self)(self.root, "all", self.findings, self.given, *more)]

    @abstractmethod
    def rows(self, path: Path) -> pd.DataFrame:
        """One row an image, as the set writes it: study, person, file, kind of view, age and sex; and ``found``, the findings of
        its study as a tuple, None where they are not known."""

    def cells(self, path: Path) -> tuple[pd.DataFrame, dict[int, int]]:
        """One row an image of a wanted view, one column a finding."""
        rows = self.rows(path)
        known = sorted({name for of in rows["found"] if of for name in of} - {"normal"})
        labels = chosen(list(self.common) if self.findings == "common" else self.findings, known)
        wanted = rows["view"].isin(self.kinds)
        if not wanted.any():
            counts = rows["view"].value_counts()
            raise UserError(f"view={self.view}: there is no such image in {path.parent}. There are: {counts.to_dict()}.")
        log.info("view=%s: %d of %d images are of another view and left out", self.view, (~wanted).sum(), len(rows))
        rows = rows[wanted]
        cells = {label: ["" if of is None else str(int(label in of)) for of in rows["found"]] for label in labels}
        return rows.drop(columns="found").assign(**cells), {}


class PadChest(ReportedTable):
    """Reader of PadChest (Bustos et al. 2020): 174 findings, read from reports by radiologists or by a program.

    A study without findings is labelled ``normal``. Images lie in the folders that the CSV names, or all in ``images``.

    >>> import tempfile
    >>> root = write_padchest(Path(tempfile.mkdtemp()) / "PadChest", studies=20)
    >>> PadChest(findings=["Cardiomegaly", "Pleural effusion"], bits=16).read(root).labels
    ('cardiomegaly', 'pleural_effusion')
    """

    published_name = "PadChest"
    other_names = ("BIMCV-PadChest-FULL", "padchest")
    expected = """
  PadChest/
    PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv     (unzipped)
    0/20536686640136348236148679891455886468_k6ga29.png ... 54/     (or all in images/, or in images-224/)"""
    register = "free after registration, https://bimcv.cipf.es/bimcv-projects/padchest/"
    file = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    common = (
        "atelectasis", "cardiomegaly", "consolidation", "emphysema", "infiltrates", "nodule", "pleural_effusion", "pneumonia",
        "pneumothorax",
    )  # fmt: skip
    counts = (Published("images", 160868, note="a few are damaged, or without labels"),)
    writer = write_padchest

    def rows(self, path: Path) -> pd.DataFrame:
        """See :class:`ReportedTable`."""
        names = [
            "ImageID",
            "ImageDir",
            "StudyID",
            "PatientID",
            "PatientBirth",
            "StudyDate_DICOM",
            "PatientSex_DICOM",
            "Projection",
        ]
        cells = _texts(path, [*names, "Labels"])
        top = path.parent
        flat = next((name for name in ("images", "images-224/images-224", "images-224") if (top / name).is_dir()), "images")
        folders = {of: of if (top / of).is_dir() else flat for of in cells["ImageDir"].unique()}
        age = pd.to_numeric(cells["StudyDate_DICOM"].str[:4], "coerce") - pd.to_numeric(cells["PatientBirth"], "coerce")
        views = {"PA": "pa", "AP": "ap", "AP_horizontal": "ap", "L": "lateral"}
        found = {cell: _python_list(cell, path) for cell in cells["Labels"].unique()}
        columns = {
            "study": cells["StudyID"],
            "person": cells["PatientID"],
            "file": cells["ImageDir"].map(folders) + "/" + cells["ImageID"],
            "view": cells["Projection"].map(views).fillna("other"),
            "age": age.map("{:.0f}".format).replace("nan", ""),
            "sex": cells["PatientSex_DICOM"],
            "found": cells["Labels"].map(found),
        }
        return pd.DataFrame(columns, dtype=object)


class OpenI(ReportedTable):
    """Reader of the chest X-rays of Indiana University (Open-i), by the problems that its reports were indexed with.

    Reports that were not indexed have no labels. Whose a report is, the set does not say.

    >>> import tempfile
    >>> root = write_open_i(Path(tempfile.mkdtemp()) / "chest-xrays-indiana-university", studies=20)
    >>> OpenI(findings=["Cardiomegaly", "Pleural effusion"]).read(root).labels
    ('cardiomegaly', 'pleural_effusion')
    """

    published_name = "chest-xrays-indiana-university"
    other_names = ("open-i", "iu_xray", "IU-Xray")
    expected = """
  chest-xrays-indiana-university/
    indiana_projections.csv  indiana_reports.csv
    images/images_normalized/1_IM-0001-4001.dcm.png"""
    register = "free, https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university"
    file = "indiana_projections.csv"
    reports = "indiana_reports.csv"
    usual: Mapping[str, Any] = {"id": "study", "images": "file", "attributes": {"view": "view"}}
    common = ("calcified_granuloma", "cardiomegaly", "nodule", "opacity", "pleural_effusion", "pulmonary_atelectasis")
    counts = (Published("studies", 3851), Published("images", 7466))
    writer = write_open_i

    def matches(self, path: Path) -> bool:
        """A folder with the lists of images and of reports."""
        return super().matches(path) and (path / self.reports).is_file()

    def lists(self, path: Path) -> tuple[str, ...]:
        """Both lists."""
        return self.file, self.reports

    def rows(self, path: Path) -> pd.DataFrame:
        """See :class:`ReportedTable`."""
        cells = _texts(path, ["uid", "filename", "projection"])
        reports = _texts(path.with_name(self.reports), ["uid", "Problems"]).drop_duplicates("uid").set_index("uid")["Problems"]
        problems = cells["uid"].map(reports).fillna("")
        if without := sorted(set(cells["uid"]) - set(reports.index)):
            log.warning("%s: studies without a report, which have no labels: %s", path, listed(without))
        words = {cell: tuple(finding(word) for word in cell.split(";") if word.strip()) for cell in problems.unique()}
        columns = {
            "study": cells["uid"],
            "file": "images/images_normalized/" + cells["filename"],
            "view": cells["projection"].str.lower().where(cells["projection"].str.lower().isin(VIEWS["all"]), "other"),
            "found": problems.map({cell: None if "no_indexing" in of or not of else of for cell, of in words.items()}),
        }
        return pd.DataFrame(columns, dtype=object)


def _texts(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a CSV as stripped text, the index by line."""
    again = ". Get it again."
    with refusing(f"{path}: cannot be read", OSError), refusing(f"{path}: it is not a whole CSV", ValueError, end=again):
        cells = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig")
    if missing := [name for name in columns if name not in cells]:
        raise UserError(f"{path}: columns that are not there: {listed(missing)}. There are: {listed(cells.columns, 40)}.")
    cells.index = cells.index + 2
    return cells[list(columns)].apply(lambda column: column.str.strip())


def _python_list(cell: str, path: Path) -> tuple[str, ...] | None:
    """Findings of a cell such as ``['cardiomegaly', 'pleural effusion']``; None where it is blank or holds none."""
    if not cell or cell == "nan":
        return None
    with refusing(f"{path}: a cell of Labels is no list, {cell[:60]!r}", ValueError, SyntaxError, end=". Get it again."):
        words = ast.literal_eval(cell)
        found = tuple(finding(str(word)) for word in words if str(word).strip())
    return found or None
