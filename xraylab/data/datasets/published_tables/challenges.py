"""Chest X-rays of challenges: RSNA pneumonia, SIIM-ACR pneumothorax and VinDr-CXR."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.data.datasets import csv_cells
from xraylab.data.datasets.base import DatasetReader
from xraylab.data.datasets.published_tables.base import PublishedTable
from xraylab.data.findings import chosen, finding
from xraylab.data.published import Published
from xraylab.data.synthetic.published_tables import (
    write_rsna_pneumonia,
    write_siim_pneumothorax,
    write_vindr_cxr,
)
from xraylab.errors import UserError, did_you_mean, listed

log = logging.getLogger(__name__)


class RSNAPneumonia(PublishedTable):
    """Reader of the RSNA Pneumonia Detection Challenge: a row a box, ``Target`` 1 with pneumonia and 0 without.

    Each ``patientId`` is one image; whose it is, the set does not say. The challenge's own test images have no labels, so that a
    part of the others is held out.

    >>> import tempfile
    >>> root = write_rsna_pneumonia(Path(tempfile.mkdtemp()) / "rsna-pneumonia-detection-challenge", studies=20)
    >>> RSNAPneumonia().read(root).labels
    ('pneumonia',)
    """

    published_name = "rsna-pneumonia-detection-challenge"
    other_names = ("rsna-pneumonia",)
    expected = """
  rsna-pneumonia-detection-challenge/
    stage_2_train_labels.csv
    stage_2_train_images/0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm"""
    register = "free after registration, https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
    file = "stage_2_train_labels.csv"
    usual: Mapping[str, Any] = {
        "id": "patientId", "images": "stage_2_train_images/{patientId}.dcm", "labels": {"pneumonia": "Target"},
    }  # fmt: skip
    counts = (Published("images", 26684),)
    writer = write_rsna_pneumonia


class SIIMPneumothorax(PublishedTable):
    """Reader of the SIIM-ACR Pneumothorax Segmentation challenge: a row a mask, ``-1`` where there is no pneumothorax.

    The challenge's own test images have no labels in ``train-rle.csv``, so that a part of the others is held out.

    >>> import tempfile
    >>> root = write_siim_pneumothorax(Path(tempfile.mkdtemp()) / "siim-acr-pneumothorax-segmentation", studies=20)
    >>> SIIMPneumothorax().read(root).labels
    ('pneumothorax',)
    """

    published_name = "siim-acr-pneumothorax-segmentation"
    other_names = ("siim", "SIIM-ACR")
    expected = """
  siim-acr-pneumothorax-segmentation/
    train-rle.csv
    dicom-images-train/<study>/<series>/1.2.276.0.7230010.3.1.4.8323329.1000.1517875165.878027.dcm"""
    register = "free after registration, https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation"
    file = "train-rle.csv"
    usual: Mapping[str, Any] = {"id": "ImageId", "images": "file", "labels": ["pneumothorax"]}
    writer = write_siim_pneumothorax

    def cells(self, path: Path) -> tuple[pd.DataFrame, dict[int, int]]:
        """The rows of the CSV, with the file and the label of each."""
        cells, short = csv_cells.read_cells(path)
        if missing := [name for name in ("ImageId", "EncodedPixels") if name not in cells]:
            raise UserError(f"{path}: there is no column {missing[0]}. There are: {listed(cells.columns, 30)}.")
        files: dict[str, str] = {}
        for folder, _, names in os.walk(path.parent / "dicom-images-train"):
            inside = os.path.relpath(folder, path.parent)
            files |= {os.path.splitext(name)[0]: f"{inside}/{name}" for name in sorted(names) if name.endswith((".dcm", ".png"))}
        images = cells["ImageId"].str.strip()
        masks = cells["EncodedPixels"].str.strip()
        label = np.where(masks == "", "", np.where(masks == "-1", "0", "1"))
        named = [files.get(image, f"dicom-images-train/{image}.dcm") for image in images]
        return pd.DataFrame({"ImageId": images, "file": named, "pneumothorax": label}, index=cells.index), short


#: findings of the challenge that VinDr-CXR was published with
VINDR = (
    "aortic_enlargement", "atelectasis", "calcification", "cardiomegaly", "consolidation", "ild", "infiltration", "lung_opacity",
    "nodule_mass", "other_lesion", "pleural_effusion", "pleural_thickening", "pneumothorax", "pulmonary_fibrosis",
)  # fmt: skip
SAME = {"other_disease": "other_diseases"}  # as the list of test has it
KEYS = ("image_id", "rad_id")
CONSENSUS = ("majority", "any", "all", "uncertain")


class VinDrCXR(PublishedTable):
    """Reader of VinDr-CXR (Nguyen et al. 2022), in which three readers labelled each image of train, and five agreed on test.

    Args:
        findings: ``challenge``, the 14 of the challenge; ``all``; or a list of findings, in any spelling.
        consensus: what the readers of an image make of it together. ``majority``: what more than half say; ``any``: 1 where one
            says so; ``all``: 1 where all say so; ``uncertain``: what all say, and -1 where they differ.

    The others are as of :class:`PublishedTable`.

    >>> import tempfile
    >>> root = write_vindr_cxr(Path(tempfile.mkdtemp()) / "vindr-cxr", train=20, test=8)
    >>> table = VinDrCXR(findings=["Pleural effusion", "Nodule/Mass"], consensus="uncertain").read(root)
    >>> table.labels, table.frame["split"].value_counts().to_dict()
    (('pleural_effusion', 'nodule_mass'), {'train': 20, 'heldout': 8})
    """

    published_name = "vindr-cxr"
    other_names = ("1.0.0", "vindr-cxr-1.0.0", "VinDr-CXR")
    expected = """
  vindr-cxr/                 (or vindr-cxr/1.0.0/)
    annotations/image_labels_train.csv  annotations/image_labels_test.csv
    train/000434271f63a053c4128a0ba6352c7f.dicom
    test/002a34c58c5b758217ed1f584ccbcfe9.dicom"""
    register = "after credentialing and training at PhysioNet, https://physionet.org/content/vindr-cxr/"
    heldout = "test"
    file = "annotations/image_labels_train.csv"
    test_file = "annotations/image_labels_test.csv"
    images = ".."
    usual: Mapping[str, Any] = {"id": "image_id", "images": "{split}/{image_id}.dicom", "split": "split"}
    counts = (Published("images", 15000, "train"), Published("images", 3000, "heldout"))
    writer = write_vindr_cxr

    def __init__(
        self, root: str | None = None, findings: str | Sequence[str] = "challenge", consensus: str = "majority",
        columns: Mapping[str, Any] | None = None, bits: int | None = None, on_error: str = "stop",
        sample: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root, columns, bits=bits, on_error=on_error, sample=sample)
        if consensus not in CONSENSUS:
            raise UserError(
                f"dataset.consensus={consensus}: it is one of {', '.join(CONSENSUS)}.{did_you_mean(consensus, CONSENSUS)}"
            )
        self.findings, self.consensus = findings, consensus

    def matches(self, path: Path) -> bool:
        """A folder with the lists of both splits."""
        return super().matches(path) and (path / self.test_file).is_file()

    def whole(self, path: Path) -> list[DatasetReader]:
        """One reader of all findings."""
        return [type(self)(self.root, "all", self.consensus, self.given, self.bits, self.on_error, self.sample)]

    def lists(self, path: Path) -> tuple[str, ...]:
        """The lists of both splits, and of boxes, which are not read."""
        boxes = [name for split in ("train", "test") if (path / (name := f"annotations/annotations_{split}.csv")).is_file()]
        return self.file, self.test_file, *boxes

    def cells(self, path: Path) -> tuple[pd.DataFrame, dict[int, int]]:
        """One row an image, with the labels that its readers agree on."""
        lists = {"train": path, "test": path.with_name(Path(self.test_file).name)}
        parts = {split: self._agreed(file) for split, file in lists.items()}
        known = [str(label) for label in parts["train"] if label in parts["test"]]
        if only := sorted(map(str, set(parts["train"]) ^ set(parts["test"]))):
            log.warning("%s: findings of one list only, which are left out: %s", path.parent, listed(only))
        labels = chosen(list(VINDR) if self.findings == "challenge" else self.findings, known)
        whole = pd.concat([part[list(labels)].assign(split=split) for split, part in parts.items()])
        return whole.rename_axis("image_id").reset_index(), {}

    def _agreed(self, file: Path) -> pd.DataFrame:
        """Cells by image, one column a finding."""
        cells = csv_cells.read_cells(file)[0]
        if "image_id" not in cells:
            raise UserError(f"{file}: there is no column image_id. There are: {listed(cells.columns, 40)}.")
        names = {name: SAME.get(finding(str(name)), finding(str(name))) for name in cells if finding(str(name)) not in KEYS}
        raw = pd.DataFrame({label: csv_cells.numbers_of(cells[name]) for name, label in names.items()}, index=cells.index)
        by_image = raw.where(raw.isin((0, 1)), np.inf).groupby(cells["image_id"].str.strip(), sort=False)
        positive, readers = by_image.sum(), by_image.size()
        share = positive.div(readers, axis=0)
        agreed = (share > {"majority": 0.5, "any": 0.0}.get(self.consensus, 0.999)).astype(int)
        if self.consensus == "uncertain":
            agreed = agreed.mask((share > 0) & (share < 1), -1)
        return agreed.astype(str).mask(np.isinf(share), "neither 0 nor 1")
