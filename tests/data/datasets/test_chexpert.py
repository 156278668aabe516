"""CheXpert in the layouts it comes in, and everything that can be wrong with it."""

from __future__ import annotations

import csv
import gzip
import itertools
import logging

import cv2
import numpy as np
import pytest
from conftest import noisy

from xraylab.data.datasets import chest_xray as radiographs
from xraylab.data.datasets.chexpert import CheXpert
from xraylab.data.findings import CHEXPERT, COMPETITION
from xraylab.data.integrity import _found, examine
from xraylab.data.published import CHEXPERT_IMAGES
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError

NAMES = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
]  # fmt: skip
HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *NAMES]
# split, patient, study, AP/PA of each view (empty: lateral), findings as written; patient 2 has two studies
STUDIES = [
    ("train", 1, 1, ["AP"], {"Edema": "1.0", "Fracture": "0.0"}),
    ("train", 2, 1, ["", "PA"], {"Edema": "-1.0", "Cardiomegaly": "1.0"}),
    ("train", 2, 2, ["PA"], {"No Finding": "1.0"}),
    ("train", 3, 1, ["LL", ""], {"Edema": "0.0"}),
    ("train", 4, 1, ["", ""], {"Edema": "1"}),
    ("valid", 64541, 1, ["AP", ""], dict.fromkeys(NAMES, "0.0")),
    ("valid", 64542, 1, ["PA"], {"Edema": "1.0"}),
]
TEST = [("test", 64741, 1, ["AP", ""], {"Edema": "1.0"}), ("test", 64742, 1, ["AP"], {"Edema": "0.0"})]


def name_of(split, patient, study, *_):
    return f"{split}/patient{patient:05d}/study{study}"


def images_of(study):
    return [f"{name_of(*study)}/view{k}_{'frontal' if p else 'lateral'}.jpg" for k, p in enumerate(study[3], start=1)]


def draw(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 10), level, np.uint8))


def row_of(image, projection, cells, prefix="CheXpert-v1.0-small/", sex=True):
    side = "Frontal" if projection else "Lateral"
    return [prefix + image, *(["Female", "50", side, projection] if sex else []), *(cells.get(n, "") for n in NAMES)]


def write_list(path, studies, prefix="CheXpert-v1.0-small/", header=HEADER, sex=True):
    rows = [row_of(i, p, s[4], prefix, sex) for s in studies for i, p in zip(images_of(s), s[3], strict=True)]
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def write(root, studies=STUDIES, prefix="CheXpert-v1.0-small/", place=lambda image: image, lists=""):
    """The published files: JPEGs of one level a view, lists with paths from the dataset's own name on."""
    for study in studies:
        for k, image in enumerate(images_of(study), start=1):
            draw(root / place(image), 40 * k)
    for split in dict.fromkeys(s[0] for s in studies):
        (root / lists).mkdir(parents=True, exist_ok=True)
        write_list(root / lists / f"{split}.csv", [s for s in studies if s[0] == split], prefix)
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "CheXpert-v1.0-small")


def read(root, **options):
    reader = CheXpert(str(root), **options)
    return reader.read(reader.find())


def edit(path, change):
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


def append(path, *rows):
    with open(path, "a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def test_rows_labels_and_images_are_those_of_the_files(root):
    table = read(root, view="all")
    frame = table.frame.set_index("id")
    assert frame.index.tolist() == [name_of(*s) for s in STUDIES]
    assert frame["patient"].tolist() == [f"patient{s[1]:05d}" for s in STUDIES]
    assert frame["split"].tolist() == [{"train": "train", "valid": "heldout"}[s[0]] for s in STUDIES]
    assert frame["group"].tolist() == ["ap", "lateral+pa", "pa", "frontal+lateral", "lateral", "ap+lateral", "pa"]
    for study in STUDIES:
        expected = [float(study[4].get(name, "nan")) for name in NAMES]
        np.testing.assert_array_equal(frame.loc[name_of(*study), list(CHEXPERT)].to_numpy(np.float32), expected)
    second = name_of(*STUDIES[1])
    assert frame.loc[second, "images"] == (f"{second}/view2_frontal.jpg", f"{second}/view1_lateral.jpg"), "frontal first"
    assert [int(view.mean()) for view in table.source.read(frame.loc[second, "images"])] == [80, 40]
    assert all(frame[label].dtype == np.float32 for label in CHEXPERT)
    assert table.labels == CHEXPERT
    assert table.name == "CheXpert-v1.0-small"
    assert table.views
    assert table.patients_known
    assert not table.synthetic
    assert not table.problems


@pytest.mark.parametrize(
    ("view", "studies", "groups", "images"),
    [
        ("frontal", (0, 1, 2, 3, 5, 6), {"ap", "pa", "frontal"}, 6),
        ("lateral", (1, 3, 4, 5), {"lateral"}, 5),
        ("ap", (0, 5), {"ap"}, 2),
        ("pa", (1, 2, 6), {"pa"}, 3),
        (["ap", "lateral"], (0, 1, 3, 4, 5), {"ap", "lateral", "ap+lateral"}, 7),
        ("all", range(7), {"ap", "pa", "lateral", "lateral+pa", "frontal+lateral", "ap+lateral"}, 11),
    ],
)
def test_views_are_chosen_and_ids_do_not_depend_on_them(root, caplog, view, studies, groups, images):
    with caplog.at_level(logging.INFO):
        table = read(root, view=view)
    assert table.frame["id"].tolist() == [name_of(*STUDIES[i]) for i in studies]
    assert set(table.frame["group"]) == groups
    singles = table.by_image()
    assert len(singles.frame) == images, "one row an image, for unit=image"
    assert not singles.many_views
    assert table.many_views == (images > len(table.frame))
    assert ("left out" in caplog.text) == (view != "all")
    if view == "frontal":
        assert "view=frontal: 5 of 11 images are of another view and left out: lateral 5" in caplog.text


def test_a_view_that_is_not_there_lists_those_that_are(tmp_path):
    root = write(tmp_path / "CheXpert-v1.0", [STUDIES[0], STUDIES[5]])
    with pytest.raises(UserError, match=r"view=pa: there is no such image in .* kind of view: ap 2, lateral 1\. "):
        read(root, view="pa")


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ("competition", COMPETITION),
        (["Pleural Effusion", "EDEMA", "airspace opacity"], ("pleural_effusion", "edema", "lung_opacity")),
        ("no_finding", ("no_finding",)),
    ],
)
def test_findings_are_chosen_in_any_spelling(root, given, labels):
    table = read(root, findings=given)
    assert table.labels == labels
    assert [c for c in table.frame if c in CHEXPERT] == list(labels)
    if "edema" in labels:
        assert table.frame["edema"].tolist()[:2] == [1, -1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"findings": ["edema", "Edema"]}, "findings=edema,Edema: it is all, competition, or some of these, each once"),
        ({"findings": "edeme"}, r"findings=edeme: .*Did you mean edema\?"),
        ({"findings": "hernia"}, "findings=hernia: it is all"),
        ({"findings": []}, "findings=: it is all"),
        ({"view": "forntal"}, r"view=forntal: it is frontal, .* Did you mean frontal\?"),
        ({"view": []}, "view=: it is frontal"),
        ({"bits": 7}, "dataset.bits=7"),
        ({"on_error": "ignore"}, "dataset.on_error=ignore"),
    ],
)
def test_wrong_settings_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        CheXpert(**options)


# ---- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", "", "/data/old/place/", "./CheXpert-v1.0/"])
def test_paths_may_start_anywhere(tmp_path, prefix):
    table = read(write(tmp_path / "renamed", prefix=prefix), view="all")
    assert table.frame["id"].tolist() == [name_of(*s) for s in STUDIES]
    assert table.name == "CheXpert-v1.0"
    assert len(table.source.read(table.frame["images"][1])) == 2


def batched(image):
    split, patient, rest = image.split("/", 2)
    number = int(patient.removeprefix("patient"))
    if split == "valid":
        return f"CheXpert-v1.0 batch 1 (validate & csv)/valid/{patient}/{rest}"
    inside = "" if number < 3 else "train/"
    return f"CheXpert-v1.0 batch {2 + number % 2} (train {1 + number % 2})/{inside}{patient}/{rest}"


@pytest.mark.parametrize("lists", ["", "CheXpert-v1.0 batch 1 (validate & csv)"])
def test_the_release_in_batches_has_the_same_ids(tmp_path, lists):
    whole = read(write(tmp_path / "CheXpert-v1.0", prefix="CheXpert-v1.0/"), view="all")
    root = write(tmp_path / "up" / "chexpertchestxrays-u20210408", prefix="CheXpert-v1.0/", place=batched, lists=lists)
    assert CheXpert(str(tmp_path / "up")).find() == root
    table = read(tmp_path / "up", view="all")
    assert table.name == whole.name == "CheXpert-v1.0"
    columns = ["id", "patient", "group", "split", *CHEXPERT]
    assert table.frame[columns].equals(whole.frame[columns])
    assert table.frame["images"].map(len).tolist() == whole.frame["images"].map(len).tolist()
    assert table.frame["images"][0] == ("CheXpert-v1.0 batch 3 (train 2)/patient00001/study1/view1_frontal.jpg",)
    assert table.frame["images"][3][0] == "CheXpert-v1.0 batch 3 (train 2)/train/patient00003/study1/view1_frontal.jpg"
    assert all(len(table.source.read(images)) == len(images) for images in table.frame["images"])
    (root / batched(images_of(STUDIES[0])[0])).unlink()
    with pytest.raises(UserError, match=r"1 missing image files: CheXpert-v1\.0 batch 3 \(train 2\)/patient00001/study1"):
        read(root, view="all")


@pytest.mark.parametrize("name", ["test.csv", "test_labels.csv"])
@pytest.mark.parametrize("sex", [True, False])
def test_the_test_set_makes_three_splits(root, name, sex):
    for study in TEST:
        for image in images_of(study):
            draw(root / image, 40)
    write_list(root / name, TEST, "", HEADER if sex else ["Path", *NAMES], sex)
    table = read(root, view="all")
    assert table.frame.groupby("split")["id"].size().to_dict() == {"train": 5, "valid": 2, "test": 2}
    test = table.frame[table.frame["split"] == "test"]
    assert test["group"].tolist() == (["ap+lateral", "ap"] if sex else ["frontal+lateral", "frontal"])
    assert test["edema"].tolist() == [1, 0]
    assert CheXpert(str(root)).lists(root) == ("train.csv", "valid.csv", name)
    published = {(p.unit, p.split): p.number for p in CheXpert(str(root)).published(table) if p.split != "train"}
    assert published == {
        ("patients", "valid"): 200, ("images", "valid"): 234, ("patients", "test"): 500, ("images", "test"): 668
    }  # fmt: skip
    assert (assign_splits(table, "holdout", None, 0.2, 0).frame["split"] == table.frame["split"]).all()
    without = read(root, view="all", test="ignore").frame
    assert without.groupby("split")["id"].size().to_dict() == {"train": 5, "heldout": 2}
    with pytest.raises(UserError, match=r"dataset.test=valid: it is auto or ignore"):
        read(root, test="valid")


def test_lists_may_be_gzipped_inside_and_lines_end_as_in_other_systems(root):
    text = (root / "train.csv").read_text()
    (root / "train.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    plain = read(root)
    (root / "train.csv").write_bytes(gzip.compress(text.encode()))
    assert read(root).frame.equals(plain.frame)
    assert len(plain.frame) == 6


def test_columns_may_be_spelled_otherwise(root):
    edit(root / "train.csv", lambda lines: [
        lines[0].replace("Lung Opacity", "Airspace Opacity").replace("Pleural Effusion", "pleural_effusion")
        .replace("Path", " path").replace("AP/PA", "ap_pa"),
        *lines[1:],
    ])  # fmt: skip
    assert read(root).frame["group"].tolist() == ["ap", "pa", "pa", "frontal", "ap", "pa"]


def test_columns_may_come_in_another_order(root):
    with open(root / "train.csv", newline="") as file:
        rows = [row[::-1] for row in csv.reader(file)]
    before = read(root).frame
    with open(root / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert read(root).frame.equals(before)


# ---- faults ---------------------------------------------------------------------------------------------------------


# ---- the download as published --------------------------------------------------------------------------------------


def published_lists(root):
    """Lists with the published numbers of images, studies, patients and labels, and no images."""
    root.mkdir()
    totals = {"train": (1, 64540, 187641, 223414), "valid": (64541, 200, 200, 234)}
    values = [["1.0"] * p + ["0.0"] * n + ["-1.0"] * u for p, n, u in CHEXPERT_IMAGES.values()]
    for split, (first, patients, studies, images) in totals.items():
        with open(root / f"{split}.csv", "w") as file:
            file.write(",".join(HEADER) + "\n")
            cells = itertools.zip_longest(*(values if split == "train" else []), fillvalue="")
            rows = [",".join(row) for row in cells]
            rows += ["," * 13] * (studies - len(rows))
            for study in range(studies):
                folder = f"CheXpert-v1.0-small/{split}/patient{first + study % patients:05d}/study{1 + study // patients}"
                for view in range(1 + (study >= 2 * studies - images)):  # the last studies, which have no labels, have two
                    file.write(f"{folder}/view{view + 1}_frontal.jpg,Female,50,Frontal,AP,{rows[study]}\n")
    return root


def test_the_published_numbers_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(radiographs, "file_faults", lambda _, images: np.full(len(images), "", object))
    root = published_lists(tmp_path / "CheXpert-v1.0-small")
    (reader,) = CheXpert(str(root), view="lateral", findings="edema").whole(root)
    table = reader.read(root)
    frame = table.frame.assign(number=table.frame["images"].map(len))
    published = reader.published(table)
    assert len(published) == 5 + 3 * 14
    assert [(p, _found(p, frame)) for p in published if _found(p, frame) != p.number] == []
    assert sum(p.number for p in published if p.unit == "images" and p.label is None) == 223648


def test_check_finds_everything_of_a_tree(root):
    noisy(root)
    (root / "stray.txt").write_text("x")
    reader = CheXpert(str(root), view="lateral", findings="competition", on_error="skip")
    found = examine(reader, root)
    assert found.read == 11
    assert found.strays == ["stray.txt"]
    assert not found.faults
    said = found.text(10)
    assert "train images, edema uncertain" in said
    assert [c.found for c in found.compared if c.what == "train images, edema uncertain"] == [2], "of both views"
