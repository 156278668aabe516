"""Sets labelled from reports: each study's findings, patient, views and attributes as a hand writes them down."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from conftest import TINY, compose_config

from xraylab.config.dataset import reader_of
from xraylab.data.datasets.published_tables.reports import OpenI, PadChest
from xraylab.data.integrity import examine
from xraylab.errors import UserError

PADCHEST = """,ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,Report,Labels
0,a.png,0,20140915,S1,P1,1930.0,F,PA,"uno, dos","['pleural effusion', 'cardiomegaly']"
1,b.png,0,20140915,S1,P1,1930.0,F,L,"uno, dos","['pleural effusion', 'cardiomegaly']"
2,c.png,3,20150101,S2,P1,1930.0,F,AP_horizontal,x,['normal']
3,d.png,3,20150101,S3,P2,,M,EXCLUDE,x,['normal']
4,e.png,3,20150101,S4,P3,2000.0,M,PA,x,
5,f.png,3,20150101,S5,P4,2000.0,M,PA,x,"['', 'nodule']"
"""
PROJECTIONS = """uid,filename,projection
1,1a.png,Frontal
1,1b.png,Lateral
2,2a.png,Frontal
3,3a.png,Frontal
4,4a.png,Frontal
"""
REPORTS = """uid,MeSH,Problems,image
1,normal,normal,x
2,Cardiomegaly/borderline,"Cardiomegaly;Pulmonary Disease, Chronic Obstructive",x
3,No Indexing,No Indexing,x
"""


def pictures(root, *places):
    for k, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / place), np.random.default_rng(k).integers(0, 65536, (12, 12)).astype(np.uint16))


def read(name, root, *words):
    reader = reader_of(compose_config(f"dataset={name}", f"dataset.root={root}", *words))
    return reader.read(reader.find())


def by_id(table, column):
    return dict(zip(table.frame["id"], table.frame[column], strict=True))


def labels_of(table):
    return {i: v.tolist() for i, v in zip(table.frame["id"], table.label_values(), strict=True)}


def test_padchest(tmp_path):
    (tmp_path / PadChest.file).write_text(PADCHEST)
    pictures(tmp_path, "0/a.png", "0/b.png", *(f"3/{name}.png" for name in "cdef"))
    table = read("padchest", tmp_path, "findings=[cardiomegaly,Pleural effusion,nodule]", "view=all")
    found = labels_of(table)
    assert np.isnan(found.pop("S4")).all()
    assert found == {"S1": [1, 1, 0], "S2": [0, 0, 0], "S3": [0, 0, 0], "S5": [0, 0, 1]}
    assert by_id(table, "patient") == {"S1": "P1", "S2": "P1", "S3": "P2", "S4": "P3", "S5": "P4"}
    assert by_id(table, "images")["S1"] == ("0/a.png", "0/b.png")
    ages = by_id(table, "attribute/age")
    assert np.isnan(ages.pop("S3"))
    assert ages == {"S1": 84, "S2": 85, "S4": 15, "S5": 15}
    assert by_id(table, "attribute/view") == {"S1": "lateral+pa", "S2": "ap", "S3": "other", "S4": "pa", "S5": "pa"}
    assert by_id(table, "attribute/sex")["S2"] == "F"
    frontal = read("padchest", tmp_path, "findings=[nodule]")
    assert by_id(frontal, "images") == {"S1": ("0/a.png",), "S2": ("3/c.png",), "S4": ("3/e.png",), "S5": ("3/f.png",)}
    (tmp_path / PadChest.file).write_text(PADCHEST.replace(",PA,", ",L,").replace("AP_horizontal", "L"))
    with pytest.raises(UserError, match=r"view=frontal: there is no such image"):
        read("padchest", tmp_path, "findings=[nodule]")
    (tmp_path / PadChest.file).write_text(PADCHEST.replace("\"['', 'nodule']\"", "nodule; mass"))
    with pytest.raises(UserError, match=r"a cell of Labels is no list, .*nodule"):
        read("padchest", tmp_path)


def test_open_i(tmp_path):
    (tmp_path / OpenI.file).write_text(PROJECTIONS)
    (tmp_path / OpenI.reports).write_text(REPORTS)
    pictures(tmp_path / "images" / "images_normalized", *(f"{name}.png" for name in ("1a", "1b", "2a", "3a", "4a")))
    words = ["findings=[cardiomegaly,pulmonary_disease_chronic_obstructive]", "dataset.bits=16"]
    table = read("open_i", tmp_path, *words)
    found = labels_of(table)
    assert np.isnan(found.pop("3")).all(), "not indexed"
    assert np.isnan(found.pop("4")).all(), "no report"
    assert found == {"1": [0, 0], "2": [1, 1]}
    assert by_id(table, "images")["1"] == ("images/images_normalized/1a.png",)
    assert by_id(read("open_i", tmp_path, *words, "view=all"), "images")["1"] == tuple(
        f"images/images_normalized/{name}.png" for name in ("1a", "1b")
    )
    with pytest.raises(UserError, match="Did you mean cardiomegaly"):
        read("open_i", tmp_path, "findings=[cardiomegali]")


@pytest.mark.parametrize("reader", [PadChest, OpenI])
def test_samples_of_reports_are_whole(reader, tmp_path):
    path = reader().write_sample(tmp_path, studies=84)
    found = reader(str(tmp_path), bits=16, on_error="skip")
    findings = examine(found, found.find())
    assert found.find() == path
    assert (findings.faults, findings.strays, findings.verdict[0]) == ({}, [], "synthetic sample")


@pytest.mark.parametrize("name", ["padchest", "open_i"])
def test_a_sample_of_reports_trains(name, here, monkeypatch, tmp_path):
    monkeypatch.setattr("xraylab.reporting.run_report.write_report", lambda _: None)
    network = ["backbone=cnn", "backbone.layers=1", "backbone.filters=2", "max_epochs=1", "cache=off", "accelerator=cpu"]
    words = ["dataset.root=sample", "dataset.sample.studies=84", "findings=[cardiomegaly,pleural_effusion]"]
    code, said = here(f"dataset={name}", *words, *network, "hydra.run.dir=run", *TINY)
    assert code == 0, said
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["splits"]["test"]["n"] > 8
