"""What the readers of chest X-rays share."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest

from xraylab.data.datasets import chest_xray as radiographs
from xraylab.data.datasets.chest_xray import KINDS, file_faults, joined, name_wrong, read_list, settled
from xraylab.data.datasets.csv_cells import differing
from xraylab.data.study_table import ALL_LABELS
from xraylab.errors import UserError


def images_of(rows):
    """id, view, image and a label of each row."""
    frame = pd.DataFrame(rows, columns=["id", "view", "image", "edema"])
    whole = frame["edema"].map({1: "1", 0: "0", -1: "u"}).astype(object)
    return frame.assign(patient="p" + frame["id"], split="train", edema=frame["edema"].astype(np.float32), **{ALL_LABELS: whole})


def test_images_become_studies_whatever_their_order():
    rows = [
        ("b", "lateral", "b1", 1), ("b", "ap", "b9", 1), ("a", "other", "a1", 0), ("a", "pa", "a3", 0), ("a", "ap", "a2", 0),
        ("c", "lateral", "c1", -1), ("c", "lateral", "c0", -1),
    ]  # fmt: skip
    expected = {
        "a": ("ap+other+pa", ("a2", "a3", "a1"), 0), "b": ("ap+lateral", ("b9", "b1"), 1), "c": ("lateral", ("c0", "c1"), -1)
    }  # fmt: skip
    for order in itertools.islice(itertools.permutations(rows), 0, 5040, 97):
        frame = joined(images_of(order), ["edema"])
        assert frame["id"].tolist() == list(dict.fromkeys(row[0] for row in order)), "as they come"
        found = zip(frame["group"], frame["images"], frame["edema"], strict=True)
        assert dict(zip(frame["id"], found, strict=True)) == expected
        assert (frame["patient"] == "p" + frame["id"]).all()
        views = dict(zip(frame["id"], frame["views"], strict=True))
        assert views == {"a": ("ap", "pa", "other"), "b": ("ap", "lateral"), "c": ("lateral", "lateral")}
        assert list(frame.columns) == ["id", "patient", "group", "split", "images", "views", "edema", ALL_LABELS]


def test_no_image_makes_no_study():
    frame = joined(images_of([]).astype(str), ["edema"])
    assert frame.empty
    assert list(frame.columns) == ["id", "patient", "group", "split", "images", "views", "edema", ALL_LABELS]


def test_every_kind_of_view_has_a_rank():
    assert set(radiographs.RANK) == set(KINDS)
    assert radiographs.RANK["pa"] == radiographs.RANK["frontal"] < radiographs.RANK["lateral"] < radiographs.RANK["other"]


def test_differing_studies_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    ids = pd.Series(rng.integers(0, 40, 120).astype(str))
    values = pd.DataFrame(
        {"x": rng.choice([0, 1, np.nan], 120, p=[0.8, 0.1, 0.1]), "y": rng.choice(["u", "v"], 120, p=[0.9, 0.1])}
    )
    plain = {}
    for study in ids.unique():
        rows = values[ids == study]
        if columns := [c for c in values if len({str(v) for v in rows[c]}) > 1]:
            plain[study] = columns
    found = differing(ids, values)
    assert found == plain
    assert 5 < len(found) < 40
    assert list(found) == [study for study in ids.unique() if study in found], "in their order"


def test_blanks_agree_and_wrong_labels_are_not_named_twice():
    problems = defaultdict(list)
    rows = [("a", 1), ("a", np.nan), ("b", np.nan), ("b", np.nan), ("c", np.inf), ("c", 1), ("d", 0)]
    left = settled(pd.DataFrame(rows, columns=["id", "edema"]), ["edema"], "x.csv", problems)
    assert left["id"].tolist() == ["b", "b", "d"]
    assert problems == {"studies of x.csv whose images have different labels": ["a (edema)"]}


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1.0", 1),
        ("1", 1),
        (" 0.0 ", 0),
        ("-1.0", -1),
        ("", np.nan),
        ("nan", np.nan),
        ("0.5", None),
        ("yes", None),
        ("inf", None),
    ],
)
def test_labels_are_read_as_they_are(tmp_path, cell, value):
    problems = defaultdict(list)
    (tmp_path / "x.csv").write_text(f"Name,Edema\na,1.0\nb,{cell}\n")
    frame = read_list(tmp_path / "x.csv", ["Name"], problems, ["edema"])
    assert frame.index.tolist() == [2, 3]
    assert frame["name"].tolist() == ["a", "b"]
    assert frame["edema"].dtype == np.float32
    if value is None:
        assert np.isinf(frame["edema"][3])
        assert problems == {"labels in x.csv other than 1, 0, -1 and blank": [f"line 3 (Edema {cell!r})"]}
    else:
        np.testing.assert_array_equal(frame["edema"], [1, value])
        assert not problems


def test_line_numbers_are_those_of_an_editor(tmp_path):
    (tmp_path / "x.csv").write_text('a,b\n1,2\n\n"3\n3",4\n5,6\n\n\n')
    frame = read_list(tmp_path / "x.csv", ["a"], defaultdict(list))
    assert frame["a"].to_dict() == {2: "1", 5: "3\n3", 6: "5"}, "blank lines are no rows"


def test_optional_columns_are_blank_where_they_are_missing(tmp_path):
    (tmp_path / "x.csv").write_text("b\n2\n")
    assert read_list(tmp_path / "x.csv", ["a", "b"], defaultdict(list), optional=["a"]).to_dict("list") == {"b": ["2"], "a": [""]}


def test_a_list_without_rows_is_empty(tmp_path):
    (tmp_path / "x.csv").write_text("Name,Edema\n")
    frame = read_list(tmp_path / "x.csv", ["Name"], defaultdict(list), ["edema"])
    assert frame.shape == (0, 2)


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.csv: cannot be read: No such file"):
        read_list(tmp_path / "x.csv", ["a"], defaultdict(list))


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("../x.jpg", True), ("a/../x.jpg", True), ("/x.jpg", True), ("C:\\x.jpg", True), ("a\\..\\x", True),
        ("a..b/x.jpg", False), ("", False),
    ],
)  # fmt: skip
def test_paths_that_lead_out_have_words_of_their_own(text, out):
    problems = defaultdict(list)
    name_wrong(pd.Series([text], index=[7]), "an image", "x.csv", problems)
    kind = "paths of x.csv that lead out of the dataset's folder" if out else "rows of x.csv that are not an image"
    assert problems == {kind: [f"line 7: {text}"]}


def test_files_are_looked_for_in_order_and_progress_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(radiographs, "CHUNK", 3)
    monkeypatch.setattr("xraylab.system.progress.INTERVAL", 0.0)
    names = [f"{i}.jpg" for i in range(20)]
    for i, name in enumerate(names):
        if i % 3:
            (tmp_path / name).write_bytes(b"x" * (i % 2))
    with caplog.at_level(logging.INFO):
        found = file_faults(tmp_path, names)
    assert found.tolist() == ["missing image files" if i % 3 == 0 else ("", "empty image files")[i % 2 == 0] for i in range(20)]
    assert "looking for image files: 3 of 20, " in caplog.text
    assert file_faults(tmp_path, []).tolist() == []
