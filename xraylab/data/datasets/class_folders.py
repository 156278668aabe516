"""Published sets whose trees are a folder a class: pneumonia of children, COVID-QU-Ex, and grades of knees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.folder import Folder
from xraylab.data.published import Published
from xraylab.data.study_table import StudyTable
from xraylab.data.synthetic.class_folders import write_covid_qu_ex, write_knee_grades, write_pediatric_pneumonia


class PublishedFolders(Folder):
    """Base class of readers of published sets that :class:`~xraylab.data.Folder` reads.

    Arguments as of it.
    """

    counts: tuple[Published, ...]

    def find(self) -> Path | None:
        """See :meth:`DatasetReader.find`. More than two classes need a loss for exclusive classes."""
        path = DatasetReader.find(self)
        if path is not None and len(self._classes(path, self._arrangement(path))) > 2:
            self.settings["loss"] = "cross_entropy"
        return path

    def _no_match(self, given: Path) -> str:
        return DatasetReader._no_match(self, given)

    def read(self, path: Path) -> StudyTable:
        """One row an image, in the published splits."""
        return replace(super().read(path), name=self.published_name)

    def published(self, table: StudyTable) -> list[Published]:
        """How many images there are, by split or class."""
        return list(self.counts)


class PediatricPneumonia(PublishedFolders):
    """Reader of the chest X-rays of children of Kermany et al. 2018: normal, or pneumonia.

    Of the copy with a folder ``val``, which holds 16 pictures, that is a part of train, as in the publication.

    >>> import tempfile
    >>> root = write_pediatric_pneumonia(Path(tempfile.mkdtemp()) / "chest_xray", train=8, test=4)
    >>> PediatricPneumonia().read(root).frame["split"].value_counts().to_dict()
    {'train': 12, 'heldout': 4}
    """

    published_name = "chest_xray"
    other_names = ("chest-xray-pneumonia", "ChestXRay2017")
    expected = """
  chest_xray/
    train/NORMAL/IM-0115-0001.jpeg  train/PNEUMONIA/person1_bacteria_1.jpeg
    test/NORMAL/  test/PNEUMONIA/
    val/NORMAL/   val/PNEUMONIA/     (in some copies)"""
    register = "free, https://data.mendeley.com/datasets/rscbjbr9sj"
    heldout = "test"
    writer = write_pediatric_pneumonia
    counts = (Published("images", 5856), Published("images", 5232, "train"), Published("images", 624, "heldout"))

    def read(self, path: Path) -> StudyTable:
        """One row an image; the held-out split is the published test."""
        table = super().read(path)
        return replace(table, frame=table.frame.replace({"split": {"valid": "train", "test": "heldout"}}))


class CovidQuEx(PublishedFolders):
    """Reader of COVID-QU-Ex (Tahir et al. 2021): COVID-19, another infection, or normal. Masks are left alone.

    >>> import tempfile
    >>> root = write_covid_qu_ex(Path(tempfile.mkdtemp()) / "COVID-QU-Ex", train=6, val=3, test=3)
    >>> reader = CovidQuEx(str(root))
    >>> reader.read(reader.find()).labels
    ('COVID-19', 'Non-COVID', 'Normal')
    """

    published_name = "COVID-QU-Ex"
    other_names = ("Lung Segmentation Data",)
    expected = """
  COVID-QU-Ex/
    Lung Segmentation Data/Lung Segmentation Data/
      Train/COVID-19/images/covid_1.png  Train/COVID-19/lung masks/
      Train/Non-COVID/  Train/Normal/
      Val/  Test/"""
    register = "free, https://www.kaggle.com/datasets/anasmohammedtahir/covidqu"
    writer = write_covid_qu_ex
    counts = (Published("images", 33920), Published("images", 11956, label=("COVID-19", 1)))

    def _within(self, path: Path) -> Path | None:
        deeper = sorted(path.glob("*/Lung Segmentation Data/Lung Segmentation Data")) if path.is_dir() else []
        return super()._within(path) or next(filter(self.matches, deeper), None)


class KneeGrades(PublishedFolders):
    """Reader of the knee X-rays with grades of osteoarthritis, 0 to 4, after Kellgren and Lawrence, of Chen 2018.

    Each grade is a class of its own, and exactly one of a knee is 1. The folder ``auto_test``, of knees that a detector cut out,
    is left alone.

    >>> import tempfile
    >>> root = write_knee_grades(Path(tempfile.mkdtemp()) / "KneeXrayData", train=10, val=5, test=5)
    >>> reader = KneeGrades(str(root))
    >>> reader.read(reader.find()).labels
    ('grade_0', 'grade_1', 'grade_2', 'grade_3', 'grade_4')
    """

    published_name = "KneeXrayData"
    other_names = ("kneeKL224", "kneeKL299", "knee-osteoarthritis-dataset-with-severity")
    expected = """
  KneeXrayData/kneeKL224/     (or the folder of the splits)
    train/0/9003175L.png ... train/4/
    val/0/ ... val/4/
    test/0/ ... test/4/"""
    register = "free, https://data.mendeley.com/datasets/56rmx5bjcr"
    writer = write_knee_grades
    grades = (3253, 1495, 2175, 1086, 251)
    counts = (
        *(Published("images", n, split) for split, n in (("train", 5778), ("valid", 826), ("test", 1656))),
        *(Published("images", n, label=(f"grade_{k}", 1)) for k, n in enumerate(grades)),
    )

    def read(self, path: Path) -> StudyTable:
        """One row an image, labels ``grade_0`` to ``grade_4``."""
        table = super().read(path)
        named = {label: f"grade_{label}" for label in table.labels}
        return replace(table, frame=table.frame.rename(columns=named), labels=tuple(named.values()))
