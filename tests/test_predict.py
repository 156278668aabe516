"""``python -m xraylab.predict``: the same numbers as training, from every kind of input, and nothing lost or invented."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, run_job, train_run
from inference.test_inputs import picture
from scipy.special import log_expit
from sklearn.metrics import roc_auc_score

import xraylab
from xraylab.errors import UserError
from xraylab.evaluation.evaluator import evaluate_split
from xraylab.evaluation.predictions import PredictionTable
from xraylab.inference.inputs import FROM_THE_REST, LEFT_OUT, find_studies
from xraylab.inference.predictor import predict, predict_all
from xraylab.inference.studies import Options

SMALL = [
    *TINY, "max_epochs=1", "batch_size=8", "image.size=32", "backbone=resnet18_small", "+backbone.kwargs.channels=[8,8,16,16]",
]  # fmt: skip
CPU = Options(workers=0)


def run_of(directory: Path, *overrides: str) -> Path:
    return train_run(directory, *SMALL, *overrides)


@pytest.fixture(scope="module")
def mura(tmp_path_factory, mura_root):
    """A run on bone X-rays."""
    return run_of(tmp_path_factory.mktemp("predict") / "mura", "dataset=mura", f"dataset.root={mura_root}")


@pytest.fixture(scope="module")
def mrnet(tmp_path_factory, mrnet_root):
    """A run on knees with two of the labels."""
    overrides = ("dataset=mrnet", "task=[meniscus,abnormal]", f"dataset.root={mrnet_root}", "batch_size=4")
    return run_of(tmp_path_factory.mktemp("predict") / "mrnet", *overrides)


@pytest.fixture
def here(tmp_path, monkeypatch, caplog):
    """The command in this process, in an empty folder; returns what it logged."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    caplog.set_level("INFO", "xraylab")

    def run(*overrides: str) -> str:
        caplog.clear()
        run_job("predict", *overrides, "num_workers=0")
        return caplog.text

    return run


def table_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=dict.fromkeys(("id", "patient", "group", "split"), str), keep_default_na=False)


# ---- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_split_is_predicted_as_training_did(command, here, mura, tmp_path):
    done = command("predict", f"run={mura}", "input=test", "output=again.csv", "num_workers=1")
    assert done.returncode == 0, done.stderr
    assert "predicted 40 studies in" in done.stdout
    assert "SYNTHETIC SAMPLE" in done.stdout
    here(f"run={mura}", "input=valid", "output=valid.csv")
    assert (tmp_path / "empty" / "again.csv").read_bytes() == (mura / "predictions" / "test.csv").read_bytes()
    assert (tmp_path / "empty" / "valid.csv").read_bytes() == (mura / "predictions" / "valid.csv").read_bytes()
    assert (tmp_path / "empty" / "again_images.csv").read_bytes() == (mura / "predictions" / "test_images.csv").read_bytes()
    assert (tmp_path / "empty" / "valid_images.csv").read_bytes() == (mura / "predictions" / "valid_images.csv").read_bytes()
    assert len(list((tmp_path / "empty").iterdir())) == 4


@pytest.mark.parametrize(("scale", "shift"), [(3e3, 0.0), (1e3, -120.0)])
def test_a_model_that_is_all_but_certain_keeps_the_order_of_its_studies(mura, tmp_path, scale, shift):
    """The head scaled so that probabilities are 0 and 1 in 32 bits: tables by study and by image, one study, and its metrics."""
    run = Path(shutil.copytree(mura, tmp_path / "run"))
    file = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        if name.startswith("net.head"):
            value.mul_(scale).add_(shift if name.endswith("bias") else 0)
    torch.save(checkpoint, file)
    done, before = predict(run, "test", CPU), predict(mura, "test", CPU)
    for now, earlier in ((done.images, before.images), (done.table, before.table)):
        assert now["logit_abnormal"].nunique() == earlier["logit_abnormal"].nunique()
    by_image = scale * before.images["logit_abnormal"].to_numpy() + shift
    np.testing.assert_allclose(done.images["logit_abnormal"], by_image, rtol=1e-3, atol=1e-2)
    of_study = done.images.groupby("id", sort=False)["logit_abnormal"]
    means = of_study.agg(lambda z: np.logaddexp.reduce(log_expit(z)) - np.logaddexp.reduce(log_expit(-z)))
    np.testing.assert_allclose(done.table.set_index("id")["logit_abnormal"], means, rtol=1e-5, atol=1e-4)
    result = evaluate_split(PredictionTable(done.table), False, 0)["labels"]["abnormal"]["auroc"]["value"]
    y = done.table["y_abnormal"]
    assert result == roc_auc_score(y, done.table["logit_abnormal"])
    assert roc_auc_score(y, torch.sigmoid(torch.tensor(done.table["logit_abnormal"].to_numpy(np.float32)))) != result
    PredictionTable(done.table).write(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(PredictionTable.read(tmp_path / "t.csv").frame, done.table)


def test_other_forms_of_the_same_studies_have_the_same_numbers(mura, mura_root, tmp_path):
    test = table_of(mura / "predictions" / "test.csv").set_index("id")
    folder = predict(mura, find_studies(str(mura_root / "valid")), CPU).table
    assert folder["id"].is_monotonic_increasing
    folder = folder.set_index("id", drop=False).loc[test.index]
    assert list(folder) == ["id", "patient", "group", "split", "p_abnormal", "logit_abnormal"], "there is no truth"
    assert np.abs(folder["p_abnormal"].to_numpy() - test["p_abnormal"].to_numpy()).max() < 1e-6
    assert folder[["patient", "group"]].to_numpy().tolist() == test[["patient", "group"]].to_numpy().tolist()
    listed = predict(mura / "checkpoints" / "best.ckpt", find_studies(str(mura_root / "valid_image_paths.csv")), CPU).table
    assert listed["id"].tolist() == test.index.tolist()
    hands = find_studies(str(mura_root / "valid" / "XR_HAND")).frame["id"].tolist()
    assert sorted(hands) == sorted(i for i in test.index if "XR_HAND" in i)
    assert np.abs(listed["p_abnormal"].to_numpy() - test["p_abnormal"].to_numpy()).max() < 1e-6
    studies = predict(mura, find_studies(str(mura_root / "valid_labeled_studies.csv")), CPU).table
    assert np.abs(studies["p_abnormal"].to_numpy() - test["p_abnormal"].to_numpy()).max() < 1e-6
    views = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in sorted((mura_root / test.index[3]).glob("image*.png"))]
    assert xraylab.load(mura).predict(views)["abnormal"] == pytest.approx(test["p_abnormal"].iloc[3], abs=1e-6)


def test_arrays_are_volumes_and_a_study_each(mrnet, mrnet_root):
    test = table_of(mrnet / "predictions" / "test.csv")
    done = predict(mrnet, find_studies(str(mrnet_root / "valid" / "axial")), CPU)
    assert done.table["id"].tolist() == test["id"].tolist()
    for task in ("meniscus", "abnormal"):
        assert np.abs(done.table[f"p_{task}"] - test[f"p_{task}"]).max() < 1e-6
    assert done.synthetic
    first = find_studies(str(mrnet_root / "valid")).frame["id"].tolist()
    assert first[0] == "axial/0040"


def test_the_last_checkpoint_is_chosen(mura, mura_root, tmp_path):
    run = shutil.copytree(mura, tmp_path / "run")
    (run / "checkpoints" / "best.ckpt").unlink()
    files = find_studies(str(mura_root / "valid" / "XR_WRIST"))
    last = predict(run, files, Options(checkpoint="last", workers=0)).table
    assert last.equals(predict(mura, files, Options(checkpoint=str(run / "checkpoints" / "last.ckpt"), workers=0)).table)
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(UserError, match=r"last\.ckpt"):
        predict(run, files, Options(checkpoint="last"))


# ---- what cannot be read ----------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_named_and_the_rest_predicted(here, mura, tmp_path):
    top = tmp_path / "in"
    for name in ("good/1.png", "good/2.png", "half/1.png", "late/1.png"):
        picture(top / name)
    (top / "half" / "2.png").write_bytes(b"not a picture")
    (top / "bad").mkdir()
    (top / "bad" / "1.png").write_bytes((top / "good" / "1.png").read_bytes()[:200])
    cv2.imwrite(str(top / "deep.png"), np.full((9, 9), 4000, np.uint16))
    np.save(top / "scaled.npy", np.ones((3, 9, 9), np.float32))
    logged = here(f"run={mura}", f"input={top}", "output=out.csv", "batch_size=2")
    out = tmp_path / "empty" / "out.csv"
    table = table_of(out)
    assert table["id"].tolist() == ["good", "half", "late"]
    assert table["p_abnormal"].astype(float).between(0, 1).all()
    skipped = pd.read_csv(out.with_name("out.csv.skipped.csv")).set_index("id")
    assert skipped["study"].to_dict() == {"bad": LEFT_OUT, "half": FROM_THE_REST, "deep": LEFT_OUT, "scaled": LEFT_OUT}
    assert skipped.loc["half", "file"] == str(top / "half" / "2.png")
    assert skipped.loc["half", "reason"] == "not a whole image (13 bytes)"
    assert "uint16 values up to 4000, and bits is not set" in skipped.loc["deep", "reason"]
    assert "float32 (3, 9, 9), where uint8" in skipped.loc["scaled", "reason"]
    assert "4 files could not be read" in logged
    assert "predicted 3 studies, 3 left out" in logged
    alone = predict(mura, find_studies(str(top / "half" / "1.png")), CPU).table
    assert float(table["p_abnormal"][1]) == pytest.approx(alone["p_abnormal"][0], abs=1e-6)
    views = table_of(out.with_name("out_images.csv"))
    assert list(views) == ["id", "patient", "group", "split", "image", "p_abnormal", "logit_abnormal", "data"]
    names = [f"good/{n}.png" for n in (1, 2)] + ["half/1.png", "late/1.png"]
    assert views[["id", "image"]].to_numpy().tolist() == [[n.split("/")[0], str(top / n)] for n in names]
    assert float(views["p_abnormal"][2]) == float(table["p_abnormal"][1])
    out.unlink()
    with pytest.raises(UserError, match=r"out_images\.csv is there already"):
        here(f"run={mura}", f"input={top / 'half' / '1.png'}", "output=out.csv")
    here(f"run={mura}", f"input={top / 'half' / '1.png'}", "output=out.csv", "overwrite=true")
    assert not out.with_name("out_images.csv").exists(), "what is of an earlier input is not left beside the new table"
    deep = predict(mura, find_studies(str(top / "deep.png")), Options(bits=12, workers=0)).table
    assert len(deep) == 1

    with pytest.raises(UserError, match="not one of 1 studies can be read"):
        here(f"run={mura}", f"input={top / 'bad'}", "output=none.csv")
    assert not (tmp_path / "empty" / "none.csv").exists()


def test_a_folder_that_is_called_as_a_label_is_not_taken_as_a_study_without_a_word(here, mura, tmp_path):
    for name in ("Abnormal/1.png", "Abnormal/2.png", "normal/3.png"):
        picture(tmp_path / "in" / name)
    said = "a folder called Abnormal was taken as one study of all its images"
    assert said in here(f"run={mura}", f"input={tmp_path / 'in'}", "output=a.csv")
    assert said not in here(f"run={mura}", f"input={tmp_path / 'in'}", "output=b.csv", "study=file")
    assert [len(table_of(tmp_path / "empty" / f"{name}.csv")) for name in "ab"] == [2, 3]


def test_lists_name_what_is_missing(mura, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("id,path\nA,a.png\nA,b.png\nB,c.png\n")
    done = predict(mura, find_studies(str(tmp_path / "list.csv")), CPU)
    assert done.table["id"].tolist() == ["A"]
    assert [(s.id, s.file, s.study) for s in done.skipped] == [("A", "b.png", FROM_THE_REST), ("B", "c.png", LEFT_OUT)]


def test_an_image_of_a_split_that_broke_since_is_named(mura, mura_root, tmp_path):
    root = shutil.copytree(mura_root, tmp_path / "MURA-v1.1")
    test = table_of(mura / "predictions" / "test.csv").set_index("id")
    alone = next(i for i in test.index if len(list((root / i).glob("image*.png"))) == 1)
    (root / alone / "image1.png").write_bytes(b"broken")
    done = predict(mura, "test", Options(root=str(root), workers=0))
    assert [(s.id, s.study) for s in done.skipped] == [(alone, LEFT_OUT)]
    assert done.table["id"].tolist() == [i for i in test.index if i != alone]
    (root / alone / "image1.png").unlink()
    done = predict(mura, "test", Options(root=str(root), workers=0))
    assert [(s.id, s.study) for s in done.skipped] == [(alone, LEFT_OUT)]
    assert done.skipped[0].reason == "missing image files of valid_image_paths.csv"
    kept = test.drop(alone)["p_abnormal"].to_numpy()
    assert np.abs(done.table["p_abnormal"].to_numpy() - kept).max() < 1e-6


def test_splits_that_are_not_those_of_training_are_refused(mura, mura_root, tmp_path):
    root = shutil.copytree(mura_root, tmp_path / "MURA-v1.1")
    lines = (root / "train_labeled_studies.csv").read_text().splitlines()
    (root / "train_labeled_studies.csv").write_text("\n".join(lines[5:]) + "\n")
    images = (root / "train_image_paths.csv").read_text().splitlines()
    gone = [line.split(",")[0] for line in lines[:5]]
    (root / "train_image_paths.csv").write_text("\n".join(i for i in images if not i.startswith(tuple(gone))) + "\n")
    with pytest.raises(UserError, match=r"other splits, than when .* could have been trained on"):
        predict(mura, "valid", Options(root=str(root), workers=0))
    assert len(predict(mura, "test", Options(root=str(root), workers=0)).table) == 40, "the published test is what it was"


# ---- outputs ----------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unless_told(here, mura, mura_root, tmp_path):
    run = shutil.copytree(mura, tmp_path / "run")
    before = (run / "predictions" / "test.csv").read_bytes()
    with pytest.raises(UserError, match=r"predictions/test\.csv is there already.*overwrite=true"):
        here(f"run={run}", "input=test")
    shutil.copytree(mura_root / "valid" / "XR_HAND", tmp_path / "bones" / "test")
    here(f"run={run}", f"input={tmp_path / 'bones' / 'test'}", "overwrite=true")
    assert (run / "predictions" / "test.csv").read_bytes() == before, "a folder called test is not the test split"
    assert (run / "predictions" / "bones_test.csv").is_file()
    here(f"run={run}", f"input={mura_root / 'valid'}", "format=mura", "threshold=0")
    lines = (run / "predictions" / "MURA-v1.1_valid_mura.csv").read_text().splitlines()
    names = [line.split(",")[0] for line in (mura_root / "valid_labeled_studies.csv").read_text().splitlines()]
    assert sorted(lines) == sorted(f"{name},1" for name in names)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["run=model.h5", "input=test"], "weights of other frameworks are out of scope"),
        (["checkpoint=model.keras", "input=test", "output=o.csv"], "weights of other frameworks are out of scope"),
        (["input=weights.h5", "output=o.csv"], "weights of other frameworks are out of scope, and are nothing to predict"),
        (["run=nowhere", "input=test"], "nowhere is not a run directory"),
        (
            ["input=test", "output=o.csv", "format=mrnet"],
            "needs abnormal, acl, meniscus; this run predicts abnormal. Missing: acl",
        ),
        (["input=test", "output=o.csv", "format=mrnte"], "Did you mean mrnet"),
        (["input=train", "output=."], "it is a folder"),
        (["input=[]"], "a file, or several"),
        (["input=test", "output=o.csv", "threshold=2"], "it is a probability"),
        (["input=test", "output=o.csv", "threshold=true"], "it is a probability"),
        (["input=test", "output=o.csv", "threshold=yuoden"], "Did you mean youden"),
        (["input=test", "output=o.csv", "threshold=0.4", "format=mrnet"], "format=mrnet holds no calls"),
        (["input=test", "output=o.csv", "calibrate=yes-please"], "it is true or false"),
        (["input=test", "output=o.csv", "batch_size=0"], "from 1 on"),
        (["input=test", "output=o.csv", "precision=8"], "it is auto, 32, bf16 or 16"),
        (["input=test", "output=o.csv", "bits=4"], "bits=4: it is 8 to 16"),
        (["input=test", "output=o.csv", "root=/nowhere"], "name its new place: root="),
    ],
)
def test_mistakes_are_said(here, mura, tmp_path, typed, said):
    with pytest.raises(UserError) as refused:
        here(*([] if any(t.startswith("run=") for t in typed) else [f"run={mura}"]), *typed)
    assert said in str(refused.value)
    assert not list((tmp_path / "empty").iterdir())


def test_the_command_wants_a_run_and_an_input(command, mura):
    for typed, missing in ((["input=test"], "run"), ([f"run={mura}"], "input")):
        done = command("predict", *typed)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: {missing} must be given: {missing}=…  (--help explains it)\n"


def test_calls_and_calibration_are_those_of_validation(here, mura, mura_root, tmp_path):
    run = shutil.copytree(mura, tmp_path / "run")
    file = run / "operating_points.json"
    chosen = json.loads(file.read_text())
    test = table_of(run / "predictions" / "test.csv")
    p = test["p_abnormal"].astype(float).to_numpy()
    cut, none = float(np.median(p)), {"value": None, "reason": "one class only"}
    chosen["labels"]["abnormal"] |= {
        "temperature": {"value": 2.0, "reason": None},
        "thresholds": {"youden": {"value": cut}, "kappa": none},
    }
    file.write_text(json.dumps(chosen))
    logged = here(f"run={run}", "input=test", "calibrate=true", "threshold=youden")
    assert "CALIBRATED by the temperatures of validation: abnormal 2.0000" in logged
    assert f"called positive (1) from here on: abnormal {cut:.4f}" in logged
    table = table_of(run / "predictions" / "test_calibrated_calls.csv")
    assert not (run / "predictions" / "test_calibrated_calls_images.csv").exists(), "temperatures are of studies"
    assert list(table)[-4:] == ["y_abnormal", "logit_abnormal", "call_abnormal", "data"]
    logit = np.log(p / (1 - p))
    assert np.allclose(table["p_abnormal"].astype(float), 1 / (1 + np.exp(-logit / 2)), rtol=0, atol=1e-9)
    assert table["call_abnormal"].astype(int).tolist() == (p >= cut).astype(int).tolist()
    assert 0 < table["call_abnormal"].astype(int).mean() < 1
    assert table_of(run / "predictions" / "test.csv").equals(test), "the run's own table stays"
    views = [cv2.imread(str(v), cv2.IMREAD_GRAYSCALE) for v in sorted((mura_root / test["id"][3]).glob("image*.png"))]
    assert xraylab.load(run).predict(views, calibrate=True)["abnormal"] == pytest.approx(float(table["p_abnormal"][3]), abs=1e-6)

    here(f"run={run}", "input=test", "threshold=0.5", "calibrate=true", "output=half.csv")
    half = table_of(tmp_path / "empty" / "half.csv")
    assert half["call_abnormal"].astype(int).tolist() == (half["p_abnormal"].astype(float) >= 0.5).astype(int).tolist()
    here(f"run={run}", "input=test", "threshold=youden", "calibrate=true", "format=mura", "output=calls.csv")
    calls = [line.rsplit(",", 1)[1] for line in (tmp_path / "empty" / "calls.csv").read_text().splitlines()]
    assert calls == table["call_abnormal"].astype(str).tolist()
    here(f"run={run}", "input=test", "threshold=youden", "output=calls_only.csv")
    assert (tmp_path / "empty" / "calls_only_images.csv").exists()

    with pytest.raises(UserError, match=r"threshold=kappa: there is none for abnormal \(one class only\)"):
        here(f"run={run}", "input=test", "threshold=kappa", "output=o.csv")
    alone = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    for key, missing in (("calibrate=true", "no temperature is known"), ("threshold=youden", "no threshold is known")):
        with pytest.raises(UserError, match=missing):
            here(f"run={alone}", f"input={mura_root / 'valid'}", key, "output=o.csv")
    assert not (tmp_path / "empty" / "o.csv").exists()


# ---- several models ---------------------------------------------------------------------------------------------------


def test_views_are_predicted_by_combinations_and_side_by_side(mura, mura_root, tmp_path, caplog):
    caplog.set_level("INFO", "xraylab")
    from xraylab.evaluation.ensembles.combination import Combination, write_combination

    again = shutil.copytree(mura, tmp_path / "again")
    checkpoint = torch.load(again / "checkpoints" / "best.ckpt", weights_only=True)
    weight = next(k for k in checkpoint["state_dict"] if k.endswith("head.0.weight"))
    checkpoint["state_dict"][weight] = -checkpoint["state_dict"][weight]
    torch.save(checkpoint, again / "checkpoints" / "best.ckpt")
    (tmp_path / "mean").mkdir()
    write_combination(tmp_path / "mean", Combination("mean", ("a", "b")), [mura, again], "MURA-v1.1")
    studies = find_studies(str(mura_root / "valid" / "XR_HAND"))
    parts, mean = [predict(run, studies, CPU).images for run in (mura, again)], predict(tmp_path / "mean", studies, CPU).images
    assert mean[["id", "image"]].equals(parts[0][["id", "image"]])
    assert np.allclose(mean["p_abnormal"], (parts[0]["p_abnormal"] + parts[1]["p_abnormal"]) / 2, rtol=0, atol=1e-12)
    assert not np.allclose(parts[0]["p_abnormal"], parts[1]["p_abnormal"], atol=1e-3)
    write_combination(tmp_path / "mean", Combination("union", ("a", "b")), [mura, again], "MURA-v1.1")
    assert predict(tmp_path / "mean", studies, CPU).images is None
    assert "there is no table by image: a union is of studies" in caplog.text

    checkpoint["xraylab"]["labels"] = ["normal"]
    torch.save(checkpoint, again / "checkpoints" / "best.ckpt")
    both = predict_all([mura, again], studies, CPU).images
    assert list(both)[-4:] == ["p_abnormal", "p_normal", "logit_abnormal", "logit_normal"]
    for k, label in enumerate(("abnormal", "normal")):
        assert np.allclose(both[f"p_{label}"], parts[k]["p_abnormal"], rtol=0, atol=1e-7)


# ---- DICOM ------------------------------------------------------------------------------------------------------------


def test_dicom_is_predicted_as_its_picture_and_no_patient_is_copied(here, mura, tmp_path, capfd):
    pytest.importorskip("pydicom")
    from data.images.test_dicom import SECRETS, dataset

    image = cv2.imread(str(picture(tmp_path / "png" / "one.png")), cv2.IMREAD_GRAYSCALE)
    top = tmp_path / "dicom"
    (top / "visit").mkdir(parents=True)
    dataset(255 - image, "MONOCHROME1").save_as(top / "one.dcm", enforce_file_format=True)
    dataset(np.stack([image, 255 - image]), frames=True).save_as(top / "two", enforce_file_format=True)
    dataset(image).save_as(top / "visit" / "IM1", enforce_file_format=True)
    dataset(255 - image).save_as(top / "visit" / "IM2", enforce_file_format=True)
    (top / "cut.dcm").write_bytes((top / "one.dcm").read_bytes()[:-500])
    logged = here(f"run={mura}", f"input={top}", "output=out.csv")
    table = table_of(tmp_path / "empty" / "out.csv").set_index("id")["p_abnormal"].astype(float)
    assert table.index.tolist() == ["one", "two", "visit"]
    plain = predict(mura, find_studies(str(tmp_path / "png")), CPU).table
    assert table["one"] == pytest.approx(plain["p_abnormal"][0], abs=1e-6)
    assert table["two"] == pytest.approx(table["visit"], abs=1e-6), "frames or files: the same images"
    views = table_of(tmp_path / "empty" / "out_images.csv")
    assert views["image"].map(lambda name: Path(name).name).tolist() == ["one.dcm", "two#1", "two#2", "IM1", "IM2"]
    assert views["p_abnormal"].astype(float)[1:3].to_numpy() == pytest.approx(
        views["p_abnormal"].astype(float)[3:].to_numpy(), abs=1e-6
    )
    written = [p.read_text() for p in (tmp_path / "empty").rglob("*") if p.is_file()]
    assert len(written) == 3
    for text in (*written, logged, *capfd.readouterr()):
        assert not [s for s in SECRETS if s in text]


def test_a_run_says_how_its_images_were(mura, mrnet):
    assert xraylab.load(mura).images == {"channels": 1, "bits": None, "views": True}
    assert xraylab.load(mrnet).images == {"channels": 1, "bits": None, "views": False}
    assert json.loads((mura / "evaluation.json").read_text())["splits"]["test"]["n"] == 40
