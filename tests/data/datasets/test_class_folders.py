"""Published sets of class folders: each picture's label, patient and split as a hand writes them down, and that samples train."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from conftest import TINY, compose_config

from xraylab.config.dataset import reader_of, resolved
from xraylab.data.datasets.class_folders import CovidQuEx, KneeGrades, PediatricPneumonia
from xraylab.data.integrity import examine

NAMES = ("pediatric_pneumonia", "covid_qu_ex", "knee_grades")


def tree(root, *places):
    """Pictures of different values at these places."""
    for k, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / place), np.random.default_rng(k).integers(0, 256, (12, 12), np.uint8))
    return root


def read(name, root):
    reader = reader_of(compose_config(f"dataset={name}", f"dataset.root={root}"))
    return reader.read(reader.find())


def facts(table):
    """id -> patient, split and the labels that are 1."""
    rows = zip(table.frame["id"], table.frame["patient"], table.frame["split"], table.label_values(), strict=True)
    return {i: (p, s, [x for x, v in zip(table.labels, values, strict=True) if v == 1]) for i, p, s, values in rows}


def test_pneumonia_of_children(tmp_path):
    root = tree(
        tmp_path / "chest_xray", "train/NORMAL/IM-0115-0001.jpeg", "train/NORMAL/NORMAL2-IM-0435-0001-0002.jpeg",
        "train/PNEUMONIA/person1_bacteria_1.jpeg", "train/PNEUMONIA/person1_bacteria_2.jpeg",
        "val/NORMAL/NORMAL2-IM-1427-0001.jpeg", "val/PNEUMONIA/person1946_bacteria_4874.jpeg", "test/NORMAL/IM-0001-0001.jpeg",
        "test/PNEUMONIA/person1_virus_6.jpeg",
    )  # fmt: skip
    table = read("pediatric_pneumonia", tmp_path)
    assert table.labels == ("PNEUMONIA",)
    assert facts(table) == {
        "train/NORMAL/IM-0115-0001": ("train/NORMAL/IM-0115", "train", []),
        "train/NORMAL/NORMAL2-IM-0435-0001-0002": ("train/NORMAL/NORMAL2-IM-0435", "train", []),
        "train/PNEUMONIA/person1_bacteria_1": ("train/PNEUMONIA/person1", "train", ["PNEUMONIA"]),
        "train/PNEUMONIA/person1_bacteria_2": ("train/PNEUMONIA/person1", "train", ["PNEUMONIA"]),
        "val/NORMAL/NORMAL2-IM-1427-0001": ("val/NORMAL/NORMAL2-IM-1427", "train", []),
        "val/PNEUMONIA/person1946_bacteria_4874": ("val/PNEUMONIA/person1946", "train", ["PNEUMONIA"]),
        "test/NORMAL/IM-0001-0001": ("test/NORMAL/IM-0001", "heldout", []),
        "test/PNEUMONIA/person1_virus_6": ("test/PNEUMONIA/person1", "heldout", ["PNEUMONIA"]),
    }
    findings = examine(PediatricPneumonia(str(root)), root)
    assert findings.verdict == ("partial", "less than published: all images 8, published 5,856; train images 6, published 5,232; "
                                "test images 2, published 624")  # fmt: skip


def test_covid_and_other_infections(tmp_path):
    inside = "COVID-QU-Ex/Lung Segmentation Data/Lung Segmentation Data"
    kinds = (("COVID-19", "covid"), ("Non-COVID", "non_COVID"), ("Normal", "Normal"))
    places = [f"{s}/{kind}/images/{name}_{s}.png" for s in ("Train", "Val", "Test") for kind, name in kinds]
    tree(tmp_path, *(f"{inside}/{p}" for p in places), *(f"{inside}/{p.replace('images', 'lung masks')}" for p in places))
    table = read("covid_qu_ex", tmp_path)
    assert table.exclusive
    splits = {"Train": "train", "Val": "valid", "Test": "test"}
    assert facts(table) == {p.removesuffix(".png"): ("", splits[p.split("/")[0]], [p.split("/")[1]]) for p in places}, (
        "masks are no pictures"
    )
    assert table.name == "COVID-QU-Ex"
    for root in (tmp_path / "COVID-QU-Ex", tmp_path / inside):
        assert len(read("covid_qu_ex", root).frame) == 9


def test_grades_of_knees_exclude_each_other(tmp_path):
    places = [
        f"{s}/{grade}/{9000000 + k}{'LR'[grade % 2]}.png" for k, s in enumerate(("train", "val", "test")) for grade in range(5)
    ]
    tree(tmp_path / "kneeKL224", *places, "auto_test/0/1L.png")
    typed = ["dataset=knee_grades", f"dataset.root={tmp_path}"]
    found = resolved(compose_config(*typed), typed)
    assert found.config.loss["_target_"].endswith("CrossEntropy")
    table = found.reader.read(found.path)
    assert table.exclusive
    splits = {"train": "train", "val": "valid", "test": "test"}
    assert facts(table) == {
        p.removesuffix(".png"): (p.split("/")[2][:7], splits[p.split("/")[0]], [f"grade_{p.split('/')[1]}"]) for p in places
    }


@pytest.mark.parametrize("reader", [PediatricPneumonia, CovidQuEx, KneeGrades])
def test_samples_say_that_they_are_synthetic(reader, tmp_path):
    one, again = (reader(str(reader().write_sample(tmp_path / name, train=10, val=5, test=5))) for name in "ab")
    table, same = (r.read(r.find()) for r in (one, again))
    assert table.synthetic
    assert same.frame.equals(table.frame)
    assert one.published_name in str(one.find())


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_trains(name, here, monkeypatch, tmp_path):
    monkeypatch.setattr("xraylab.reporting.run_report.write_report", lambda _: None)
    small = ["dataset.sample.train=40", "dataset.sample.test=20", "max_epochs=1", "cache=off", "accelerator=cpu"]
    network = ["backbone=cnn", "backbone.layers=1", "backbone.filters=2", "hydra.run.dir=run", *TINY]
    code, said = here(f"dataset={name}", "dataset.root=sample", *small, *network)
    assert code == 0, said
    test = json.loads((tmp_path / "run" / "evaluation.json").read_text())["splits"]["test"]
    assert test["n"] == 20
