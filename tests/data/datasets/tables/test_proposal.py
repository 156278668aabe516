"""What is proposed of an unknown CSV: that it is right, that what is not known is said, and that the command trains."""

from __future__ import annotations

import json
import re
import shlex

import cv2
import numpy as np
import pytest
from conftest import TINY

from xraylab import check
from xraylab.data.datasets.csv_table import CsvTable
from xraylab.data.datasets.tables.proposal import propose
from xraylab.data.synthetic.pictures import draw_picture

SMALL = [
    "backbone=cnn", "backbone.layers=1", "backbone.filters=2", "max_epochs=1", "cache=off", "accelerator=cpu",
    "hydra.run.dir=run", *TINY,
]  # fmt: skip


@pytest.fixture
def proposed(tmp_path):
    """Write a CSV, and pictures at the places named; what is proposed of it."""

    def run(text, *places):
        for k, place in enumerate(places):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(tmp_path / place), np.full((8, 9 + k % 5), k % 256, np.uint8))
        (tmp_path / "some.csv").write_text(text.lstrip("\n"))
        return propose(tmp_path / "some.csv")

    return run


def table(head, row, number=24):
    return "\n".join([head, *(row(k) for k in range(number))]) + "\n"


def test_columns_are_told_by_names_words_and_files(proposed):
    text = table(
        "ImageId,PatientID,PatientAge,ViewPosition,Set,Edema,Note",
        lambda k: f"x{k},P{k // 2},0{30 + k}Y,PA,{('train', 'val')[k % 4 == 3]},{('Present', 'absent')[k % 2]},seen {k}",
    )
    found = proposed(text, *(f"images/x{k}.png" for k in range(24)))
    assert found.columns == {
        "images": "images/{ImageId}.png", "patient": "PatientID", "id": "ImageId", "split": "Set", "labels": ["Edema"],
        "attributes": {"view": "ViewPosition", "age": "PatientAge"},
    }  # fmt: skip
    assert found.values == {"Present": 1, "absent": 0}
    assert found.unused == ["Note"]
    assert "column ImageId: 24 of 24 name files in and below images" in "\n".join(found.text())


def test_paths_of_another_machine_are_taken_by_their_names(proposed):
    text = table("path,sick", lambda k: f"C:\\export\\pat{k // 2}\\x{k}.dcm,{k % 2}")
    found = proposed(text, *(f"png/x{k}.png" for k in range(24)))
    assert found.columns["images"] == "png/{path:stem}.png"
    assert found.columns["patient"] == "{path:2}"
    text = table("path,sick", lambda k: f"/mnt/a/p{k}/x.png,{k % 2}")
    assert proposed(text, *(f"p{k}/x.png" for k in range(24))).columns["images"] == "{path:2:}"


def test_folders_may_be_cells(proposed):
    text = table(
        "file,patient,study,dx", lambda k: f"{k % 3}.png,p{k // 6},study{k // 3 % 2},{('bulge', 'tear', 'normal')[k // 3 % 3]}"
    )
    found = proposed(text, *(f"x/p{k // 6}-study{k // 3 % 2}/{k % 3}.png" for k in range(24)))
    assert found.columns.get("id") == "{patient}/{study}"
    assert "images" not in found.columns
    found = proposed(
        "name,kind\n" + "".join(f"n{k},{('cat', 'dog')[k % 2]}\n" for k in range(20)),
        *(f"y/{('cat', 'dog')[k % 2]}/n{k}.jpg" for k in range(20)),
    )
    assert found.columns["images"] == "y/{kind}/{name}.jpg"


def test_class_names_and_grades(proposed, tmp_path):
    pictures = [f"{k}.png" for k in range(24)]
    found = proposed(
        table("image_id,class_name,rad", lambda k: f"{k // 2},{('Mass', 'Nodule', 'No finding')[k % 3]},R{k}"), *pictures
    )
    assert found.columns["labels"] == ["class_name"]
    assert found.dataset == {"exclusive": False}, "rows of one picture name several"
    found = proposed(table("name,KL", lambda k: f"{k},{k % 5}"), *pictures)
    assert (found.columns["labels"], found.dataset) == (["KL"], {"exclusive": True})
    found = proposed(table("name,result", lambda k: f"{k},{('benign', 'malignant')[k % 2]}"), *pictures)
    assert found.values == {"benign": 0, "malignant": 1}
    assert "a guess: say which of the two is positive" in "\n".join(found.text())
    assert "values={benign: 0, malignant: 1}" in found.command(tmp_path / "some.csv")
    found = proposed(table("name,result", lambda k: f"{k},{('gutartig', 'bösartig')[k % 2]}"), *pictures)
    assert "A command line cannot hold these words" in "\n".join(found.text())
    assert "values=" not in found.command(tmp_path / "some.csv")


def test_findings_of_a_cell_are_class_names(proposed):
    kinds = ("No Finding", "Mass|Nodule", "Edema", "Mass")
    text = table("uid,Image Index,Finding Labels", lambda k: f"{k // 2},{k}.png,{kinds[k // 2 % 4]}")
    found = proposed(text, *(f"{k}.png" for k in range(24)))
    assert found.columns == {"images": "Image Index", "id": "uid", "labels": ["Finding Labels"]}
    assert found.dataset == {}


def test_what_is_not_known_is_said(proposed):
    found = proposed("code,comment\na,first\nb,second\n")
    said = "\n".join(found.text())
    assert not found.whole
    for words in (
        "there is no picture in or below",
        "no column holds 1, 0, -1",
        "two studies of one patient may come into train",
    ):
        assert words in said
    assert re.search(r"images +not known", said)


def export(root, number=40):
    """Pictures and a CSV with columns of its own, in which every other study is positive."""
    (root / "films").mkdir()
    lines = ["Film,Patient No,Age,Gender,Result (read by R1)"]
    for k in range(number):
        assert cv2.imwrite(str(root / "films" / f"film {k}.jpg"), draw_picture(np.random.default_rng(k), blob=k % 2 == 1))
        lines.append(f"film {k},{k // 2},{30 + k},{'MF'[k // 2 % 2]},{('Negative', 'Positive')[k % 2]}")
    (root / "my export.csv").write_text("\n".join(lines))


def test_the_command_that_is_printed_trains(here, tmp_path, monkeypatch):
    monkeypatch.setattr("xraylab.reporting.run_report.write_report", lambda _: None)
    export(tmp_path)
    code, said = here("dataset=table", "dataset.root='my export.csv'", *SMALL)
    assert code == 2
    line = next(line for line in said.splitlines() if "xraylab.check" in line)
    _, _, name, *words = shlex.split(line.partition("columns may be: ")[2])
    assert name == "xraylab.check"
    code, said = here(*words, entry=check.main)
    assert code == 0, said
    assert "Read so, there are 40 studies" in said
    assert "column Film: 40 of 40 name files in and below films" in said
    to_check, to_train = (shlex.split(line) for line in said.splitlines()[-2:])
    code, said = here(*to_check[3:], entry=check.main)
    assert code == 0, said
    assert "no faults" in said
    assert to_train[:3] == ["python", "-m", "xraylab.train"]
    code, said = here(*to_train[3:], *SMALL)
    assert code == 0, said
    splits = json.loads((tmp_path / "run" / "evaluation.json").read_text())["splits"]
    counts = {split: of["labels"]["Result (read by R1)"]["positives"]["value"] for split, of in splits.items()}
    expected = CsvTable(
        str(tmp_path / "my export.csv"),
        columns={"id": "Film", "patient": "Patient No", "images": "films/{Film}.jpg"},
        labels=["Result (read by R1)"],
        values={"Positive": 1, "Negative": 0},
    )
    held = expected.read(expected.find()).part("heldout")
    assert counts["test"] == held["Result (read by R1)"].sum()


def test_a_table_that_can_be_read_is_checked_as_before(tmp_path):
    (tmp_path / "t.csv").write_text("id,images,sick\na,a.png,1\nb,b.png,0\n")
    assert CsvTable().proposal(tmp_path / "t.csv") is None
    (tmp_path / "t.csv").write_text("name,sick\na,1\nb,0\n")
    assert "What is not known has to be said: columns.id=<column> columns.images=<column>" in CsvTable().proposal(
        tmp_path / "t.csv"
    )
    assert CsvTable(columns={"id": "name"}).proposal(tmp_path / "t.csv") is None, "columns that were given are not guessed at"
