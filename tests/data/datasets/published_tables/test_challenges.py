"""Sets of challenges: each image's label as a hand writes it down, whatever the order of rows, and that samples train."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from conftest import TINY, compose_config

from xraylab.config.dataset import reader_of
from xraylab.data.datasets.published_tables.challenges import RSNAPneumonia, SIIMPneumothorax, VinDrCXR
from xraylab.data.integrity import examine
from xraylab.errors import UserError

pytest.importorskip("pydicom")
NAMES = ("rsna_pneumonia", "siim_pneumothorax", "vindr_cxr")
BOXES = """patientId,x,y,width,height,Target
a,,,,,0
b,264.0,152.0,213.0,379.0,1
b,562.0,152.0,256.0,453.0,1
c,,,,,0
d,1,2,3,4,1
"""
MASKS = """ImageId, EncodedPixels
1.2.a, -1
1.2.b, 175349 7 1013 12
1.2.b, 407576 2 1021 7
1.2.c,-1
1.2.d,
"""


def read(name, root, *words):
    reader = reader_of(compose_config(f"dataset={name}", f"dataset.root={root}", *words))
    return reader.read(reader.find())


def pictures(root, *places):
    """PNG files, as copies of a challenge have them."""
    for k, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / place), np.random.default_rng(k).integers(0, 256, (12, 12), np.uint8))


def labels_of(table):
    return dict(zip(table.frame["id"], table.label_values().tolist(), strict=True))


def shuffled(file):
    """Turn the rows of a CSV round."""
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *rows[::-1]]) + "\n")


def test_boxes_of_a_picture_are_one_study(tmp_path):
    (tmp_path / "stage_2_train_labels.csv").write_text(BOXES)
    pictures(tmp_path, *(f"png/{name}.png" for name in "abcd"))
    copy = 'dataset.columns={images: "png/{patientId}.png"}'
    for _ in range(2):
        table = read("rsna_pneumonia", tmp_path, copy)
        assert table.labels == ("pneumonia",)
        assert labels_of(table) == {"a": [0], "b": [1], "c": [0], "d": [1]}
        assert not table.patients_known
        assert dict(zip(table.frame["id"], table.frame["images"], strict=True))["b"] == ("png/b.png",)
        shuffled(tmp_path / "stage_2_train_labels.csv")
    (tmp_path / "stage_2_train_labels.csv").write_text(
        BOXES.replace("b,562.0,152.0,256.0,453.0,1", "b,562.0,152.0,256.0,453.0,0")
    )
    with pytest.raises(UserError, match=r"1 ids whose rows do not agree: b \(in pneumonia\)"):
        read("rsna_pneumonia", tmp_path, copy)


def test_masks_say_whether_there_is_a_pneumothorax(tmp_path):
    (tmp_path / "train-rle.csv").write_text(MASKS)
    pictures(tmp_path, *(f"dicom-images-train/s{name}/x{name}/1.2.{name}.png" for name in "abcd"))
    for _ in range(2):
        table = read("siim_pneumothorax", tmp_path)
        found = labels_of(table)
        assert np.isnan(found.pop("1.2.d")).all()
        assert found == {"1.2.a": [0], "1.2.b": [1], "1.2.c": [0]}
        assert dict(zip(table.frame["id"], table.frame["images"], strict=True))["1.2.b"] == (
            "dicom-images-train/sb/xb/1.2.b.png",
        )
        shuffled(tmp_path / "train-rle.csv")
    (tmp_path / "dicom-images-train" / "sa" / "xa" / "1.2.a.png").unlink()
    with pytest.raises(UserError, match=r"1 missing image files: 1\.2\.a \(dicom-images-train/1\.2\.a\.dcm\)"):
        read("siim_pneumothorax", tmp_path)


READERS = """image_id,rad_id,Cardiomegaly,Nodule/Mass,Other diseases,No finding
a,R1,1,0,0,0
a,R2,1,1,0,0
a,R3,0,0,0,1
b,R1,1,0,1,0
b,R4,1,0,1,0
b,R9,1,0,1,0
"""
AGREED = "image_id,Cardiomegaly,Nodule/Mass,Other disease,No finding\nc,0,1,0,0\n"


@pytest.mark.parametrize(
    ("consensus", "a"), [("majority", [1, 0, 0]), ("any", [1, 1, 0]), ("all", [0, 0, 0]), ("uncertain", [-1, -1, 0])]
)
def test_readers_agree_as_they_are_told_to(tmp_path, consensus, a):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "image_labels_train.csv").write_text(READERS)
    (tmp_path / "annotations" / "image_labels_test.csv").write_text(AGREED)
    pictures(tmp_path, "train/a.png", "train/b.png", "test/c.png")
    words = ["findings=[cardiomegaly,Nodule/Mass,other_diseases]", 'dataset.columns={images: "{split}/{image_id}.png"}']
    for _ in range(2):
        table = read("vindr_cxr", tmp_path, *words, f"dataset.consensus={consensus}")
        assert table.labels == ("cardiomegaly", "nodule_mass", "other_diseases")
        assert labels_of(table) == {"a": a, "b": [1, 0, 1], "c": [0, 1, 0]}
        assert dict(zip(table.frame["id"], table.frame["split"], strict=True)) == {"a": "train", "b": "train", "c": "heldout"}
        shuffled(tmp_path / "annotations" / "image_labels_train.csv")
    with pytest.raises(UserError, match=r"consensus=vote: it is one of majority, any, all, uncertain"):
        VinDrCXR(consensus="vote")
    with pytest.raises(UserError, match="Did you mean cardiomegaly"):
        read("vindr_cxr", tmp_path, "findings=[cardiomegali]", *words[1:])
    (tmp_path / "annotations" / "image_labels_train.csv").write_text(READERS.replace("a,R2,1,1", "a,R2,yes,1"))
    with pytest.raises(UserError, match=r"1 labels cardiomegaly other than 1, 0, -1 and blank: a"):
        read("vindr_cxr", tmp_path, *words)


@pytest.mark.parametrize(
    ("reader", "sizes"),
    [(RSNAPneumonia, {"studies": 24}), (SIIMPneumothorax, {"studies": 24}), (VinDrCXR, {"train": 28, "test": 14})],
)
def test_samples_are_whole_and_synthetic(reader, sizes, tmp_path):
    path = reader().write_sample(tmp_path, **sizes)
    found = reader(str(tmp_path), on_error="skip")
    assert found.find() == path
    findings = examine(found, path)
    assert not findings.faults
    assert not findings.strays
    assert findings.verdict[0] == "synthetic sample"
    again = reader(str(reader().write_sample(tmp_path / "again", **sizes)))
    assert again.read(again.find()).frame.equals(found.read(path).frame)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_a_challenge_trains(name, here, monkeypatch, tmp_path):
    monkeypatch.setattr("xraylab.reporting.run_report.write_report", lambda _: None)
    sizes = ["dataset.sample.train=56", "dataset.sample.test=28"] if name == "vindr_cxr" else ["dataset.sample.studies=80"]
    network = ["backbone=cnn", "backbone.layers=1", "backbone.filters=2", "max_epochs=1", "cache=off", "accelerator=cpu"]
    code, said = here(f"dataset={name}", "dataset.root=sample", *sizes, *network, "hydra.run.dir=run", *TINY)
    assert code == 0, said
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["data"] == "synthetic sample"
    assert evaluation["splits"]["test"]["n"] > 8
