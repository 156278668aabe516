"""Prediction tables of other tools, and every way in which a table can be wrong."""

from __future__ import annotations

import json

import hydra
import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from sklearn.metrics import roc_auc_score

from xraylab import evaluate
from xraylab.errors import UserError
from xraylab.evaluation.ensembles.stacking import fit_stack
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.system.paths import conf_dir

HEADER = "id,patient,group,split,p_acl,y_acl,p_tear,y_tear"
ROWS = ["a,1,knee,test,0.9,1,0.2,0", "b,1,knee,test,0.1,0,0.3,-1", "c,2,knee,test,0.4,0,1e-3,"]


@pytest.fixture
def table(tmp_path):
    """Write lines as a CSV and read it as a table; the error's text if it is refused."""

    def read(lines, columns=None):
        path = tmp_path / "t.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            return PredictionTable.read(path, columns).frame
        except UserError as error:
            return str(error).replace(str(path), "t.csv")

    return read


def test_values_are_those_of_the_file_and_blank_is_not_known(table):
    found = table([HEADER, *ROWS])
    assert found["p_tear"].tolist() == [0.2, 0.3, 0.001]
    assert found["y_tear"].fillna(9).tolist() == [0, -1, 9]
    assert found["patient"].tolist() == ["1", "1", "2"], "ids are texts"
    assert table(["﻿" + HEADER, *ROWS]).equals(found), "a byte order mark is no part of a name"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (",1,knee,test,0.9,1,0.2,0", "1 rows without an id: row 2"),
        ("a,1,knee,test,0.9,1,0.2,0", "1 rows of a study that an earlier row has: row 2 (a)"),
        ("b,1,knee,test,,1,0.2,0", "1 probabilities that are missing or no numbers: row 2 (b): p_acl is blank"),
        ("b,1,knee,test,nan,1,0.2,0", "1 probabilities that are missing or no numbers: row 2 (b): p_acl is nan"),
        ("b,1,knee,test,high,1,0.2,0", "1 probabilities that are missing or no numbers: row 2 (b): p_acl is high"),
        ("b,1,knee,test,1.01,1,0.2,0", "1 probabilities outside 0 to 1: row 2 (b): p_acl is 1.01"),
        ("b,1,knee,test,0.5,1,-0.2,0", "1 probabilities outside 0 to 1: row 2 (b): p_tear is -0.2"),
        ("b,1,knee,test,inf,1,0.2,0", "1 probabilities outside 0 to 1: row 2 (b): p_acl is inf"),
        ("b,1,knee,test,0.5,2,0.2,0", "1 labels other than 1, 0, -1 and blank: row 2 (b): y_acl is 2"),
        ("b,1,knee,test,0.5,1,0.2,0.5", "1 labels other than 1, 0, -1 and blank: row 2 (b): y_tear is 0.5"),
        ("b,1,knee,test,0.5,1,0.2,yes", "1 labels other than 1, 0, -1 and blank: row 2 (b): y_tear is yes"),
        ("b,1,knee,../../evil,0.5,1,0.2,0", "1 splits that cannot name a file: row 2 (b): split is ../../evil"),
        ("b,1,knee,a/b,0.5,1,0.2,0", "1 splits that cannot name a file: row 2 (b): split is a/b"),
        ("b,1,knee,test_images,0.5,1,0.2,0", "1 splits that cannot name a file: row 2 (b): split is test_images"),
        ("b,1,knee,,0.5,1,0.2,0", "1 splits that cannot name a file: row 2 (b): split is blank"),
        ("b,1,knee,..,0.5,1,0.2,0", "1 splits that cannot name a file: row 2 (b): split is .."),
        ("b,1,knee,test,0.5", "1 probabilities that are missing or no numbers: row 2 (b): p_tear is blank"),
    ],
)
def test_a_row_that_is_wrong_is_refused_and_named(table, row, said):
    text = table([HEADER, ROWS[0], row, ROWS[2]])
    assert text == f"t.csv: a prediction table with mistakes; row 1 is the one below the header.\n  {said}"


def test_many_mistakes_are_one_summary(table):
    text = table([HEADER, *(f"s{i},1,knee,test,{i},3,0.2,0" for i in range(20))])
    assert "  18 probabilities outside 0 to 1: row 3 (s2): p_acl is 2, row 4 (s3): p_acl is 3, " in text
    assert "and 13 more" in text
    assert "20 labels other than 1, 0, -1 and blank: row 1 (s0): y_acl is 3" in text


def test_images_of_a_study_are_told_apart(table):
    header = "id,patient,group,split,image,p_acl,y_acl"
    rows = ["a,1,knee,test,0,0.9,1", "a,1,knee,test,1,0.8,1"]
    assert table([header, *rows])["image"].tolist() == [0, 1]
    assert "1 rows of an image that an earlier row has: row 3 (a)" in table([header, *rows, rows[1]])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["id,patient,group,p_acl,y_acl", "a,1,knee,0.5,1"], "no column split. There are: id, patient"),
        (["id,patient,group,split", "a,1,knee,test"], "no column p_<label> and y_<label>. There are: id, "),
        (["id,patient,group,split,p_acl", "a,1,knee,test,0.5"], "no column p_<label> and y_<label>"),
        ([HEADER + ",p_other", *ROWS], "a truth (y_{label}); one of them is not there of p_other"),
        ([HEADER.replace("tear", "macro"), *ROWS], "t.csv: a finding is called macro, which is what results call the mean"),
        ([line.replace(",", ";") for line in (HEADER, *ROWS)], "t.csv: its columns are separated by semicolons. Save it with"),
        ([HEADER + ",p_acl", *ROWS], "t.csv: two columns are called p_acl."),
        ([HEADER], "t.csv: a prediction table without rows."),
        ([], "not a prediction table: no column id"),
        ([HEADER, ROWS[0] + ",1", *ROWS], "cannot be read as a prediction table"),
        ([HEADER, *ROWS, ROWS[0] + ",1"], "cannot be read as a prediction table"),
    ],
)  # fmt: skip
def test_a_file_of_other_columns_is_refused(table, lines, said):
    assert said in table(lines)


def test_a_file_of_other_letters_is_named_as_such(tmp_path):
    for encoding in ("utf-16", "utf-16-le", "latin-1"):
        (tmp_path / "t.csv").write_bytes("\n".join([HEADER, ROWS[0].replace("knee", "fuß")]).encode(encoding))
        with pytest.raises(UserError, match=r"t\.csv: not a text in UTF-8 \(it may be UTF-16\)"):
            PredictionTable.read(tmp_path / "t.csv")


def test_findings_may_be_called_as_columns_are_and_splits_by_their_site(table):
    header = "id,patient,group,split,p_group,y_group,p_shuffle,y_shuffle"
    lines = [f"s{i},p{i // 2},knee,site {i % 2}.b,0.{i % 7},{i // 2 % 2},0.5,{i % 2}" for i in range(24)]
    found = table([header, *lines])
    assert found["split"].unique().tolist() == ["site 0.b", "site 1.b"]
    record, out = fit_stack([found, found], ["a", "b"], Scoring())
    assert list(record) == PredictionTable(out).labels == ["group", "shuffle"]


THEIRS = ["path,predicted_acl,true_acl,age", "x/1.png,0.9,1,40", "x/2.png,0.1,0,50"]


def test_another_tools_columns_are_mapped(table):
    found = table(THEIRS, {"id": "path", "p": "predicted_{label}", "y": "true_{label}"})
    assert list(found) == ["id", "patient", "group", "split", "p_acl", "y_acl"]
    assert found.iloc[0].tolist() == ["x/1.png", "", "all", "test", 0.9, 1]
    bare = table(["case,acl,true_acl", "k,0.25,1"], {"id": "case", "p": "{label}", "y": "true_{label}"})
    assert PredictionTable(bare).labels == ["acl"]
    one = table(["case,score,tear", "k,0.25,1"], {"id": "case", "p": "score", "y": "tear"})
    assert (PredictionTable(one).labels, one["p_tear"].tolist()) == (["tear"], [0.25])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "t.csv: not a prediction table: no column id. There are: path, predicted_acl, true_acl, age."),
        ({"id": "pth"}, "no column pth. Did you mean path?"),
        ({"id": "path", "patient": "subject"}, "no column subject. There are: path"),
        ({"id": "path", "p": "predicted_{label}", "y": "true"}, "columns.p=predicted_{label}: both of columns.p and columns.y"),
        ({"id": "path", "p": "predicted", "y": "true_acl"}, "no column predicted and true_acl. There are: path"),
        ({"name": "path"}, "columns.name: there is no such key. There are: id, patient"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(table, columns, said):
    assert said in table(THEIRS, columns)


def evaluate_here(*words):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        evaluate.job(hydra.compose("evaluate", list(words)))


@pytest.mark.slow
def test_a_table_is_evaluated_on_its_own(command, tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(60)], "subject": np.arange(60) // 2})
    frame["true_acl"] = np.arange(60) % 3 == 0
    frame["predicted_acl"] = np.clip(rng.random(60) * 0.7 + 0.3 * frame["true_acl"], 0, 1)
    frame["true_acl"] = frame["true_acl"].astype(int)
    frame.to_csv(tmp_path / "theirs.csv", index=False)
    (tmp_path / "readings.csv").write_text("id,reader,acl\n0.png,R,1\n1.png,R,1\n")
    words = [f"table={tmp_path / 'theirs.csv'}", "columns.id=path", "columns.p=predicted_{label}", "columns.y=true_{label}"]
    more = ["sensitivity=0.8", f"readers={tmp_path / 'readings.csv'}", "bootstrap=50", f"output={tmp_path / 'out'}"]
    done = command("evaluate", *words, "columns.patient=subject", *more)
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    result = evaluation["splits"]["test"]
    assert evaluation["data"] == "theirs.csv"
    assert (result["n"], result["patients"], result["selected_on"]) == (60, 30, None)
    auroc = roc_auc_score(frame["true_acl"], frame["predicted_acl"])
    assert result["labels"]["acl"]["auroc"]["value"] == pytest.approx(auroc)
    assert f"{auroc:.3f}" in (tmp_path / "out" / "report.html").read_text()
    assert "(not known whether choices were made on these studies)" in done.stdout
    for file in ("report.html", "MODEL_CARD.md"):
        text = (tmp_path / "out" / file).read_text()
        assert "held out from all choices" not in text.replace("No split is known to be held out from all choices", "")
        assert "not known whether choices were made on these studies" in text
    again = PredictionTable.read(tmp_path / "out" / "predictions" / "test.csv").frame
    expected = evaluate_split(PredictionTable(again), None, 50)
    assert {key: result[key] for key in expected} == expected, "what it leaves is a table of ours"
    assert result["operating_points"]["youden"]["chosen_on"] is None, "there is no valid to choose it on"
    assert list(result["operating_points"]) == ["0.5", "youden", "sensitivity_0.8", "specificity_0.9", "kappa"]
    reader = result["readers"]["readers"]["R"]["labels"]["acl"]
    assert (reader["sensitivity"]["value"], reader["specificity"]["value"], reader["kappa"]["n"]) == (1, 0, 2)
    mapped = [w.replace("{label}", "acl") for w in words[1:]]
    for more, said in (
        ([*mapped, f"output={tmp_path / 'out'}"], "the folder is not empty"),
        ([*mapped, f"output={tmp_path / 'theirs.csv'}"], "theirs.csv: cannot create the folder: File exists"),
        ([*mapped, "output=/proc/x/y"], "output=/proc/x/y: cannot create the folder"),
        ([*mapped, "selected_on=[tset]"], "has no split tset. Did you mean test"),
        (["selected_on=[null]"], r"selected_on=\[None\]: it is one, or several"),
        (["sensitivity=7"], "sensitivity=7: it should be less than or equal to 1"),
        (["checkpoint=last"], r"checkpoint=last: it is for run="),
        (["root=/data"], r"root=/data: it is for run="),
        (["accelerator=cpu"], r"accelerator: it is for run="),
        ([*mapped, f"readers={tmp_path / 'theirs.csv'}"], "theirs.csv: no column id, reader"),
        (["run=x"], "run and table: give one"),
        (["blank=positive"], "blank=positive: it should be 'ignore' or 'negative'."),
        (["bootstrap=-1"], "bootstrap=-1: it is a whole number from 0 on."),
    ):
        with pytest.raises(UserError, match=said):
            evaluate_here(words[0], *more)
    for more, said in (
        ("output=x", "output=x: it is for table=…; a run's evaluation is written into the run"),
        ("selected_on=null", "selected_on=None: it is for table="),
        ("columns.id=path", "columns.id=path: it is for table="),
    ):
        with pytest.raises(UserError, match=said):
            evaluate_here("run=x", more)


def test_what_is_said_of_a_table_is_claimed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "xraylab.reporting.run_report.write_report", lambda directory: directory
    )  # which takes longer than all else
    frame = pd.DataFrame(
        {"id": list("abcdefgh"), "patient": list("ppqqrrss"), "group": "g", "split": ["valid"] * 4 + ["test"] * 4}
    )
    frame = frame.assign(p_x=np.linspace(0, 1, 8), y_x=[0.0, 1.0] * 4)
    PredictionTable(frame).write(tmp_path / "t.csv")
    for number, (words, valid, test) in enumerate(
        [((), True, None), (("selected_on=null",), False, False), (("selected_on=[test]",), False, True)]
    ):
        evaluate_here(f"table={tmp_path / 't.csv'}", "bootstrap=0", f"output={tmp_path / str(number)}", *words)
        splits = json.loads((tmp_path / str(number) / "evaluation.json").read_text())["splits"]
        assert (splits["valid"]["selected_on"], splits["test"]["selected_on"]) == (valid, test)
    PredictionTable(frame.assign(patient=list("ppqqrrsp"))).write(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"t\.csv: 1 patients are in more than one split: p\. Results would be too good"):
        evaluate_here(f"table={tmp_path / 't.csv'}", "bootstrap=0", f"output={tmp_path / 'shared'}")
    assert not (tmp_path / "shared").exists()
    PredictionTable(frame.assign(patient=["", *"pqqrrs", ""])).write(tmp_path / "t.csv")
    evaluate_here(f"table={tmp_path / 't.csv'}", "bootstrap=0", f"output={tmp_path / 'blank'}")


def test_a_synthetic_table_stays_synthetic(tmp_path):
    found = pd.DataFrame({"id": list("abcd"), "patient": "", "group": "g", "split": "valid", "image": [0, 1, 0, 1]})
    found = found.assign(p_x=[0.1, 0.9, 0.4, 0.6], y_x=[0.0, 1.0, 1.0, 0.0])
    PredictionTable(found).write(tmp_path / "t.csv", synthetic=True)
    assert set(PredictionTable.read(tmp_path / "t.csv").frame["data"]) == {"synthetic sample"}
    with pytest.raises(UserError, match=r"sensitivity=0\.8: it is for tables by study"):
        evaluate_here(f"table={tmp_path / 't.csv'}", "sensitivity=0.8")
    evaluate_here(f"table={tmp_path / 't.csv'}", "bootstrap=0", f"output={tmp_path / 'out'}")
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["data"] == "synthetic sample"
    assert (evaluation["splits"]["valid"]["unit"], evaluation["splits"]["valid"]["selected_on"]) == ("image", True)
    assert (tmp_path / "out" / "predictions" / "valid_images.csv").read_text().count("synthetic sample") == 4
    assert "Synthetic sample" in (tmp_path / "out" / "report.html").read_text()


LOGITS = ["id,p_acl,y_acl,logit_acl,score", "a,1,1,800,7", "b,1,0,750.5,8", "c,0,0,-900,9"]
OTHERS = {"patient": "patient", "p": "p_{label}"}


def test_logits_are_read_where_there_are_some_and_rank(table):
    found = table(LOGITS, OTHERS)
    assert list(found) == ["id", "patient", "group", "split", "p_acl", "y_acl", "logit_acl"]
    assert found["logit_acl"].tolist() == [800, 750.5, -900]
    assert evaluate_split(PredictionTable(found), False, 0)["labels"]["acl"]["auroc"]["value"] == 1.0
    assert "smaller logit" in table(LOGITS, {**OTHERS, "logit": "score"}), "which are no logits of these probabilities"
    assert "no column none_acl (columns.logit)" in table(LOGITS, {**OTHERS, "logit": "none_{label}"})
    assert "columns.logit=score: it has {label} in it" in table([HEADER, *ROWS], {"logit": "score"})
    named = table(["name,pred,true,lo", "a,0.2,1,-3", "b,0.3,0,-2"], {"id": "name", "p": "pred", "y": "true", "logit": "lo"})
    assert named["logit_true"].tolist() == [-3, -2]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("d,0.5,1,,1", "1 logits that are missing or no finite numbers: row 4 (d): logit_acl is blank"),
        ("d,1,1,inf,1", "1 logits that are missing or no finite numbers: row 4 (d): logit_acl is inf"),
        ("d,0.5,1,900,1", "1 logits whose probability is below that of a smaller logit (p_acl): row 4 (d): logit_acl is 900"),
    ],
)
def test_logits_that_are_wrong_or_contradict_the_probabilities_are_named(table, row, said):
    assert said in table([*LOGITS, row], OTHERS)
