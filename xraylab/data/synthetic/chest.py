"""Synthetic chest X-ray datasets in their published layouts: CheXpert, MIMIC-CXR-JPG, its tutorial's release, ChestX-ray14.

What a study shows is its truth; its label is, as published, what a report says of it, or what radiologists see: the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from xraylab.data.boxes import FILE, NIH_FILE, BoxRow, boxes_of, write_boxes, write_nih_boxes
from xraylab.data.findings import CHEXPERT, NIH, spelled
from xraylab.data.images.tfrecord import framed
from xraylab.data.synthetic.chest_drawing import Case, draw_view, finding_masks
from xraylab.data.synthetic.chest_labels import Cases, Rates, draw_labels
from xraylab.data.synthetic.mark import mark_synthetic, new_root
from xraylab.errors import UserError
from xraylab.system.progress import on_all_cores

LEAST = 20  # studies of a split, so that each class of the competition's findings is there
LATERAL, SECOND = 0.35, 0.08  # shares of studies with a lateral and with a second frontal view
MIDDLE = ("cardiomegaly", "enlarged_cardiomediastinum", "support_devices")  # of one piece, of which the rim alone differs
RETURNS = 0.25  # share of studies by the patient before
#: names in ChestX-ray14 of what is drawn, beside its own: where it is slight, and where it is severe
AS_NIH: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "lung_lesion": (("nodule",), ("mass",)), "enlarged_cardiomediastinum": (("hernia",), ("hernia",)),
    "pleural_other": (("pleural_thickening",), ("pleural_thickening", "fibrosis")), "pneumothorax": ((), ("emphysema",)),
    "pneumonia": (("infiltration",), ()),
}  # fmt: skip


@dataclass(frozen=True)
class _Study:
    number: int  # in its split
    patient: int
    visit: int  # of the patient, from 1 on
    views: tuple[str, ...]  # pa, ap, lateral
    case: Case
    female: bool
    age: int
    seed: tuple[int, ...]  # of everything, the number of the split, 0 of train, and its own

    def image(self, view: int, size: int) -> np.ndarray:
        """uint8 (H,W)."""
        return draw_view(self.case, self.views[view], size, np.random.default_rng([*self.seed, view]))

    def boxes(self, view: int, size: int) -> list[tuple[str, tuple[int, int, int, int]]]:
        """Findings that are drawn, each with a box x, y, width, height; of one on both sides two."""
        masks = finding_masks(self.case, self.views[view], size, np.random.default_rng([*self.seed, view]))
        return [(n, box) for n, mask in masks.items() for box in boxes_of(mask, joined=1 if n in MIDDLE else 1 / 16)]


def _studies(cases: Cases, first: int, seed: tuple[int, ...], returns: float = RETURNS, lateral: float = LATERAL) -> list[_Study]:
    """Patients and views of a split's studies; patients are numbered from ``first`` on."""
    rng = np.random.default_rng([*seed, 999])
    studies: list[_Study] = []
    for i in range(len(cases.truth)):
        same = bool(studies) and rng.random() < returns
        female, age = rng.random() < 0.5, int(np.clip(rng.normal(60, 17), 18, 90))
        patient, visit = first, 1
        if studies:
            last = studies[-1]
            patient, visit = (last.patient, last.visit + 1) if same else (last.patient + 1, 1)
            female, age = (last.female, last.age) if same else (female, age)
        frontal = "ap" if rng.random() < 0.6 else "pa"
        views = (frontal,) * (1 + int(rng.random() < SECOND)) + ("lateral",) * int(rng.random() < lateral)
        studies.append(_Study(i, patient, visit, views, cases.case(i, int(rng.integers(2**31))), female, age, (*seed, i)))
    return studies


def _drawn(root: Path, counts: dict[str, int], seed: int, uncertain: Rates = None, truth: Rates = None) -> dict[str, Cases]:
    """Findings of the studies of each split, and the folder for them, unless something is in the way or a split too small."""
    parts = {split: draw_labels(n, [seed, i], uncertain, truth) for i, (split, n) in enumerate(counts.items())}
    if min(counts.values()) < LEAST:
        asked = " ".join(f"{k}={v}" for k, v in counts.items())
        raise UserError(f"{asked}: at least {LEAST} studies of each are needed, for both classes of every finding.")
    new_root(root)
    return parts


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _write_images(root: Path, jobs: Sequence[tuple[str, _Study, int]], size: int) -> list[tuple[int, int]]:
    """Draw and write each (path, study, view), JPEG or PNG by its name; returns their heights and widths."""
    for folder in {(root / path).parent for path, *_ in jobs}:
        folder.mkdir(parents=True, exist_ok=True)

    def write(job: tuple[str, _Study, int]) -> tuple[int, int]:
        path, study, view = job
        image = study.image(view, size)
        if path.endswith(".png") and study.number % 40 == 7:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGRA)  # ChestX-ray14 has some of four channels
        (root / path).write_bytes(cv2.imencode(".png", image)[1].tobytes() if path.endswith(".png") else _jpeg(image))
        return image.shape[0], image.shape[1]

    return on_all_cores(write, jobs)


def _boxes(jobs: Sequence[tuple[str, _Study, int]], size: int) -> list[BoxRow]:
    """Boxes of what the images of (path, study, view) show, of splits that are not trained on: nobody else looks for them."""

    def of(job: tuple[str, _Study, int]) -> list[BoxRow]:
        path, study, view = job
        return [(path, None, name, *box) for name, box in study.boxes(view, size)]

    return [row for rows in on_all_cores(of, [job for job in jobs if job[1].seed[1]]) for row in rows]


def write_chexpert(
    root: Path, train: int = 400, valid: int = 100, test: int = 0, seed: int = 0, size: int = 96,
    uncertain: Rates = None, truth: Rates = None,
) -> Path:  # fmt: skip
    """Write a synthetic ``CheXpert-v1.0-small`` tree to ``root``: grey JPEG images and a CSV for each split.

    Labels of train are reports'; those of valid and test are the truth, as radiologists' are taken to be.

    Args:
        train, valid, test: studies in each split; test 0: none, as first published.
        seed: of everything.
        size: the longer side of an image is so many pixels to 1.3 times as many.
        uncertain, truth: see :func:`xraylab.data.synthetic.chest_labels.draw_labels`; of train.

    Raises:
        UserError: ``root`` exists already, a split is too small, or the rates are wrong.
    """
    counts = {"train": train, "valid": valid} | ({"test": test} if test else {})
    parts = _drawn(root, counts, seed, uncertain, truth)
    first, jobs = 1, []
    for i, (split, cases) in enumerate(parts.items()):
        first = max(first, {"train": 1, "valid": 64541, "test": 64741}[split])
        studies = _studies(cases, first, (seed, i), returns=RETURNS if split == "train" else 0)
        labels = cases.reported if split == "train" else cases.truth.astype(np.float32)
        rows = []
        for study in studies:
            for v, view in enumerate(study.views):
                plane = "lateral" if view == "lateral" else "frontal"
                path = f"{split}/patient{study.patient:05d}/study{study.visit}/view{v + 1}_{plane}.jpg"
                jobs.append((path, study, v))
                sex, side = "Female" if study.female else "Male", "" if plane == "lateral" else view.upper()
                rows.append([f"CheXpert-v1.0-small/{path}", sex, study.age, plane.title(), side, *labels[study.number]])
        columns = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *map(spelled, CHEXPERT)]
        pd.DataFrame(rows, columns=columns).to_csv(root / f"{split}.csv", index=False)
        first = studies[-1].patient + 1
    _write_images(root, jobs, size)
    write_boxes(root / FILE, _boxes(jobs, size))
    return mark_synthetic(root, f"CheXpert, seed {seed}")


def write_mimic(
    root: Path, train: int = 300, valid: int = 60, test: int = 80, seed: int = 0, size: int = 96,
    uncertain: Rates = None, truth: Rates = None,
) -> Path:  # fmt: skip
    """Write a synthetic ``MIMIC-CXR-JPG`` tree to ``root``: grey JPEG images and the five tables.

    Labels are reports', read by two labellers that differ a little; those of the test set are also given in truth, as
    radiologists' are taken to be. A few images are of other views, or of none that is known.

    Args:
        train, valid, test: studies in each split.
        seed, size, uncertain, truth: as in :func:`write_chexpert`; the rates are each split's.

    Raises:
        UserError: as in :func:`write_chexpert`.
    """
    parts = _drawn(root, {"train": train, "valid": valid, "test": test}, seed, uncertain, truth)
    first, jobs = 10000032, []
    names = sorted(CHEXPERT)
    order = [CHEXPERT.index(name) for name in names]
    splits, metadata, tables = [], [], {"chexpert": [], "negbio": [], "truth": []}  # type: ignore[var-annotated]
    for i, (split, cases) in enumerate(parts.items()):
        rng = np.random.default_rng([seed, i, 998])
        other = _reread(cases.reported, rng)
        for study in (studies := _studies(cases, first, (seed, i))):
            subject, exam = study.patient, 50000000 + 1000 * (len(tables["chexpert"]) + 1) + int(rng.integers(1000))
            for v, view in enumerate(study.views):
                image = "-".join(f"{n:08x}" for n in rng.integers(0, 2**32, 5))
                jobs.append((f"files/p{subject // 10**6}/p{subject}/s{exam}/{image}.jpg", study, v))
                position = {"lateral": str(rng.choice(("LATERAL", "LL")))}.get(view, view.upper())
                if rng.random() < 0.04:
                    position = str(rng.choice(("", "AP AXIAL", "SWIMMERS")))
                splits.append([image, exam, subject, "validate" if split == "valid" else split])
                step = "CHEST (PORTABLE AP)" if view == "ap" else "CHEST (PA AND LAT)"
                metadata.append([image, subject, exam, step, position, 21500101 + i, "101530.0"])
            tables["chexpert"].append([subject, exam, *cases.reported[study.number, order]])
            tables["negbio"].append([subject, exam, *other[study.number, order]])
            if split == "test":
                tables["truth"].append([exam, *cases.truth[study.number, order].astype(int)])
        first = studies[-1].patient + 1

    def save(name: str, rows: list[list[Any]], *columns: str) -> None:
        compression: Any = {"method": "gzip", "mtime": 0} if name.endswith("gz") else None
        pd.DataFrame(rows, columns=list(columns)).to_csv(root / name, index=False, compression=compression)

    save("mimic-cxr-2.0.0-split.csv.gz", splits, "dicom_id", "study_id", "subject_id", "split")
    metadata = [[*row[:5], *shape, *row[5:]] for row, shape in zip(metadata, _write_images(root, jobs, size), strict=True)]
    save(
        "mimic-cxr-2.0.0-metadata.csv.gz", metadata, "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription",
        "ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime",
    )  # fmt: skip
    for labeller in ("chexpert", "negbio"):
        save(f"mimic-cxr-2.0.0-{labeller}.csv.gz", tables[labeller], "subject_id", "study_id", *map(spelled, names))
    theirs = [spelled(name.replace("lung_opacity", "airspace_opacity")) for name in names]
    save("mimic-cxr-2.1.0-test-set-labeled.csv", tables["truth"], "study_id", *theirs)
    write_boxes(root / FILE, _boxes(jobs, size))
    return mark_synthetic(root, f"MIMIC-CXR-JPG, seed {seed}")


def _reread(reported: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The labels of another labeller, which differ in one of 25 that are mentioned."""
    other = reported.copy()
    change = ~np.isnan(reported) & (rng.random(reported.shape) < 0.04)
    change[:, CHEXPERT.index("no_finding")] = False
    other[change] = np.where(reported[change] == -1, 1, -1)
    return other


def write_nih(root: Path, train: int = 300, test: int = 80, seed: int = 0, size: int = 96) -> Path:
    """Write a synthetic ``ChestX-ray14`` tree to ``root``: PNG images, their table and two lists.

    Labels are the truth. Seven of the 14 findings have drawings of their own; the others are told by severity: a mass is a
    large nodule, an infiltration a weak pneumonia, emphysema a wide pneumothorax, fibrosis a thick pleura; a hernia is drawn
    as a wide mediastinum.

    Args:
        train, test: images in each split; each is a study.
        seed, size: as in :func:`write_chexpert`.

    Raises:
        UserError: ``root`` exists already, or a split is too small.
    """
    parts = _drawn(root, {"train": train, "test": test}, seed)
    published = {name: name.title() for name in NIH} | {"pleural_effusion": "Effusion"}
    first, jobs, rows = 1, [], []
    for i, (split, cases) in enumerate(parts.items()):
        images = []
        for study in (studies := _studies(cases, first, (seed, i), lateral=0)):
            images.append(f"{study.patient:08d}_{study.visit - 1:03d}.png")
            jobs.append((f"images/{images[-1]}", study, 0))
            found = "|".join(published[name] for name, _ in _nih(study.case)) or "No Finding"
            row = [images[-1], found, study.visit - 1, study.patient, study.age, "F" if study.female else "M"]
            rows.append([*row, study.views[0].upper(), 2500, 2048, 0.171, 0.171])
        (root / f"{'train_val' if split == 'train' else split}_list.txt").write_text("\n".join(images), encoding="utf-8")
        first = studies[-1].patient + 1
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
    )
    table = "".join(",".join(map(str, row)) + "\n" for row in rows)
    (root / "Data_Entry_2017_v2020.csv").write_text(header + table, encoding="utf-8")
    sizes = {path: (width, height) for (path, *_), (height, width) in zip(jobs, _write_images(root, jobs, size), strict=True)}
    shown = {path: _nih(study.case) for path, study, _ in jobs}
    boxes = [(path, found, box) for path, _, drawn, *box in _boxes(jobs, size) for found, by in shown[path] if by == drawn]
    rows_of: list[BoxRow] = [(path.removeprefix("images/"), None, found, *box) for path, found, box in boxes]  # type: ignore[misc]
    write_nih_boxes(root / NIH_FILE, rows_of, [sizes[path] for path, *_ in boxes])
    return mark_synthetic(root, f"ChestX-ray14, seed {seed}")


def _nih(case: Case) -> list[tuple[str, str]]:
    """The findings of ChestX-ray14 that a case shows, each with the drawing that shows it."""
    own = [(name, name) for name in case.severity if name in NIH]
    others = [(name, by) for by, amount in case.severity.items() for name in AS_NIH.get(by, ((), ()))[int(amount > 0.6)]]
    return sorted(own + others)


def write_tutorial(
    root: Path, train: int = 300, valid: int = 60, test: int = 80, seed: int = 0, size: int = 96, shards: int = 2,
    uncertain: Rates = None, truth: Rates = None, csv: bool = False,
) -> Path:  # fmt: skip
    """Write the chest tutorial's release of a synthetic MIMIC-CXR to ``root``, frontal and lateral images apart.

    TFRecords ``{frontal,lateral}/{train,valid,test}-00000-of-00002.tfrecord`` of ``jpg_bytes`` and one integer a label:
    0 not mentioned, 1 negative, 2 uncertain, 3 positive. The labels of every split are reports'.

    Args:
        train, valid, test: studies in each split.
        shards: files of each split and view.
        csv: write tables ``{frontal,lateral}/{train,valid,test}.csv`` instead, of ``path`` (within the table's folder) and the
            labels, and JPEG files.
        seed, size, uncertain, truth: as in :func:`write_mimic`.

    Raises:
        UserError: as in :func:`write_chexpert`, or there is no shard.
    """
    if shards < 1:
        raise UserError(f"shards={shards}: it is at least 1.")
    parts = _drawn(root, {"train": train, "valid": valid, "test": test}, seed, uncertain, truth)
    names = [name.replace("lung_opacity", "airspace_opacity") for name in CHEXPERT]
    for i, (split, cases) in enumerate(parts.items()):
        codes = np.select([cases.reported == value for value in (0, -1, 1)], [1, 2, 3], 0)
        images: dict[str, list[tuple[_Study, int]]] = {"frontal": [], "lateral": []}
        for study in _studies(cases, 1, (seed, i)):
            for v, view in enumerate(study.views):
                images["lateral" if view == "lateral" else "frontal"].append((study, v))
        for plane, items in images.items():
            (root / plane).mkdir(exist_ok=True)
            labels = [dict(zip(names, codes[study.number].tolist(), strict=True)) for study, _ in items]
            if csv:
                paths = [f"{split}/{k:06d}.jpg" for k in range(len(items))]
                table = [{"path": path, **values} for path, values in zip(paths, labels, strict=True)]
                pd.DataFrame(table).to_csv(root / plane / f"{split}.csv", index=False)
                _write_images(root / plane, [(path, *item) for path, item in zip(paths, items, strict=True)], size)
            else:
                _write_records(root / plane / split, items, labels, size, shards)
    return mark_synthetic(root, f"the chest tutorial's MIMIC-CXR, seed {seed}")


def _write_records(stem: Path, items: list[tuple[_Study, int]], labels: list[dict[str, int]], size: int, shards: int) -> None:
    from tfrecord.example_pb2 import BytesList, Example, Feature, Features, Int64List  # brings torch, so not before it is needed

    images = on_all_cores(lambda item: _jpeg(item[0].image(item[1], size)), items)
    for shard in range(shards):
        with open(f"{stem}-{shard:05d}-of-{shards:05d}.tfrecord", "wb") as file:
            for image, values in list(zip(images, labels, strict=True))[shard::shards]:
                features = {name: Feature(int64_list=Int64List(value=[value])) for name, value in values.items()}
                features["jpg_bytes"] = Feature(bytes_list=BytesList(value=[image]))
                # else in any order, which is another in every process
                file.write(framed(Example(features=Features(feature=features)).SerializeToString(deterministic=True)))
