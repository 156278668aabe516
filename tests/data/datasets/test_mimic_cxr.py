"""MIMIC-CXR-JPG: its lists joined, its two kinds of labels, and everything that can be wrong with them."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import noisy

from xraylab.data.datasets import chest_xray as radiographs
from xraylab.data.datasets.mimic_cxr import MIMIC
from xraylab.data.findings import CHEXPERT, COMPETITION
from xraylab.data.integrity import _found, examine
from xraylab.data.splits import assign_splits
from xraylab.data.synthetic.chest import write_mimic
from xraylab.errors import UserError

NAMES = [
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
]  # fmt: skip
# subject, study, split, ViewPosition of each image, findings by chexpert; negbio says the same but of edema
STUDIES = [
    (10000032, 50414267, "train", ["PA", "LATERAL"], {"Edema": "1.0", "Fracture": "0.0"}),
    (10000032, 53189527, "train", ["AP"], {"Edema": "-1.0", "Lung Opacity": "1.0"}),
    (10000764, 57375967, "train", ["LL", "", "AP"], {"No Finding": "1.0"}),
    (10000898, 50771383, "validate", ["PA"], {"Edema": "0.0"}),
    (10000935, 50578979, "test", ["AP", "AP"], {"Edema": "1.0"}),
    (10000935, 51178377, "test", ["LAO", "PA"], {"Edema": "0.0"}),
    (10000980, 50985099, "test", ["AP"], {}),
]
NEGBIO = {"1.0": "-1.0", "0.0": "0.0", "-1.0": ""}
SPLITS = {"train": "train", "validate": "valid", "test": "test"}


def dicom(study, k):
    return f"{study:08x}-{k:08x}-aaaa0000-bbbb1111-cccc2222"


def image_of(study, k):
    return f"files/p{str(study[0])[:2]}/p{study[0]}/s{study[1]}/{dicom(study[1], k)}.jpg"


def lists_of(studies):
    """The rows of each list, its header first."""
    images = [(s, k, view) for s in studies for k, view in enumerate(s[3])]
    labels = {"chexpert": lambda c: c, "negbio": lambda c: {**c, **({"Edema": NEGBIO[c["Edema"]]} if "Edema" in c else {})}}
    about = ["PerformedProcedureStepDescription", "ViewPosition", "Rows"]
    return {
        "split": [["dicom_id", "study_id", "subject_id", "split"]] + [[dicom(s[1], k), s[1], s[0], s[2]] for s, k, _ in images],
        "metadata": [["dicom_id", "subject_id", "study_id", *about]]
        + [[dicom(s[1], k), s[0], s[1], "CHEST (PA AND LAT)", view, "8"] for s, k, view in images[::-1]],
        **{
            kind: [["subject_id", "study_id", *NAMES]]
            + [[s[0], s[1], *(of(s[4]).get(n, "") for n in NAMES)] for s in studies[::-1]]
            for kind, of in labels.items()
        },
    }


def write_list(path, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write(root, studies=STUDIES, version="2.0.0", suffix=".csv.gz", change=lambda lists: None):
    for study in studies:
        for k in range(len(study[3])):
            path = root / image_of(study, k)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 10), 40 * (k + 1), np.uint8))
    lists = lists_of(studies)
    change(lists)
    for kind, rows in lists.items():
        if kind == "test-set-labeled":
            write_list(root / "mimic-cxr-2.1.0-test-set-labeled.csv", rows)
        else:
            write_list(root / f"mimic-cxr-{version}-{kind}{suffix}", rows)
    return root


def radiologists(lists, *more):
    """Adds the radiologists' labels of the first and the third study of test."""
    names = ["Airspace Opacity" if n == "Lung Opacity" else n for n in NAMES]
    cells = {50578979: {"Edema": "0.0", "Airspace Opacity": "1.0"}, 50985099: {"Edema": "1.0"}}
    rows = [[study, *(of.get(n, "") for n in names)] for study, of in cells.items()]
    lists["test-set-labeled"] = [["study_id", *names], *rows, *more]


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "MIMIC-CXR-JPG")


@pytest.fixture
def root_with_test_labels(tmp_path):
    return write(tmp_path / "MIMIC-CXR-JPG", change=radiologists)


def read(root, **options):
    reader = MIMIC(str(root), **options)
    return reader.read(reader.find())


def test_splits_views_and_labels_are_joined(root):
    table = read(root, view="all")
    frame = table.frame.set_index("id")
    assert frame.index.tolist() == [f"s{s[1]}" for s in STUDIES]
    assert frame["patient"].tolist() == [str(s[0]) for s in STUDIES]
    assert frame["split"].tolist() == [SPLITS[s[2]] for s in STUDIES]
    assert frame["group"].tolist() == ["lateral+pa", "ap", "ap+lateral+other", "pa", "ap", "other+pa", "ap"]
    for study in STUDIES:
        expected = {radiographs.finding(name): float(study[4].get(name, "nan")) for name in NAMES}
        np.testing.assert_array_equal(
            frame.loc[f"s{study[1]}", list(CHEXPERT)].to_numpy(np.float32), [expected[label] for label in CHEXPERT]
        )
    third = STUDIES[2]
    assert frame.loc["s57375967", "images"] == tuple(image_of(third, k) for k in (2, 0, 1)), "frontal, lateral, other"
    assert [int(view.mean()) for view in table.source.read(frame.loc["s57375967", "images"])] == [120, 40, 80]
    assert table.labels == CHEXPERT
    assert table.name == "MIMIC-CXR-JPG"
    assert table.views
    assert table.patients_known
    assert not table.problems
    assert (assign_splits(table, "holdout", None, 0.2, 0).frame["split"] == table.frame["split"]).all()


@pytest.mark.parametrize(
    ("view", "studies", "groups", "left"),
    [
        ("frontal", (0, 1, 2, 3, 4, 5, 6), ["pa", "ap", "ap", "pa", "ap", "pa", "ap"], "4 of 12 images .*: lateral 2, other 2"),
        ("lateral", (0, 2), ["lateral", "lateral"], "10 of 12 images .*: pa 3, ap 5, other 2"),
        ("pa", (0, 3, 5), ["pa", "pa", "pa"], "9 of 12"),
        (["ap", "lateral"], (0, 1, 2, 4, 6), ["lateral", "ap", "ap+lateral", "ap", "ap"], "5 of 12 images .*: pa 3, other 2"),
    ],
)
def test_views_are_chosen(root, caplog, view, studies, groups, left):
    with caplog.at_level(logging.INFO):
        frame = read(root, view=view).frame
    assert frame["id"].tolist() == [f"s{STUDIES[i][1]}" for i in studies]
    assert frame["group"].tolist() == groups
    assert re.search(left, caplog.text), caplog.text


def test_either_reading_of_the_reports_is_taken(root):
    by = {labels: read(root, labels=labels, findings="edema").frame.set_index("id")["edema"] for labels in ("chexpert", "negbio")}
    np.testing.assert_array_equal(by["chexpert"].to_numpy(), [1, -1, np.nan, 0, 1, 0, np.nan])
    np.testing.assert_array_equal(by["negbio"].to_numpy(), [-1, np.nan, np.nan, 0, -1, 0, np.nan])
    assert by["chexpert"].index.equals(by["negbio"].index)


def test_findings_are_chosen_in_any_spelling(root):
    assert read(root, findings="competition").labels == COMPETITION
    assert read(root, findings=["Airspace Opacity", "edema"]).frame["lung_opacity"].tolist()[1] == 1


@pytest.mark.parametrize("version", ["2.0.0", "2.1.0"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_lists_of_any_version_gzipped_or_not(tmp_path, version, suffix):
    root = write(tmp_path / "mimic-cxr-jpg" / "2.1.0", version=version, suffix=suffix)
    assert MIMIC(str(tmp_path)).find() == root
    assert len(read(tmp_path / "mimic-cxr-jpg").frame) == 7
    assert MIMIC(str(root)).lists(root) == tuple(
        f"mimic-cxr-{version}-{kind}{suffix}" for kind in ("split", "metadata", "chexpert", "negbio")
    )


# ---- the radiologists' labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("test_labels", ["auto", "radiologists"])
@pytest.mark.parametrize("labels", ["chexpert", "negbio"])
def test_radiologists_labels_are_the_test_and_nothing_else_is(root_with_test_labels, caplog, test_labels, labels):
    with caplog.at_level(logging.INFO):
        frame = read(root_with_test_labels, test_labels=test_labels, labels=labels, findings=["edema", "lung_opacity"]).frame
    test = frame[frame["split"] == "test"].set_index("id")
    assert test["edema"].to_dict() == {"s50578979": 0, "s50985099": 1}
    assert test["lung_opacity"]["s50578979"] == 1
    assert test["lung_opacity"].isna()["s50985099"]
    assert "test: the 2 studies that radiologists labelled, by their labels; 1 of 3 are left out" in caplog.text
    others = frame[frame["split"] != "test"]["edema"]
    np.testing.assert_array_equal(others, [1, -1, np.nan, 0] if labels == "chexpert" else [-1, np.nan, np.nan, 0])


def test_the_reports_labels_of_test_can_be_asked_for(root_with_test_labels):
    table = read(root_with_test_labels, test_labels="report")
    (root_with_test_labels / "mimic-cxr-2.1.0-test-set-labeled.csv").unlink()
    assert table.frame.equals(read(root_with_test_labels).frame)
    assert table.frame["split"].tolist().count("test") == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"test_labels": "radiologists"},
            "dataset.test_labels=radiologists: there is no mimic-cxr-2.1.0-test-set-labeled.csv in",
        ),
        ({"test_labels": "radiologist"}, r"dataset\.test_labels=radiologist: it is auto or .* Did you mean radiologists\?"),
        ({"labels": "chexbert"}, r"labels=chexbert: it is chexpert or negbio\. Did you mean chexpert\?"),
    ],
)
def test_wrong_labels_are_refused(root, options, said):
    (root / "mimic-cxr-2.1.0-test-set-labeled.csv").unlink(missing_ok=True)
    with pytest.raises(UserError, match=said):
        read(root, **options)


def test_labels_that_were_not_downloaded_are_named_with_those_that_were(root):
    (root / "mimic-cxr-2.0.0-negbio.csv.gz").unlink()
    with pytest.raises(UserError, match=r"labels=negbio: there is no mimic-cxr-2\.0\.0-negbio.* choose labels=chexpert\."):
        read(root, labels="negbio")


# ---- faults ---------------------------------------------------------------------------------------------------------


# ---- the download as published --------------------------------------------------------------------------------------


def test_the_published_numbers_are_found(root):
    table = read(root)  # CheXpert's test reads as much as is published; here the counts alone are of that size
    of = {"train": (64586, 225000, 368960), "valid": (500, 1400, 2991), "test": (293, 1427, 5159)}
    parts = []
    for first, (split, (patients, studies, images)) in enumerate(of.items()):
        number = np.full(studies, images // studies)
        number[: images % studies] += 1
        rows = np.arange(studies)
        ids = {"id": rows + 1_000_000 * first, "patient": rows % patients + 1_000_000 * first}
        parts.append(pd.DataFrame({**ids, "split": split, "number": number}))
    published = MIMIC().published(table)
    assert len(published) == 9
    assert [(p, n) for p in published if (n := _found(p, pd.concat(parts))) != p.number] == []


def test_check_looks_into_every_list_and_all_of_test(tmp_path):
    def change(lists):
        radiologists(lists, [59999999, *[""] * 14])
        lists["negbio"][3][5] = "7"

    root = write(tmp_path / "MIMIC-CXR-JPG", change=change)
    noisy(root)
    found = examine(MIMIC(str(root), labels="chexpert", on_error="skip"), root)
    assert found.faults == {
        "labels in mimic-cxr-2.0.0-negbio.csv.gz other than 1, 0, -1 and blank": ["line 4 (Edema '7')"],
        "studies of mimic-cxr-2.1.0-test-set-labeled.csv of which there are no images": ["s59999999"],
    }
    assert found.read == 12
    assert found.counts.set_index(["split", "group"])["studies"].groupby("split").sum().to_dict() == {
        "train": 3, "valid": 1, "test": 3
    }  # fmt: skip
    assert not found.strays


def test_a_few_studies_without_labels_are_left_out_and_counted(tmp_path, caplog):
    """The published lists of labels have eight studies fewer than those of images."""
    root = write_mimic(tmp_path / "MIMIC-CXR-JPG", train=120, valid=40, test=40, size=32)
    name = "mimic-cxr-2.0.0-chexpert.csv.gz"
    lines = gzip.decompress((root / name).read_bytes()).decode().splitlines(keepends=True)
    gone = "s" + lines[1].split(",")[1]
    (root / name).write_bytes(gzip.compress("".join(lines[:1] + lines[2:]).encode()))
    caplog.set_level("INFO")
    table = MIMIC(str(root), view="all").read(root)
    assert len(table.frame) == 199
    assert gone not in set(table.frame["id"])
    assert f"1 studies have no row in {name}, and are left out: {gone}" in caplog.text
    (whole,) = MIMIC(str(root)).whole(root)
    everything = whole.read(root).frame.set_index("id")
    assert len(everything) == 200
    assert everything.loc[gone, list(whole.findings)].isna().all()


def test_the_latest_list_is_taken(tmp_path):
    names = ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.1.0-split.csv")
    for name in (*names, "mimic-cxr-2.1.0-split.csv.part", "cxr-2.2.0-split.csv"):
        (tmp_path / name).touch()
    assert MIMIC().lists(tmp_path) == ("mimic-cxr-2.1.0-split.csv",)
    assert not MIMIC().matches(tmp_path)
    assert not MIMIC().matches(tmp_path / "no")
