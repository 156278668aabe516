"""The pictures of a report: which cases, and that each picture is that of its study."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest

from xraylab.data.images.source import ImageSource
from xraylab.data.study_table import StudyTable
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.inference.cases import ALL, KINDS, choose_cases, write_cases
from xraylab.reporting.sections.cases import cases_section, listed_section


class Numbered(ImageSource):
    """Images whose grey is the number of the study and whose first row is that of the slice or view."""

    def __init__(self, slices):
        self.slices = slices

    def read(self, images):
        out = np.zeros((len(images) * self.slices, 300, 400), np.uint8)
        for k, reference in enumerate(images):
            study, view = map(int, reference.split("/"))
            out[k * self.slices : (k + 1) * self.slices] = study
            for s in range(self.slices):
                out[k * self.slices + s, :100] = 100 + view * 10 + s
        return out

    def shape(self, image):
        return (self.slices, 300, 400)


def study_table(views, slices, references, n=40, labels=("acl",)):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "patient": "", "group": "g", "split": "test"})
    frame["images"] = [tuple(f"{i}/{k}" for k in range(references)) for i in range(n)]
    for label in labels:
        frame[label] = rng.integers(0, 2, n).astype(float)
    return StudyTable(frame, tuple(labels), Numbered(slices), "Made-v1", views=views)


def predictions_of(table, seed=1):
    rows = np.arange(5, len(table.frame))
    p = np.random.default_rng(seed).random((len(rows), len(table.labels)))
    return PredictionTable.of_studies(table.frame, table.labels, "test", rows, p).frame, rows


def test_the_most_confident_mistakes_come_first():
    table = study_table(True, 1, 1, n=200)
    predictions, _ = predictions_of(table)
    predictions.loc[3, "y_acl"] = -1
    predictions.loc[3, "p_acl"] = 1.0
    cases = choose_cases(PredictionTable(predictions), 12)
    assert cases["kind"].value_counts().to_dict() == dict(zip(KINDS, (4, 4, 2, 2), strict=True))
    negative = predictions[predictions["y_acl"] == 0].sort_values("p_acl")
    positive = predictions[predictions["y_acl"] == 1].sort_values("p_acl")
    assert cases.loc[cases["kind"] == KINDS[0], "id"].tolist() == negative["id"][::-1][:4].tolist()
    assert cases.loc[cases["kind"] == KINDS[1], "id"].tolist() == positive["id"][:4].tolist()
    assert cases.loc[cases["kind"] == KINDS[2], "id"].tolist() == positive["id"][::-1][:2].tolist()
    assert cases.loc[cases["kind"] == KINDS[3], "id"].tolist() == negative["id"][:2].tolist()
    assert predictions.loc[3, "id"] not in cases["id"].tolist(), "uncertain labels are neither right nor wrong"
    assert (
        predictions.loc[3, "id"] in choose_cases(PredictionTable(predictions), 12, Scoring(uncertain="negative"))["id"].tolist()
    )


@pytest.mark.parametrize(("labels", "expected"), [(2, 24), (14, 56), (30, 60), (70, 60)])
def test_there_are_never_more_than_sixty(labels, expected):
    table = study_table(True, 1, 1, n=200, labels=[f"l{k}" for k in range(labels)])
    assert len(choose_cases(PredictionTable(predictions_of(table)[0]), 12)) == expected <= ALL


def test_a_model_without_mistakes_has_right_calls_only():
    table = study_table(True, 1, 1)
    predictions, _ = predictions_of(table)
    predictions["p_acl"] = 0.1 + 0.8 * predictions["y_acl"]
    assert set(choose_cases(PredictionTable(predictions), 12)["kind"]) == set(KINDS[2:])
    assert choose_cases(PredictionTable(predictions), 0).empty


def test_cases_without_images_are_listed():
    predictions, _ = predictions_of(study_table(True, 1, 1, n=200))
    cases = choose_cases(PredictionTable(predictions), 12)
    page = listed_section(PredictionTable(predictions), "test", "theirs <1>.csv", Scoring())
    assert "theirs &lt;1&gt;.csv" in page
    assert [html.split("</td>")[0] for html in page.split("<td>acl</td><td>")[1:]] == list(KINDS)
    words = [f"{case.id} {case.p:.3f}" for case in cases.itertuples()]
    assert [page.index(w) for w in words] == sorted(page.index(w) for w in words), "in their order"
    predictions["y_acl"] = np.nan
    assert listed_section(PredictionTable(predictions), "test", "x", Scoring()) == ""


@pytest.mark.parametrize(
    ("views", "slices", "references", "what", "grey"),
    [
        (True, 1, 3, "view 1 of 3", 100),
        (False, 5, 1, "slice 3 of 5", 102),
        (False, 1, 4, "slice 3 of 4", 120),
        (True, 1, 1, "", 100),
    ],
)
def test_each_picture_is_of_its_study(tmp_path, views, slices, references, what, grey):
    table = study_table(views, slices, references)
    predictions, rows = predictions_of(table)
    write_cases(tmp_path, table, PredictionTable(predictions), rows, 12)
    cases = pd.read_csv(tmp_path / "figures" / "cases" / "cases.csv", keep_default_na=False)
    for case in cases.itertuples():
        image = cv2.imread(str(tmp_path / "figures" / "cases" / case.picture), cv2.IMREAD_GRAYSCALE)
        assert image.shape == (144, 192)
        assert (image[0, 0], image[-1, -1]) == (grey, int(case.id[1:]))
        assert case.what == what
        assert predictions.set_index("id").loc[case.id, "p_acl"] == pytest.approx(case.p)
    page = cases_section(tmp_path)
    assert page.count("<img") == len(cases)
    assert "Made-v1" in page
    write_cases(tmp_path, table, PredictionTable(predictions), rows, 0)
    assert not (tmp_path / "figures" / "cases").exists(), "those of an earlier evaluation do not stay"
    assert cases_section(tmp_path) == ""
