"""Drawn pictures in the layouts of published sets that are CSVs beside their pictures."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from xraylab.data.synthetic.mark import mark_synthetic, new_root
from xraylab.data.synthetic.pictures import draw_picture
from xraylab.errors import UserError

#: as the lists of VinDr-CXR spell them; the first two are drawn
VINDR_FINDINGS = (
    "Pleural effusion", "Nodule/Mass", "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation",
    "ILD", "Infiltration", "Lung Opacity", "Other lesion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis",
)  # fmt: skip


def write_rsna_pneumonia(root: Path, studies: int = 240, seed: int = 0) -> Path:
    """Write a synthetic ``rsna-pneumonia-detection-challenge``: two rows, a box each, for every other picture with pneumonia.

    Args:
        root: the folder to create.
        studies: pictures, every third with pneumonia.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already, or pydicom is not installed.
    """
    _require(root)
    rows = [["patientId", "x", "y", "width", "height", "Target"]]
    for k in range(studies):
        name, rng, sick = _name(seed, k), np.random.default_rng([seed, k]), k % 3 == 0
        _write_dicom(root / "stage_2_train_images" / f"{name}.dcm", draw_picture(rng, blob=sick), f"{seed}.{k}")
        boxes = [[*map(str, rng.integers(1, 60, 4)), "1"] for _ in range(1 + k // 3 % 2)] if sick else [["", "", "", "", "0"]]
        rows += [[name, *box] for box in boxes]
    _write_csv(root / "stage_2_train_labels.csv", rows)
    return mark_synthetic(root, f"RSNA pneumonia, seed {seed}")


def write_siim_pneumothorax(root: Path, studies: int = 240, seed: int = 0) -> Path:
    """Write a synthetic ``siim-acr-pneumothorax-segmentation``: a row a mask, files in a folder for each study and series.

    Args:
        root: the folder to create.
        studies: pictures, every third with a pneumothorax.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already, or pydicom is not installed.
    """
    _require(root)
    rows = [["ImageId", " EncodedPixels"]]
    for k in range(studies):
        image, sick = f"1.2.276.0.4.{seed}.{k}", k % 3 == 0
        file = root / "dicom-images-train" / f"1.2.276.0.2.{seed}.{k}" / f"1.2.276.0.3.{seed}.{k}" / f"{image}.dcm"
        _write_dicom(file, draw_picture(np.random.default_rng([seed, k]), blob=sick), f"{seed}.{k}")
        rows += [[image, f" {100 + k} 5 1019 6"]] * (1 + k // 3 % 2) if sick else [[image, " -1"]]
    _write_csv(root / "train-rle.csv", rows)
    return mark_synthetic(root, f"SIIM-ACR pneumothorax, seed {seed}")


def write_vindr_cxr(root: Path, train: int = 240, test: int = 80, seed: int = 0) -> Path:
    """Write a synthetic ``vindr-cxr``: three readers for each picture of train, one of whom is sometimes wrong; one for test.

    Args:
        root: the folder to create.
        train, test: pictures in each split.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already, or pydicom is not installed.
    """
    _require(root)
    for split, count, readers in (("train", train, 3), ("test", test, 1)):
        head = ["image_id", *(["rad_id"] if readers > 1 else []), *VINDR_FINDINGS]
        head += ["Other diseases" if readers > 1 else "Other disease", "No finding"]
        rows = [head]
        for k in range(count):
            name, rng = _name(seed, k, split), np.random.default_rng([seed, len(split), k])
            drawn = [k % 2 == 1, k % 4 > 1]
            _write_dicom(
                root / split / f"{name}.dicom", draw_picture(rng, band=drawn[0], blob=drawn[1]), f"{seed}.{len(split)}.{k}"
            )
            truth = [*map(int, drawn), *(int(k % len(VINDR_FINDINGS) == i) for i in range(2, len(VINDR_FINDINGS))), 0]
            for reader in range(readers):
                said = [1 - value if readers > 1 and reader == k % 5 and i == k % 2 else value for i, value in enumerate(truth)]
                cells = [*map(str, said), str(int(not any(said)))]
                rows.append([name, *([f"R{1 + (k + reader) % 17}"] if readers > 1 else []), *cells])
        _write_csv(root / "annotations" / f"image_labels_{split}.csv", rows)
    return mark_synthetic(root, f"VinDr-CXR, seed {seed}")


def write_padchest(root: Path, studies: int = 240, seed: int = 0) -> Path:
    """Write a synthetic ``PadChest``: two studies a patient, of a frontal view and, every other one, a lateral, in 16 bits.

    Args:
        root: the folder to create.
        studies: so many, every other one with cardiomegaly, and half of all with an effusion.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already.
    """
    new_root(root)
    head = ["", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"]
    rows = [[*head, "ViewPosition_DICOM", "Projection", "Labels"]]
    others = ("atelectasis", "consolidation", "emphysema", "infiltrates", "nodule", "pneumonia", "pneumothorax")
    for k in range(studies):
        drawn = {"cardiomegaly": k % 2 == 1, "pleural effusion": k % 4 > 1}
        found = [name for name, there in drawn.items() if there] + ([others[k // 3 % len(others)]] if k % 3 == 0 else [])
        for view in ("PA", "L") if k % 2 else ("AP_horizontal",):
            name, folder = f"{_name(seed, k)}_{view.lower()}.png", str(k % 3)
            rng = np.random.default_rng([seed, k, len(view)])
            picture = draw_picture(rng, blob=drawn["cardiomegaly"], band=drawn["pleural effusion"]).astype(np.uint16) * 257
            (root / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(root / folder / name), picture)
            person = [str(1930 + k // 2 % 60), "MF"[k // 2 % 2]]
            cells = [name, folder, f"2014{1 + k % 9:02d}01", f"S{k}", f"P{k // 2}", *person, "POSTEROANTERIOR", view]
            rows.append([str(len(rows) - 1), *cells, str(found or ["normal"])])
    _write_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", rows)
    return mark_synthetic(root, f"PadChest, seed {seed}")


def write_open_i(root: Path, studies: int = 240, seed: int = 0) -> Path:
    """Write a synthetic ``chest-xrays-indiana-university``: studies of a frontal and a lateral view, and their reports' problems.

    Args:
        root: the folder to create.
        studies: so many, every other one with cardiomegaly, and half of all with an effusion.
        seed: of everything.

    Raises:
        UserError: ``root`` exists already.
    """
    new_root(root)
    images = root / "images" / "images_normalized"
    images.mkdir(parents=True)
    projections, reports = [["uid", "filename", "projection"]], [["uid", "MeSH", "Problems", "image", "findings", "impression"]]
    others = ("Calcified Granuloma", "Nodule", "Opacity", "Pulmonary Atelectasis")
    for k in range(studies):
        drawn = {"Cardiomegaly": k % 2 == 1, "Pleural Effusion": k % 4 > 1}
        found = [name for name, there in drawn.items() if there] + ([others[k // 3 % len(others)]] if k % 3 == 0 else [])
        for view, number in (("Frontal", 4001), ("Lateral", 3001)):
            name, rng = f"{k + 1}_IM-{k + 1:04d}-{number}.dcm.png", np.random.default_rng([seed, k, number])
            cv2.imwrite(str(images / name), draw_picture(rng, blob=drawn["Cardiomegaly"], band=drawn["Pleural Effusion"]))
            projections.append([str(k + 1), name, view])
        problems = "No Indexing" if k % 50 == 49 else ";".join(found) or "normal"
        reports.append([str(k + 1), problems, problems, "Xray Chest PA and Lateral", "drawn", "drawn"])
    _write_csv(root / "indiana_projections.csv", projections)
    _write_csv(root / "indiana_reports.csv", reports)
    return mark_synthetic(root, f"Open-i, seed {seed}")


def _require(root: Path) -> None:
    if importlib.util.find_spec("pydicom") is None:
        raise UserError("the sample is of DICOM files, and writing them needs pydicom: pip install 'xraylab[dicom]'.")
    new_root(root)


def _name(*parts: object) -> str:
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:32]


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _write_dicom(path: Path, picture: np.ndarray, number: str) -> None:
    """A radiograph of 8 bits, without anything of a patient."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID(f"1.2.3.{number}")
    ds.Modality = "CR"
    ds.Rows, ds.Columns = picture.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = picture.tobytes() + b"\0" * (picture.size % 2)
    ds["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
