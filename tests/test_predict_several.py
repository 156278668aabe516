"""Several models predict as one: stacks of planes, and runs of other labels side by side."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from test_predict import CPU, run_of, table_of
from test_predict import here as here
from test_predict import mrnet as mrnet

from xraylab.errors import UserError
from xraylab.evaluation.operating_points import decided, temperatures_of, thresholds_of
from xraylab.inference.inputs import find_studies
from xraylab.inference.predictor import chosen_of, predict
from xraylab.inference.studies import Options


@pytest.fixture(scope="module")
def planes(tmp_path_factory, mrnet_root):
    """Runs on two planes of knees, and their stack."""
    from xraylab.evaluation.ensembles.combine import CombineOptions, combine
    from xraylab.evaluation.ensembles.members import read_members

    home = tmp_path_factory.mktemp("planes")
    runs = [
        run_of(home / plane, "dataset=mrnet", f"plane={plane}", "task=acl", f"dataset.root={mrnet_root}")
        for plane in ("axial", "coronal")
    ]
    (home / "stack").mkdir()
    evaluation = combine(read_members([str(r) for r in runs], {}), CombineOptions("stack"), home / "stack")
    (home / "stack" / "config.yaml").write_text("method: stack\n")
    assert "test" in evaluation["splits"]
    return [*runs, home / "stack"]


def test_a_stack_of_planes_predicts_as_it_was_evaluated(planes, mrnet_root):
    stack = planes[-1]
    test = table_of(stack / "predictions" / "test.csv")
    again = predict(stack, "test", CPU)
    assert again.table["id"].tolist() == test["id"].tolist()
    assert np.abs(again.table["p_acl"] - test["p_acl"]).max() < 1e-6
    assert again.table["y_acl"].tolist() == test["y_acl"].tolist()
    files = predict(stack, find_studies(str(mrnet_root / "valid")), CPU)
    assert files.table["id"].tolist() == test["id"].tolist(), "ids are without the plane"
    assert np.abs(files.table["p_acl"] - test["p_acl"]).max() < 1e-6
    assert set(files.table["group"]) == {"axial+coronal"}
    with pytest.raises(UserError, match=r"was fitted on that split; .*predictions/valid\.csv has"):
        predict(stack, "valid", CPU)
    chosen = json.loads((stack / "operating_points.json").read_text())
    chosen["labels"]["acl"]["temperature"] = {"value": 0.5, "reason": None}
    chosen["labels"]["acl"]["thresholds"]["youden"] = {"value": 0.3, "reason": None}
    assert chosen_of(stack)["labels"].keys() == chosen["labels"].keys(), "a combination has its own"
    table = decided(again.table, thresholds_of(chosen, ["acl"], "youden"), temperatures_of(chosen, ["acl"]))
    assert table["call_acl"].tolist() == (again.table["p_acl"] >= 0.3).astype(int).tolist()
    with pytest.raises(UserError, match="is a combination, of its members' best"):
        predict(stack, "test", Options(checkpoint="last"))


def test_an_exam_without_one_of_the_planes_is_left_out(planes, mrnet_root, tmp_path):
    root = shutil.copytree(mrnet_root / "valid", tmp_path / "valid")
    (root / "coronal" / "0041.npy").unlink()
    (root / "axial" / "0043.npy").write_bytes(b"broken")
    done = predict(planes[-1], find_studies(str(root)), CPU)
    assert len(done.table) == 28
    assert {(s.id, s.reason) for s in done.skipped} == {
        ("0041", "not every run has images of it"), ("0043", "not a whole array"),
    }  # fmt: skip


def test_a_model_of_a_plane_takes_the_images_of_that_plane(planes, mrnet_root):
    everything = predict(planes[0], find_studies(str(mrnet_root / "valid")), CPU).table
    own = table_of(planes[0] / "predictions" / "test.csv")
    assert everything[["id", "group"]].equals(own[["id", "group"]])
    both = predict(planes[0], find_studies(str(mrnet_root)), CPU).table
    assert set(own["id"]) < set(both["id"]), "also below train and valid"
    with pytest.raises(UserError, match=r"these are images of coronal; the model was trained on plane=axial"):
        predict(planes[0], find_studies(str(mrnet_root / "valid" / "coronal")), CPU)


def test_runs_of_other_labels_make_one_table(here, planes, mrnet, mrnet_root, tmp_path):
    with pytest.raises(UserError, match="both predict acl"):
        here(f"run=[{planes[0]},{planes[1]}]", "input=test", "output=o.csv")
    with pytest.raises(UserError, match="output must be given where there are several runs"):
        here(f"run=[{planes[-1]},{mrnet}]", "input=test")
    here(f"run=[{planes[-1]},{mrnet}]", f"input={mrnet_root / 'valid'}", "output=o.csv", "format=mrnet")
    found = np.loadtxt(tmp_path / "empty" / "o.csv", delimiter=",")
    assert found.shape == (30, 3)
    acl = table_of(planes[-1] / "predictions" / "test.csv")["p_acl"].astype(float)
    others = table_of(mrnet / "predictions" / "test.csv")
    here(f"run=[{planes[-1]},{mrnet}]", f"input={mrnet_root / 'valid'}", "output=t.csv")
    table = table_of(tmp_path / "empty" / "t.csv")
    findings = ["acl", "meniscus", "abnormal"]
    columns = [f"{kind}_{finding}" for kind in ("p", "logit") for finding in findings]
    assert list(table) == ["id", "patient", "group", "split", *columns, "data"]
    assert set(table["group"]) == {"axial+coronal"}
    here(f"run=[{mrnet},{planes[-1]}]", f"input={mrnet_root / 'valid'}", "output=u.csv")
    assert set(table_of(tmp_path / "empty" / "u.csv")["group"]) == {"axial+coronal"}, "not those of the first run alone"
    assert np.abs(found - np.stack([others["p_abnormal"].astype(float), acl, others["p_meniscus"].astype(float)], 1)).max() < 1e-6
