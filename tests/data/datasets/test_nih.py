"""ChestX-ray14 in the layouts it comes in, and everything that can be wrong with it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import noisy

from xraylab.data.datasets import chest_xray as radiographs
from xraylab.data.datasets.nih import NIH
from xraylab.data.findings import COMPETITION
from xraylab.data.findings import NIH as FINDINGS
from xraylab.data.integrity import _found, examine
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
QUIRKS = {  # header and end of a row: as published, another copy, and one that was mended
    "commas": (HEADER, ""),
    "trailing": (HEADER.replace("Gender", "Sex") + ",", ","),
    "trailing header": (HEADER.replace("Gender", "Sex") + ",", ""),
    "quoted": (HEADER.replace("Image[Width,Height]", '"Image[Width,Height]"').replace("Original\"", "\"Original")
               .replace("OriginalImagePixelSpacing[x,y]", '"OriginalImagePixelSpacing[x,y]"'), ""),
}  # fmt: skip
# name, findings, patient, view, split
IMAGES = [
    ("00000001_000.png", "Cardiomegaly", 1, "PA", "train"),
    ("00000001_001.png", "Cardiomegaly|Emphysema", 1, "PA", "train"),
    ("00000002_000.png", "No Finding", 2, "AP", "train"),
    ("00000003_000.png", "Pleural_Thickening|Effusion|Hernia", 3, "PA", "heldout"),
    ("00000004_000.png", "Mass|Nodule", 4, "AP", "heldout"),
]


def row_of(name, labels, patient, view, *_):
    return f"{name},{labels},0,{patient},58,M,{view},2682,2749,0.143,0.143"


def write(root, images=IMAGES, quirk="commas", entry="Data_Entry_2017_v2020.csv", place=lambda name: f"images/{name}"):
    root.mkdir(parents=True)
    for number, (name, *_) in enumerate(images):
        path = root / place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (8, 9, 4) if number % 2 else (8, 9)  # some are of several channels
        cv2.imwrite(str(path), np.full(shape, 20 * (number % 12 + 1), np.uint8))
    header, end = QUIRKS[quirk]
    (root / entry).write_text("\n".join([header, *(row_of(*image) + end for image in images), ""]))
    for split, name in (("train", "train_val_list.txt"), ("heldout", "test_list.txt")):
        (root / name).write_text("\n".join(image[0] for image in images if image[4] == split))
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "ChestX-ray14")


def read(root, **options):
    reader = NIH(str(root), **options)
    return reader.read(reader.find())


@pytest.mark.parametrize("quirk", QUIRKS)
@pytest.mark.parametrize("entry", ["Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"])
@pytest.mark.parametrize("place", ["images/{}", "images_00{}/images/{}", "images_00{}/{}"])
def test_rows_labels_and_images_in_every_layout(tmp_path, quirk, entry, place):
    def spread(name):
        return place.format(name) if place.count("{}") == 1 else place.format(1 + int(name[7]) % 2, name)

    root = write(tmp_path / "up" / "ChestX-ray14", quirk=quirk, entry=entry, place=spread)
    table = read(tmp_path / "up")
    frame = table.frame
    assert frame["id"].tolist() == [image[0] for image in IMAGES]
    assert frame["images"].tolist() == [(spread(image[0]),) for image in IMAGES]
    assert frame["patient"].tolist() == [str(image[2]) for image in IMAGES]
    assert frame["group"].tolist() == [image[3].lower() for image in IMAGES]
    assert frame["split"].tolist() == [image[4] for image in IMAGES]
    assert frame["cardiomegaly"].tolist() == [1, 1, 0, 0, 0]
    assert frame["emphysema"].tolist() == [0, 1, 0, 0, 0]
    assert (
        frame["pleural_thickening"].tolist() == frame["pleural_effusion"].tolist() == frame["hernia"].tolist() == [0, 0, 0, 1, 0]
    )
    assert frame["nodule"].tolist() == [0, 0, 0, 0, 1]
    assert table.labels == FINDINGS
    assert "no_finding" not in frame
    assert all(frame[label].dtype == np.float32 for label in FINDINGS)
    shapes = [view.shape for study in frame["images"] for view in table.source.read(study)]
    assert shapes == [(8, 9)] * 5, "several channels become one"
    assert table.patients_known
    assert not table.problems
    assert NIH(str(root)).lists(root) == (entry, "train_val_list.txt", "test_list.txt")


def test_views_and_findings_are_chosen(root):
    assert read(root, view="ap").frame["id"].tolist() == [IMAGES[2][0], IMAGES[4][0]]
    assert read(root, view=["pa", "ap"]).frame.equals(read(root).frame)
    assert read(root, findings="competition").labels == COMPETITION
    assert read(root, findings=["No Finding", "effusion"]).frame["no_finding"].tolist() == [0, 0, 1, 0, 0]
    with pytest.raises(UserError, match=r"view=lateral: there is no such image in .*: pa 3, ap 2\."):
        read(root, view="lateral")
    with pytest.raises(UserError, match=r"findings=fracture: it is all, .*hernia, no_finding"):
        NIH(findings="fracture")


def test_patients_stay_together(tmp_path):
    images = [(f"{1 + i // 3:08d}_{i % 3:03d}.png", ("Mass", "No Finding")[i % 2], 1 + i // 3, "PA", "train") for i in range(60)]
    frame = assign_splits(read(write(tmp_path / "NIH", [*images, ("00000099_000.png", "Mass", 99, "PA", "heldout")])),
                          "holdout", None, 0.2, 0).frame  # fmt: skip
    assert (frame.groupby("patient")["split"].nunique() == 1).all()
    assert frame.groupby("split")["patient"].nunique().to_dict() == {"train": 16, "valid": 4, "test": 1}


NAMES = [f"0000002{i}_000.png" for i in range(10)]
FAULTY = [(name, "Mass", 20 + i, "PA", "train") for i, name in enumerate(NAMES)]


def broken(tmp_path):
    """One fault of every kind, each in an image of its own; what each must be reported as."""
    changed = [list(image) for image in FAULTY]
    changed[0][1], changed[1][1], changed[2][1], changed[3][2] = "Mass|Masss", "Mass|No Finding", "", 7
    root = write(tmp_path / "ChestX-ray14", [*IMAGES, *map(tuple, changed)])
    entry = "Data_Entry_2017_v2020.csv"
    with open(root / entry, "a") as file:
        file.write("\n".join([
            row_of(*FAULTY[4]), row_of("../images/00000001_000.png", "Mass", 1, "PA"), row_of("1.jpg", "Mass", 1, "PA"),
            row_of("00000030_000.png", "Mass", 30, "PA"), ",,,,,,,,,,", "00000031_000.png,Mass", "",
        ]))  # fmt: skip
    with open(root / "test_list.txt", "a") as file:
        file.write(f"\n{NAMES[5]}\n00000032_000.png\n{IMAGES[3][0]}\n")
    (root / "images" / NAMES[6]).unlink()
    (root / "images" / NAMES[7]).write_bytes(b"")
    end = 1 + len(IMAGES) + len(FAULTY)
    return root, {
        f"rows of {entry} with another number of cells than its header, 11": [f"line {end + 6} (2 cells)"],
        f"empty rows of {entry}": [f"line {end + 5}"],
        f"paths of {entry} that lead out of the dataset's folder": [f"line {end + 2}: ../images/00000001_000.png"],
        f"rows of {entry} that are not an image": [f"line {end + 3}: 1.jpg"],
        f"images twice in {entry}": [f"{NAMES[4]} (line {end + 1})"],
        f"images of {entry} whose name is not of their patient": [f"{NAMES[3]} of Patient ID 7 (line 10)"],
        f"images of {entry} with a finding that is not known": [f"{NAMES[0]} ('Mass|Masss', line 7)"],
        f"images of {entry} with a finding and No Finding": [f"{NAMES[1]} ('Mass|No Finding', line 8)"],
        f"images of {entry} without a label": [f"{NAMES[2]} ('', line 9)"],
        "images twice in test_list.txt": [IMAGES[3][0]],
        "images of test_list.txt without a row": ["00000032_000.png"],
        "images in both train_val_list.txt and test_list.txt": [NAMES[5]],
        "images in neither train_val_list.txt nor test_list.txt": ["00000030_000.png"],
        "missing image files": [f"images/{NAMES[6]}"],
        "empty image files": [f"images/{NAMES[7]}"],
        "studies of whose images none can be used": [NAMES[6], NAMES[7]],
    }


def test_everything_wrong_is_counted_and_named_in_one_summary(tmp_path):
    root, faults = broken(tmp_path)
    with pytest.raises(UserError) as stop:
        read(root)
    for kind, names in faults.items():
        assert f"\n  {len(names)} {kind}: {', '.join(names)}\n" in str(stop.value), kind
    assert str(stop.value).count("\n") == len(faults) + 1


def test_skip_goes_on_without_them_and_remembers(tmp_path):
    root, faults = broken(tmp_path)
    table = read(root, on_error="skip")
    assert table.problems == faults
    assert table.frame["id"].tolist() == [image[0] for image in IMAGES] + [NAMES[4], NAMES[8], NAMES[9]]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Finding Labels", "Findings", "columns that are not there: Finding Labels"),
        ("Patient ID", "PatientID", None),
        ("View Position", "view_position", None),
    ],
)
def test_columns_may_be_spelled_otherwise_and_not_be_missing(root, old, new, said):
    path = root / "Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text().replace(old, new))
    if said is None:
        assert len(read(root).frame) == 5
    else:
        with pytest.raises(UserError, match=f"{said}.*\nexpected: Image Index, .*\nfound:    Image Index, Findings"):
            read(root)


@pytest.mark.parametrize("lacking", ["Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"])
def test_half_a_dataset_is_shown_beside_the_whole(root, lacking):
    (root / lacking).unlink()
    with pytest.raises(UserError) as stop:
        NIH(str(root)).find()
    for said in ("ChestX-ray14 is not there", "images_001/images/", "nihcc", "images/"):
        assert said in str(stop.value)


def test_the_published_numbers_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(radiographs, "file_faults", lambda _, images: np.full(len(images), "", object))
    root = tmp_path / "ChestX-ray14"
    root.mkdir()
    names = [f"{1 + i % 30805:08d}_{i // 30805:03d}.png" for i in range(112120)]
    rows = [f"{name},No Finding,0,{int(name[:8])},58,M,PA,2682,2749,0.143,0.143" for name in names]
    (root / "Data_Entry_2017.csv").write_text("\n".join([HEADER, *rows, ""]))
    (root / "train_val_list.txt").write_text("\n".join(names[:86524]))
    (root / "test_list.txt").write_text("\n".join(names[86524:]))
    (reader,) = NIH(str(root), view="ap", findings="mass").whole(root)
    table = reader.read(root)
    frame = table.frame.assign(number=table.frame["images"].map(len))
    published = reader.published(table)
    assert len(published) == 4
    assert [(p, _found(p, frame)) for p in published if _found(p, frame) != p.number] == []


def test_check_finds_everything_of_a_tree(root):
    noisy(root)
    found = examine(NIH(str(root), view="ap", findings="mass", on_error="skip"), root)
    assert found.read == 5
    assert not found.faults
    assert not found.strays


def test_a_copy_of_224_pixels_is_read_and_called_so(tmp_path):
    root = write(tmp_path / "resized", place=lambda name: f"images-224/images-224/{name}")
    for name in ("train_val_list", "test_list"):
        (root / f"{name}.txt").rename(root / f"{name}_NIH.txt")
    table = read(root)
    assert table.name == "ChestX-ray14-224"
    assert dict(zip(table.frame["id"], table.frame["split"], strict=True)) == {name: split for name, *_, split in IMAGES}
    assert table.frame["images"][0] == ("images-224/images-224/00000001_000.png",)


@pytest.mark.parametrize("quirk", QUIRKS)
def test_age_and_sex_come_along(tmp_path, quirk):
    frame = read(write(tmp_path / "nih", quirk=quirk)).frame
    assert frame["attribute/age"].tolist() == [58.0] * 5
    assert frame["attribute/sex"].tolist() == ["M"] * 5
