"""What a combination refuses: members that differ, lack something, or are damaged."""

from __future__ import annotations

import logging
import re

import numpy as np
import pandas as pd
import pytest
from test_combine import members as members
from test_combine import run_here as run_here
from test_combine import table, write_run

from xraylab.errors import UserError
from xraylab.evaluation.predictions import PredictionTable
from xraylab.reporting.run_report import write_report


def test_a_damaged_table_stops_only_what_needs_it(members, run_here, tmp_path, caplog):
    """Tables of other splits show whether studies are in two; without one, the rest is combined as it was."""
    whole, _ = run_here("method=mean", "splits=[test]", paths=members)
    for split in ("train", "valid"):
        (members[0] / "predictions" / f"{split}.csv").write_text("id,damaged\n")
    with caplog.at_level(logging.WARNING):
        found, _ = run_here("method=mean", "splits=[test]", paths=members)
    assert found == whole
    said = [r.getMessage() for r in caplog.records if "It is not needed" in r.getMessage()]
    assert [line.partition(": ")[0] for line in said] == [
        str(members[0] / "predictions" / f"{s}.csv") for s in ("train", "valid")
    ]
    for words in (["method=mean"], ["method=stack", "splits=[test]"], ["method=stack", "fit_on=train", "splits=[test]"]):
        with pytest.raises(UserError, match=r"(train|valid)\.csv: not a prediction table"):
            run_here(*words, paths=members)


def test_records_that_are_damaged_and_files_that_are_no_runs_are_named(members, run_here):
    for name, text, said in (
        ("evaluation.json", "{}", "no evaluation.json that can be read (it has no data, selection, splits). Finish"),
        ("evaluation.json", "[]", "no evaluation.json that can be read (it has no data, selection, splits). Finish"),
        ("evaluation.json", "{", "no evaluation.json that can be read (Expecting property name"),
        ("environment.json", "{", "no environment.json that can be read (Expecting property name"),
        ("config.yaml", "a: [", "config.yaml: cannot be read (while parsing"),
        ("config.yaml", "- a", "config.yaml: cannot be read (no settings"),
    ):
        before = (members[1] / name).read_text()
        (members[1] / name).write_text(text)
        with pytest.raises(UserError, match=re.escape(said)):
            run_here("method=mean", paths=members)
        (members[1] / name).write_text(before)
    (members[1] / "environment.json").write_text("{}")
    with pytest.raises(UserError, match=r"no environment.json that can be read \(it has no command\)"):
        write_report(members[1])
    with pytest.raises(UserError, match=r"weights\.h5: weights of other frameworks are out of scope"):
        run_here("method=mean", paths=[members[0], "weights.h5"])


def changed(folder, members, **tables):
    """A copy of the second member with other tables."""
    found = {s: PredictionTable.read(members[1] / "predictions" / f"{s}.csv").frame for s in ("train", "valid", "test")}
    found |= tables
    return write_run(folder / "other", {s: t for s, t in found.items() if t is not None}, "plane: coronal\n")


def test_members_that_differ_are_refused_and_the_difference_is_named(members, run_here, tmp_path):
    test = PredictionTable.read(members[1] / "predictions" / "test.csv").frame
    again = test.copy()
    again.loc[[4, 7], "y_acl"] = [1.0, np.nan]
    who = test.assign(patient=test["patient"].where(test["id"] != "test6", "x"))
    valid = PredictionTable.read(members[1] / "predictions" / "valid.csv").frame
    shared = valid.assign(patient=valid["patient"].where(valid["id"] != "valid0", "test-p3"))
    train = PredictionTable.read(members[1] / "predictions" / "train.csv").frame
    leaked = pd.concat([train, test.head(1).assign(split="train")], ignore_index=True)
    for tables, said in (
        ({"test": test.iloc[3:]}, "test.csv: runs honest and other are of other studies: test0, test1, test2 only in honest."),
        ({"test": test.assign(id=["x", *test["id"][1:]])}, "other studies: test0 only in honest; x only in other"),
        ({"test": again}, "runs honest and other have other labels of acl: test4 is 0 and 1, test7 is 1 and blank"),
        ({"test": who}, "runs honest and other have other patients: test6 is test-p3 and x"),
        ({"test": test.rename(columns={"p_acl": "p_x", "y_acl": "y_x"})}, "have other columns: acl, x only in one of them"),
        ({"test": test.assign(split="final")}, "have other splits: test0 is test and final, "),
        ({"valid": shared}, "1 patients are in more than one split: test-p3. Results would be too good."),
        ({"train": leaked}, "study test0 is in test of run honest and in train of run other"),
        ({"test": None}, "there are no predictions of test of other, as honest have. What all have is splits=[valid]."),
    ):
        other = changed(tmp_path, members, **tables)
        with pytest.raises(UserError, match=re.escape(said)):
            run_here("method=mean", paths=[members[0], other])
        for file in (other / "predictions").iterdir():
            file.unlink()


def test_what_members_lack_is_said(members, run_here, tmp_path):
    for path in members:
        (path / "predictions" / "train.csv").unlink()
    with pytest.raises(UserError, match=r"fit_on=train: there is no predictions/train.csv of honest, heart. Train it with"):
        run_here("method=stack", "fit_on=train", paths=members)
    with pytest.raises(UserError, match="folds=1: there are at least 2"):
        run_here("method=stack", "folds=1", paths=members)
    with pytest.raises(UserError, match="folds=101: a part has a patient at least, and there are 100 to fit on"):
        run_here("method=stack", "folds=101", paths=members)
    negative = {"blank": "negative", "uncertain": "ignore"}
    other = write_run(tmp_path / "a", {s: table(s, 4, 0.1) for s in ("valid", "test")}, scored=negative)
    with pytest.raises(
        UserError, match=r"runs honest and a score labels otherwise: .*\. Say what counts: blank=ignore\|negative"
    ):
        run_here("method=mean", paths=[members[0], other])
    other = write_run(tmp_path / "b", {s: table(s, 4, 0.1) for s in ("valid", "test")}, data="MRNet-v2")
    with pytest.raises(UserError, match=r"runs are of other data: honest: MRNet-v1\.0, b: MRNet-v2"):
        run_here("method=mean", paths=[members[0], other])
    for paths, said in (
        (members[:1], "a combination has two members or more"),
        ([members[0], members[0]], "is there twice"),
        ([members[0], tmp_path / "none"], "is not a run directory"),
    ):
        with pytest.raises(UserError, match=said):
            run_here("method=mean", paths=paths)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "runs must be given"),
        (["runs=[a,b]"], "method must be given"),
        (["runs=null", "method=mean"], "runs=null: it is one, or several: runs=[<a>,<b>]."),
        (["runs=3", "method=mean"], "runs=3: a combination has two members or more"),
        (["runs=[a,b]", "method=mean", "sensitivity=7"], "sensitivity=7: it should be less than or equal to 1"),
        (["runs=[a,b]", "method=mean", "blank=positive"], "blank=positive: it should be 'ignore' or 'negative'"),
        (["runs=[a,b]", "method=staple"], "method=staple: it is one of stack, mean, vote, own. Did you mean stack"),
    ],
)
def test_mistakes_are_said(command, tmp_path, words, said):
    done = command("combine", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not list((tmp_path / "empty").iterdir())
