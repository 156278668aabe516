"""Readings of people beside the model."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from xraylab.errors import UserError
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.metrics import number
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.reader_study import judge_readers, read_readings
from xraylab.reporting.decisions import readers_table
from xraylab.reporting.figures.curves import panels


@pytest.fixture
def tables():
    out = {}
    for seed, (split, n) in enumerate({"valid": 60, "test": 80}.items()):
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame(
            {"id": [f"{split}/{i}" for i in range(n)], "patient": [f"p{i // 2}" for i in range(n)], "group": "g"}
        )
        frame["acl"] = rng.integers(0, 2, n).astype(float)
        frame["tear"] = np.where(rng.random(n) < 0.2, -1.0, rng.integers(0, 2, n))
        out[split] = PredictionTable.of_studies(frame, ["acl", "tear"], split, np.arange(n), rng.random((n, 2))).frame
    return out


def write(path, tables, wrong=0.2):
    """Two readers of test: one read all of it, the other the first half and no tears."""
    rng = np.random.default_rng(5)
    test = tables["test"]
    rows = []
    for reader, part in (("A", test), ("B", test.head(40))):
        for study in part.to_dict("records"):
            acl = int(study["y_acl"] == 1) ^ int(rng.random() < wrong)
            rows.append(
                {"id": study["id"], "reader": reader, "acl": acl, "tear": "" if reader == "B" else int(rng.random() < 0.5)}
            )
    out = pd.DataFrame(rows).sample(frac=1, random_state=0)  # in any order
    out.to_csv(path, index=False)
    return out


def test_readers_are_judged_on_what_they_read(tables, tmp_path):
    readings = write(tmp_path / "readings.csv", tables)
    splits = {split: evaluate_split(PredictionTable(t), split == "valid", 100) for split, t in tables.items()}
    judge_readers(splits, {k: PredictionTable(t) for k, t in tables.items()}, tmp_path / "readings.csv")
    json.dumps(splits, allow_nan=False)
    assert "readers" not in splits["valid"]
    block = splits["test"]["readers"]
    assert block["file"] == "readings.csv"
    assert {r: b["n"] for r, b in block["readers"].items()} == {"A": 80, "B": 40}
    test = tables["test"].set_index("id")
    for reader, n in (("A", 80), ("B", 40)):
        called = readings[readings["reader"] == reader].set_index("id")["acl"]
        truth, acl = test.loc[called.index, "y_acl"], block["readers"][reader]["labels"]["acl"]
        assert acl["kappa"]["value"] == pytest.approx(sk.cohen_kappa_score(truth, called))
        assert acl["sensitivity"]["value"] == pytest.approx(sk.recall_score(truth, called))
        assert acl["kappa"]["n"] == n
        assert acl["kappa"]["low"] < acl["kappa"]["value"] < acl["kappa"]["high"]
    tears = block["readers"]["A"]["labels"]["tear"]
    assert tears["kappa"]["n"] == (test["y_tear"] >= 0).sum() < 80
    assert block["readers"]["B"]["labels"]["tear"]["kappa"]["reason"] == "no study has a label that is scored"
    page = readers_table("test", block)
    assert f"<td>{number(block['readers']['A']['labels']['acl']['kappa'])}</td>" in page
    figure = panels("roc", PredictionTable(tables["test"]), splits["test"], "test", Scoring())
    points = {p.get_gid(): p.get_offsets()[0] for axes in figure.axes for p in axes.collections}
    assert list(points) == ["acl: reader A", "acl: reader B", "tear: reader A"]
    acl = block["readers"]["B"]["labels"]["acl"]
    assert tuple(points["acl: reader B"]) == pytest.approx((1 - acl["specificity"]["value"], acl["sensitivity"]["value"]))
    assert figure.get_supxlabel() == "1 - specificity\n★ readers"


IDS = {"a": "test", "b": "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study,reader,acl\na,R,1\n", "no column id. It wants id, reader, and a column a finding with 0 or 1."),
        ("id,reader,alc\na,R,1\n", "not findings of the model: alc. Did you mean acl? There are: acl, tear."),
        ("id,reader\na,R\n", "no column of a finding. There are: acl, tear."),
        ("id,reader,acl\na,R,1\nb,R,0.7\n", "acl is not 0, 1 or blank: line 3 (id b, reader R) '0.7'"),
        ("id,reader,acl\na,R,1\na,Q,1\na,R,0\n", "read twice by one reader: line 4 (id a, reader R)"),
        ("id,reader,acl\na,R,1\nc,R,0\nd,R,0\nc,Q,1\n", "ids of no study of test: c, d (2 in all). There they are as a, b."),
    ],
)
def test_what_does_not_match_is_named(tmp_path, text, message):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(UserError) as stop:
        read_readings(tmp_path / "r.csv", ["acl", "tear"], IDS)
    assert str(stop.value) == f"readers={tmp_path / 'r.csv'}: {message}"
    with pytest.raises(UserError, match="cannot be read"):
        read_readings(tmp_path / "none.csv", ["acl"], IDS)


def test_ids_keep_their_zeros_and_blanks_are_not_readings(tmp_path):
    (tmp_path / "r.csv").write_text("id,reader,acl,tear\n0050,1,1,\n0051,1,0,1\n")
    out = read_readings(tmp_path / "r.csv", ["acl", "tear"], {"0050": "test", "0051": "test"})
    assert out["id"].tolist() == ["0050", "0051"]
    (tmp_path / "lost.csv").write_text("id,reader,acl\n50,1,1\n51,1,0\n")
    lost = r"no study of test: 50, 51 \(2 in all\). There they have zeros before them, which spreadsheets drop, as 0050, 0051\."
    with pytest.raises(UserError, match=lost):
        read_readings(tmp_path / "lost.csv", ["acl"], {"0050": "test", "0051": "test"})
    assert np.isnan(out["tear"][0])
