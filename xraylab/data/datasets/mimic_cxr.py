"""MIMIC-CXR-JPG 2.x: chest X-rays labelled from their reports (Johnson et al. 2019, arXiv:1901.07042).

``files/p10/p10000032/s50414267/<dicom_id>.jpg``. ``mimic-cxr-2.0.0-split.csv.gz`` says which images there are and their split,
``…-metadata.csv.gz`` their view, ``…-chexpert.csv.gz`` and ``…-negbio.csv.gz`` the findings of each study as one or the other
program read them from its report: 1 positive, 0 negative, -1 uncertain, blank not mentioned. From 2.1.0 on,
``mimic-cxr-2.1.0-test-set-labeled.csv`` holds what radiologists read from the reports of some test studies.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.chest_xray import Radiographs, name_wrong, read_list, with_lines
from xraylab.data.datasets.csv_cells import differing
from xraylab.data.findings import CHEXPERT
from xraylab.data.published import Published
from xraylab.data.study_table import ALL_LABELS, Problems, StudyTable, named
from xraylab.data.synthetic.chest import write_mimic
from xraylab.errors import UserError, did_you_mean, listed

log = logging.getLogger(__name__)

LABELS = ("chexpert", "negbio")
LISTS = ("split", "metadata", *LABELS, "test-set-labeled")
TEST_LABELS = ("auto", "radiologists", "report")
SPLITS = {"train": "train", "validate": "valid", "test": "test"}
VIEWS = {"pa": "pa", "ap": "ap", "lateral": "lateral", "ll": "lateral"}  # ViewPosition; any other is of no known kind
KEYS = {"dicom_id": re.compile(r"\w[\w.-]*"), "study_id": re.compile(r"\d+"), "subject_id": re.compile(r"\d{2,}")}
# published
TOTALS = {"images": 377110, "studies": 227827, "patients": 65379}
IMAGES = {"train": 368960, "valid": 2991, "test": 5159}
PATIENTS = {"train": 64586, "valid": 500, "test": 293}


class MIMIC(Radiographs):
    """Reader of MIMIC-CXR-JPG; a study's group is its views: ap, pa, lateral, other.

    Args:
        root, view, findings, bits, on_error, sample: see :class:`~xraylab.data.datasets.chest_xray.Radiographs`.
        labels: whose reading of the reports: ``chexpert`` or ``negbio``.
        test_labels: of the test split: ``radiologists``: theirs, and only the studies that they labelled; ``report``: as of the
            other splits; ``auto``: the radiologists' where their file is there.

    >>> import tempfile
    >>> root = write_mimic(Path(tempfile.mkdtemp()) / "MIMIC-CXR-JPG", train=20, valid=20, test=20)
    >>> MIMIC(view="all", labels="negbio").read(root).frame["split"].value_counts().to_dict()
    {'train': 20, 'valid': 20, 'test': 20}
    """

    published_name = "MIMIC-CXR-JPG"
    other_names = (
        "mimic-cxr-jpg", "2.1.0", "2.0.0",  # of a download folder by folder
        "mimic-cxr-jpg-chest-radiographs-with-structured-labels-2.1.0",
        "mimic-cxr-jpg-chest-radiographs-with-structured-labels-2.0.0",
    )  # fmt: skip
    expected = """
  MIMIC-CXR-JPG/             (or mimic-cxr-jpg/2.1.0/)
    files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg
    mimic-cxr-2.0.0-split.csv.gz
    mimic-cxr-2.0.0-metadata.csv.gz
    mimic-cxr-2.0.0-chexpert.csv.gz  mimic-cxr-2.0.0-negbio.csv.gz     (that of labels=chexpert|negbio)
    mimic-cxr-2.1.0-test-set-labeled.csv                               (optional; each may also be .csv or .csv.gz)"""
    register = "after credentialing and training at PhysioNet, https://physionet.org/content/mimic-cxr-jpg/"
    known = CHEXPERT
    writer = write_mimic

    def __init__(
        self, root: str | None = None, view: str | Sequence[str] = "frontal", findings: str | Sequence[str] = "all",
        labels: str = "chexpert", test_labels: str = "auto", bits: int | None = None, on_error: str = "stop",
        sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, view, findings, bits, on_error, sample)
        self.labels, self.test_labels, self.all_lists = str(labels), str(test_labels), False
        for key, given, choices in (("labels", self.labels, LABELS), ("dataset.test_labels", self.test_labels, TEST_LABELS)):
            if given not in choices:
                raise UserError(f"{key}={given}: it is {' or '.join(choices)}.{did_you_mean(given, choices)}")

    def matches(self, path: Path) -> bool:
        """A folder with the lists of splits and of metadata."""
        return path.is_dir() and {"split", "metadata"} <= set(_lists(path))

    def read(self, path: Path) -> StudyTable:
        """One row a study, in the published splits."""
        problems: Problems = defaultdict(list)
        lists = _lists(path)
        if self.labels not in lists:
            raise UserError(
                f"labels={self.labels}: there is no mimic-cxr-2.0.0-{self.labels}.csv.gz in {path}. Get it, or choose "
                f"labels={' or '.join(kind for kind in LABELS if kind in lists) or 'chexpert, and get that'}."
            )
        radiologists = lists.get("test-set-labeled")
        if self.test_labels == "radiologists" and radiologists is None:
            raise UserError(
                f"dataset.test_labels=radiologists: there is no mimic-cxr-2.1.0-test-set-labeled.csv in {path}. It comes with "
                "release 2.1.0; or leave dataset.test_labels=auto."
            )
        images = self._images(path / lists["split"], path / lists["metadata"], problems)
        labels = self._labels(path / lists[self.labels], images, problems)
        if self.all_lists:
            for kind in (kind for kind in LABELS if kind in lists and kind != self.labels):
                self._labels(path / lists[kind], images, problems)
        if radiologists is not None and (self.test_labels != "report" or self.all_lists):
            theirs = self._test_labels(path / radiologists, images, problems)
            if self.test_labels != "report":
                images, labels = self._radiologists_only(images, labels, theirs)
        images = images.join(labels.fillna({ALL_LABELS: "-" * len(CHEXPERT)}), on="id", how="inner")
        return self.table(path, self.published_name, images, problems)

    def _images(self, splits: Path, metadata: Path, problems: Problems) -> pd.DataFrame:
        """One row an image: id of its study, patient, split, kind of view, reference."""
        rows = _keyed(splits, ["split"], problems)
        about = _keyed(metadata, ["ViewPosition"], problems)
        split = rows["split"].str.lower().map(SPLITS)
        others = rows.loc[split.isna(), ["dicom_id", "split"]].itertuples(name=None)
        strange = [f"{dicom} ({cell!r}, line {line})" for line, dicom, cell in others]
        problems[f"splits in {splits.name} other than {', '.join(SPLITS)}"] += strange
        rows = rows.assign(split=split)
        unlisted, known = ~about["dicom_id"].isin(rows["dicom_id"]), rows["dicom_id"].isin(about["dicom_id"])
        problems[f"images of {metadata.name} that are not in {splits.name}"] += about["dicom_id"][unlisted].tolist()
        problems[f"images of {splits.name} that are not in {metadata.name}"] += rows["dicom_id"][~known].tolist()
        rows, keys = rows[known], ["study_id", "subject_id"]
        there = about.set_index("dicom_id").loc[rows["dicom_id"]]
        torn = (rows[keys].to_numpy() != there[keys].to_numpy()).any(axis=1)
        kind = f"images of another study or subject in {metadata.name} than in {splits.name}"
        problems[kind] += rows["dicom_id"][torn].tolist()
        keep = ~torn & rows["split"].notna().to_numpy()
        rows, there = rows[keep], there[keep]
        torn_studies = differing(rows["study_id"], rows[["subject_id", "split"]])
        shown = [f"s{study} ({', '.join(columns)})" for study, columns in torn_studies.items()]
        problems[f"studies of {splits.name} of more than one subject or split"] += shown
        subject, study = rows["subject_id"], "s" + rows["study_id"]
        columns = {
            "id": study,
            "patient": subject,
            "split": rows["split"],
            "view": [VIEWS.get(view, "other") for view in there["viewposition"].str.lower()],
            "image": "files/p" + subject.str[:2] + "/p" + subject + "/" + study + "/" + rows["dicom_id"] + ".jpg",
        }
        images = pd.DataFrame(columns)
        return images[~rows["study_id"].isin(torn_studies)].reset_index(drop=True)

    def _labels(self, file: Path, images: pd.DataFrame, problems: Problems) -> pd.DataFrame:
        """Labels by study; what is missing, too much or torn in the list is named."""
        rows = self._study_labels(file, ["subject_id"], problems)
        studies = images.drop_duplicates("id").set_index("id")["patient"]
        known = list(named(problems))
        absent, unlabelled = rows.index.difference(studies.index), studies.index.difference(rows.index)
        problems[f"studies of {file.name} of which there are no images"] += absent.difference(known).tolist()
        unlabelled = unlabelled.difference(known)
        if len(unlabelled) * 100 > len(studies):
            problems[f"studies without a row in {file.name}"] += unlabelled.tolist()
        elif len(unlabelled) and not self.all_lists:  # the published lists of labels lack a few
            log.info("%d studies have no row in %s, and are left out: %s", len(unlabelled), file.name, listed(unlabelled))
        torn = rows.index.isin(studies.index) & (rows["subject_id"] != studies.reindex(rows.index, fill_value=""))
        problems[f"studies of another subject in {file.name}"] += rows.index[torn].tolist()
        labels = self._right(rows[~torn])
        return labels.reindex(labels.index.append(unlabelled)) if self.all_lists else labels

    def _test_labels(self, file: Path, images: pd.DataFrame, problems: Problems) -> pd.DataFrame:
        """Radiologists' labels by study of test; rows of other studies are named."""
        rows = self._study_labels(file, [], problems)
        splits = images.drop_duplicates("id").set_index("id")["split"].reindex(rows.index)
        problems[f"studies of {file.name} of which there are no images"] += rows.index[splits.isna()].tolist()
        wrong = splits.notna() & (splits != "test")
        problems[f"studies of {file.name} that are not of test"] += [f"{study} ({splits[study]})" for study in rows.index[wrong]]
        return self._right(rows[splits == "test"])

    def _study_labels(self, file: Path, columns: list[str], problems: Problems) -> pd.DataFrame:
        """Labels by the id of the study, as :func:`read_list` gives them; studies that are there twice are left out."""
        rows = read_list(file, ["study_id", *columns], problems, self.findings, known=CHEXPERT)
        good = rows["study_id"].str.fullmatch(r"\d+").astype(bool)
        name_wrong(rows["study_id"][~good], "of a study", file.name, problems)
        rows = rows[good]
        twice = rows["study_id"].duplicated()
        problems[f"studies twice in {file.name}"] += with_lines("s" + rows["study_id"][twice])
        rows = rows[~rows["study_id"].isin(rows["study_id"][twice])]
        return rows.set_index("s" + rows["study_id"])

    def _right(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The labels of rows that hold nothing else."""
        return rows.loc[~np.isinf(rows[list(self.findings)].to_numpy()).any(1), [*self.findings, ALL_LABELS]]

    def _radiologists_only(
        self, images: pd.DataFrame, labels: pd.DataFrame, theirs: pd.DataFrame
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Images and labels in which test is the studies that radiologists labelled, and says so."""
        of_test = images["split"] == "test"
        keep = ~of_test | images["id"].isin(theirs.index)
        studies, left = images.loc[of_test, "id"].nunique(), images.loc[~keep, "id"].nunique()
        log.info(
            "test: the %s studies that radiologists labelled, by their labels; %s of %s are left out, which they did not label "
            "(dataset.test_labels=report takes all, by the labels of their reports)",
            f"{studies - left:,}",
            f"{left:,}",
            f"{studies:,}",
        )
        others = labels[~labels.index.isin(images.loc[of_test, "id"])]
        return images[keep], pd.concat([others, theirs])

    def whole(self, path: Path) -> list[DatasetReader]:
        """One reader of all views and findings; of test as the reports say, for it has all studies. It looks into every list."""
        lists = _lists(path)
        labels = next((kind for kind in (self.labels, *LABELS) if kind in lists), self.labels)
        reader = MIMIC(self.root, "all", "all", labels, "report", self.bits, self.on_error, self.sample)
        reader.all_lists = True
        return [reader]

    def published(self, table: StudyTable) -> list[Published]:
        """Totals, and images and patients by split."""
        note = "of reports; a few studies have images and no labels"
        counts = [Published(unit, n, note=note if unit == "studies" else "") for unit, n in TOTALS.items()]
        for unit, of in (("images", IMAGES), ("patients", PATIENTS)):
            counts += [Published(unit, n, split) for split, n in of.items()]
        return counts

    def lists(self, path: Path) -> tuple[str, ...]:
        """The lists that are there."""
        return tuple(_lists(path).values())


def _lists(path: Path) -> dict[str, str]:
    """The list of each kind that is there, of several the last by name."""
    named = re.compile(rf"mimic-cxr-[\d.]+-({'|'.join(LISTS)})\.csv(?:\.gz)?")
    found = {match.group(1): match.string for match in map(named.fullmatch, sorted(os.listdir(path))) if match}
    return {kind: found[kind] for kind in LISTS if kind in found}


def _keyed(file: Path, columns: list[str], problems: Problems) -> pd.DataFrame:
    """Rows of a list of images, each of which is there once."""
    rows = read_list(file, [*KEYS, *columns], problems)
    good = np.ones(len(rows), bool)
    for key, pattern in KEYS.items():
        good &= ~rows[key].isin([text for text in set(rows[key].tolist()) if not pattern.fullmatch(text)]).to_numpy()
    wrong = rows[~good]
    name_wrong(wrong["dicom_id"] + "," + wrong["study_id"] + "," + wrong["subject_id"], "an image", file.name, problems)
    rows = rows[good]
    twice = rows["dicom_id"].duplicated()
    problems[f"images twice in {file.name}"] += with_lines(rows["dicom_id"][twice])
    return rows[~twice]
