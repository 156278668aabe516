"""A CSV with columns and words of its own, read as it is: every label, patient, split and attribute as a hand writes it down."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from conftest import TINY

from xraylab.config.dataset import resolved
from xraylab.data.datasets.csv_table import CsvTable
from xraylab.data.datasets.tables.columns import Columns
from xraylab.data.datasets.tables.words import Words
from xraylab.data.study_table import StudyTable
from xraylab.data.synthetic.pictures import draw_picture
from xraylab.errors import UserError

EXPORT = """
Row,ImageId,Accession,Patient ID,Patient Age,Sex,Subset,Pleural Effusion,Nodule
1,a,A1,P1,058Y,F,Training,Positive,NEGATIVE
2,b,A1,P1,058Y,F,Training,Positive,NEGATIVE
3,c,A2,P2,018M,M,Training,unclear,Positive
4,d,A3,P3,old,,Testing,,Negative
5,e,A4,P4,61,F,testing,Negative,Positive
"""
COLUMNS = {
    "id": "Accession", "patient": "Patient ID", "split": "Subset", "images": "images/{ImageId}.png",
    "labels": {"effusion": "Pleural Effusion", "nodule": "Nodule"}, "attributes": {"age": "Patient Age", "sex": "Sex"},
}  # fmt: skip
WORDS = {"Positive": 1, "Negative": 0, "Unclear": -1, "Training": "train", "Testing": "test"}


@pytest.fixture
def folder(tmp_path):
    """Holds ``images/``, pictures a to j."""
    (tmp_path / "images").mkdir()
    for k, name in enumerate("abcdefghij"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((8, 10 + k), k, np.uint8))
    return tmp_path


@pytest.fixture
def read(folder):
    """Write a CSV and read it."""

    def run(text, **options) -> StudyTable:
        (folder / "export.csv").write_text(text.lstrip("\n"), encoding="utf-8")
        reader = CsvTable(str(folder / "export.csv"), **options)
        return reader.read(reader.find())

    return run


def by_id(table, column):
    return dict(zip(table.frame["id"], table.frame[column], strict=True))


def labels_of(table):
    """id -> its labels, in order."""
    return dict(zip(table.frame["id"], table.label_values().tolist(), strict=True))


def test_an_export_is_read_as_it_is(read, caplog):
    table = read(EXPORT, columns=COLUMNS, values=WORDS)
    assert table.labels == ("effusion", "nodule")
    found = labels_of(table)
    assert found.pop("A3")[1] == 0
    assert np.isnan(by_id(table, "effusion")["A3"])
    assert found == {"A1": [1, 0], "A2": [-1, 1], "A4": [0, 1]}
    assert by_id(table, "images")["A1"] == ("images/a.png", "images/b.png")
    assert by_id(table, "patient") == {"A1": "P1", "A2": "P2", "A3": "P3", "A4": "P4"}
    assert by_id(table, "split") == {"A1": "train", "A2": "train", "A3": "heldout", "A4": "heldout"}
    ages = by_id(table, "attribute/age")
    assert np.isnan(ages.pop("A3"))
    assert ages == {"A1": 58, "A2": 1.5, "A4": 61}
    assert by_id(table, "attribute/sex") == {"A1": "F", "A2": "M", "A3": "", "A4": "F"}
    assert "ages that are not read, and not known therefore: 'old'" in caplog.text
    assert "columns that are not used: Row" in caplog.text


def test_the_index_of_pandas_is_no_column(read):
    text = "\n".join(f"{k - 1 if k else ''},{line}" for k, line in enumerate(EXPORT.strip().splitlines())) + "\n"
    assert labels_of(read(text, columns=COLUMNS, values=WORDS))["A1"] == [1, 0]
    with pytest.raises(UserError, match="column 1 has no name"):
        read(text.replace("\n4,", "\n5,"), columns=COLUMNS, values=WORDS)


def test_the_order_of_rows_does_not_matter(read):
    head, *rows = EXPORT.strip().splitlines()
    table, again = (
        read("\n".join([head, *of]) + "\n", columns=COLUMNS, values=WORDS).frame.sort_values("id", ignore_index=True)
        for of in (rows, rows[::-1])
    )
    assert again.drop(columns="images").equals(table.drop(columns="images"))
    assert [sorted(images) for images in again["images"]] == [sorted(images) for images in table["images"]]


def test_texts_are_made_of_several_columns():
    columns = Columns({"id": "{patient}/{study}", "images": "{patient}/{study}/{file}"})
    assert columns.used() == {"patient", "study", "file"}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": "Acession"}, r"columns\.id=Acession: there is no such column of .* Did you mean Accession\?"),
        ({"images": "{Imageid}.png"}, r"columns\.images=\{Imageid\}\.png: there is no such column .* Did you mean ImageId\?"),
        ({"attributes": ["Agee"]}, r"columns\.attributes: there is no such column as Agee"),
        ({"ids": "Accession"}, r"columns\.ids: it is one of id, patient, .* Did you mean id"),
        ({"id": ["Accession"]}, r"columns\.id=\['Accession'\]: it is a column, or a text with columns in braces"),
        ({"labels": {"Sex": "Nodule"}}, r"columns\.labels: Sex: .* has a column of that name, which is another"),
    ],
)
def test_columns_that_are_not_there_are_named(read, columns, said):
    with pytest.raises(UserError, match=said):
        read(EXPORT, columns=COLUMNS | columns, values=WORDS)


def test_words_mean_what_they_are_said_to(read, caplog):
    with pytest.raises(UserError, match=r"1 labels effusion other than 1, 0, -1 and blank: A2 \('unclear', line 4\)"):
        read(EXPORT, columns=COLUMNS, values={k: v for k, v in WORDS.items() if k != "Unclear"})
    assert np.isnan(by_id(read(EXPORT, columns=COLUMNS, values=WORDS | {"unclear": None, "maybe": 1}), "effusion")["A2"])
    assert "values: words that are in no cell" in caplog.text
    assert "maybe" in caplog.text
    for values in ({"Positive": 2}, {"Positive": "yes"}, {"Positive": True}):
        with pytest.raises(UserError, match="a word means 1, 0, -1"):
            Words(values)
    with pytest.raises(UserError, match="it says what words mean"):
        Words([1])
    assert np.isnan(Words({None: None, "N/A": None}).label("NULL"))
    assert [Words({2: 1, 1: 0}).label(cell) for cell in ("2", "2.0", "1", "0")] == [1, 1, 0, 0]


def test_rows_of_a_study_that_do_not_agree_are_named(read):
    with pytest.raises(UserError, match=r"2 ids whose rows do not agree: A1 \(in effusion\), A4 \(in patient\)"):
        read(
            EXPORT.replace("2,b,A1,P1,058Y,F,Training,Positive", "2,b,A1,P1,058Y,F,Training,Negative")
            + "6,f,A4,P5,61,F,Testing,Negative,Positive\n",
            columns=COLUMNS,
            values=WORDS,
        )


def test_a_table_of_other_columns_is_shown_the_way(read):
    with pytest.raises(UserError, match=r"no column id.*python -m xraylab\.check dataset=table dataset\.root=.*export\.csv"):
        read(EXPORT)


# ---- class names ------------------------------------------------------------------------------------------------------


def classes(*rows, **options):
    """A table of one column of class names, and how it is read."""
    lines = [f"{study},{image},{'test' if i % 2 else 'train'},{cell}" for i, (study, image, cell) in enumerate(rows)]
    columns = {"images": "images/{file}.png", "labels": ["diagnosis"]}
    return "\n".join(["id,file,split,diagnosis", *lines]) + "\n", {"columns": columns, **options}


def test_two_classes_are_one_label(read):
    text, how = classes(("1", "a", "normal"), ("2", "b", "pneumonia"), ("3", "c", "Pneumonia"), ("4", "d", "normal"))
    table = read(text, **how)
    assert table.labels == ("Pneumonia",), "the case of a name does not matter"
    assert not table.exclusive
    assert labels_of(table) == {"1": [0], "2": [1], "3": [1], "4": [0]}
    text, how = classes(("1", "a", "benign"), ("2", "b", "malignant"), ("3", "c", "malignant"), ("4", "d", "benign"))
    with pytest.raises(UserError, match=r"'values=\{benign: 0, malignant: 1\}'"):
        read(text, **how)
    table = read(text, **how, values={"benign": 0, "malignant": 1})
    assert table.labels == ("diagnosis",)
    assert labels_of(table) == {"1": [0], "2": [1], "3": [1], "4": [0]}


def test_more_classes_exclude_each_other(read, folder, compose):
    text, how = classes(("1", "a", "normal"), ("2", "b", "viral"), ("3", "c", "bacterial"), ("4", "d", "viral"))
    table = read(text, **how)
    assert table.exclusive
    assert table.labels == ("bacterial", "normal", "viral")
    assert labels_of(table) == {"1": [0, 1, 0], "2": [0, 0, 1], "3": [1, 0, 0], "4": [0, 0, 1]}
    typed = ["dataset=table", f"dataset.root={folder / 'export.csv'}", "columns.labels=[diagnosis]", "columns.images=file"]
    assert resolved(compose(*typed), typed).config.loss["_target_"].endswith("CrossEntropy")
    torn, how = classes(("1", "a", "normal"), ("1", "b", "viral"), ("2", "c", "bacterial"), ("3", "d", "viral"))
    torn = torn.replace("1,b,test", "1,b,train")
    with pytest.raises(UserError, match=r"rows of one id that name different classes .*: 1 \('normal', line 2\), 1 \('viral'"):
        read(torn, **how)
    assert labels_of(read(torn, **how, exclusive=False)) == {"1": [0, 1], "2": [1, 0], "3": [0, 1]}, "normal is no finding"


def test_grades_are_classes_by_number(read):
    text, how = classes(*((str(k), "abcdefghij"[k], str(k % 5)) for k in range(10)))
    table = read(text, **how, exclusive=True)
    assert table.labels == tuple(f"diagnosis_{k}" for k in range(5))
    assert labels_of(table)["7"] == [0, 0, 1, 0, 0]
    with pytest.raises(UserError, match=r"rows of another class than 0, 1, 2, 3: 4 \('4', line 6\), 9"):
        read(text, **how, exclusive=True, classes=[0, 1, 2, 3])


def test_cells_of_several_findings_are_labels(read, caplog):
    caplog.set_level("INFO")
    rows = (("1", "a", "Mass|Nodule/Mass"), ("2", "b", "No Finding"), ("3", "c", "Mass"), ("4", "d", ""))
    text, how = classes(*rows)
    table = read(text, **how)
    assert not table.exclusive
    assert table.labels == ("Mass", "Nodule_Mass")
    assert "'No Finding' says that there is no finding, and is no label" in caplog.text
    found = labels_of(table)
    assert np.isnan(found.pop("4")).all()
    assert found == {"1": [1, 1], "2": [0, 0], "3": [1, 0]}
    assert read(text, **how, classes=["Nodule/Mass"]).labels == ("Nodule_Mass",)
    with pytest.raises(UserError, match=r"no row is of the class Masss\. Did you mean Mass"):
        read(text, **how, classes=["Masss"])


def test_rows_of_findings_are_joined_and_name_their_picture_once(read, caplog):
    caplog.set_level("INFO")
    rows = (("1", "a", "Mass"), ("2", "b", "No finding"), ("1", "a", "Nodule"), ("3", "c", "Nodule"))
    text, how = classes(*rows, exclusive=False)
    table = read(text, **how)
    assert labels_of(table) == {"1": [1, 1], "2": [0, 0], "3": [0, 1]}
    assert by_id(table, "images")["1"] == ("images/a.png",)
    assert "1 rows name a picture that an earlier row of their study names" in caplog.text


def test_ids_are_no_classes(read):
    text, how = classes(*((str(k), "abcdefghij"[k % 10], f"report {k}") for k in range(30)))
    with pytest.raises(UserError, match=r"30 different texts in 30 rows are no classes"):
        read(text, **how)


# ---- from the command line --------------------------------------------------------------------------------------------


def test_a_table_as_it_is_trains(here, tmp_path, monkeypatch):
    monkeypatch.setattr("xraylab.reporting.run_report.write_report", lambda _: None)
    (tmp_path / "images").mkdir()
    lines = ["ImageId,PatientID,Age,Set,Finding"]
    for k in range(40):
        picture = draw_picture(np.random.default_rng(k), blob=k % 2 == 1)
        assert cv2.imwrite(str(tmp_path / "images" / f"{k}.jpg"), picture)
        lines.append(f"{k},P{k // 2},{30 + k:03d}Y,{'val' if k // 2 % 4 == 3 else 'TRAIN'},{('absent', 'Present')[k % 2]}")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    words = (
        "dataset=table", "dataset.root=mine.csv", "columns.id=ImageId", "columns.patient=PatientID",
        "columns.images=images/{ImageId}.jpg", "columns.labels=[Finding]", "columns.split=Set", "columns.attributes=[Age]",
        "values={Present: 1, Absent: 0}", "backbone=cnn", "backbone.layers=1", "backbone.filters=2", "max_epochs=1", "cache=off",
        "accelerator=cpu", "hydra.run.dir=run", *TINY,
    )  # fmt: skip
    code, said = here(*words)
    assert code == 0, said
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["splits"]["test"]
    assert (found["n"], found["labels"]["Finding"]["positives"]["value"]) == (10, 5)
    header = (tmp_path / "run" / "predictions" / "test.csv").read_text().splitlines()[0]
    assert "age" not in header.lower(), "attributes stay in the study table"
