"""Folders and tables of DICOM files, by every command that reads a dataset; and nothing of a patient in what they leave."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import TINY, train_run
from data.images.test_dicom import SECRETS, dataset

from xraylab import check, describe, evaluate, prepare
from xraylab.data.cache.build import pack_table
from xraylab.data.datasets.csv_table import CsvTable
from xraylab.data.datasets.folder import Folder
from xraylab.data.integrity import examine
from xraylab.data.synthetic.pictures import draw_picture
from xraylab.errors import UserError
from xraylab.inference.inputs import find_studies
from xraylab.inference.predictor import predict
from xraylab.inference.studies import Options
from xraylab.predict import main as predict_main
from xraylab.training.study_module import load_module

SMALL = [
    *TINY, "max_epochs=1", "batch_size=8", "image.size=32", "backbone=resnet18_small", "+backbone.kwargs.channels=[8,8,16,16]",
]  # fmt: skip
NAMES = ("{}.dcm", "{}", "{}.IMA", "1.2.840.{}")


def write(top, kind):
    """``train`` and ``test`` of two classes, 24 and 12 pictures: PNG, or 8-bit DICOM of each kind of name."""
    for k in range(36):
        split, sick = ("train", "test")[k >= 24], k % 2
        picture = draw_picture(np.random.default_rng(k), blob=bool(sick))
        folder = top / split / ("abnormal" if sick else "normal") / f"patient{k:03d}"
        folder.mkdir(parents=True)
        if kind == "png":
            cv2.imwrite(str(folder / "a.png"), picture)
        else:
            dataset(picture, PatientName="DOE^JANE").save_as(folder / NAMES[k % 4].format(k), enforce_file_format=True)
    return top


def shards(cache):
    """The packed arrays, by split and group."""
    found = {file.parent.name.rpartition("_")[0]: file.read_bytes() for file in cache.rglob("images.npy")}
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same pictures as PNG and as DICOM, and a run on the latter."""
    top = tmp_path_factory.mktemp("dicom")
    write(top / "png" / "set", "png")
    root = write(top / "dicom" / "set", "dicom")
    patient = r"dataset.patient='patient(\d+)'"
    train_run(top / "run", *SMALL, "dataset=folder", f"dataset.root={root}", patient, f"cache={top / 'cache'}")
    return top


def test_dicom_is_packed_and_predicted_as_its_pictures(both, tmp_path):
    packed = shards(both / "cache")
    for kind in ("png", "dicom"):
        table = Folder(str(both / kind / "set")).read(both / kind / "set")
        pack_table(table, tmp_path / kind, 32, False, "stop")
        assert shards(tmp_path / kind) == packed
        rows = table.frame.assign(
            images=table.frame["images"].map(";".join), split=table.frame["split"].replace("heldout", "test")
        )
        rows.to_csv(both / kind / "set.csv", index=False)
        listed = CsvTable(str(both / kind / "set.csv"), images_root="set").read(both / kind / "set.csv")
        pack_table(listed, tmp_path / f"{kind}_table", 32, False, "stop")
        assert sorted(shards(tmp_path / f"{kind}_table").values()) == sorted(packed.values())
    of_run = pd.read_csv(both / "run" / "predictions" / "test.csv")["p_abnormal"].to_numpy()
    for kind in ("png", "dicom"):
        found = predict(both / "run", find_studies(str(both / kind / "set" / "test")), Options(workers=0)).table
        assert found["p_abnormal"].to_numpy() == pytest.approx(of_run, abs=1e-6)


def test_nothing_of_a_patient_is_left_anywhere(both, tmp_path, here, caplog):
    caplog.set_level("DEBUG")
    root, torn = both / "dicom" / "set", write(tmp_path / "torn", "dicom")
    broken = torn / "train" / "normal" / "patient000" / "0.dcm"
    broken.write_bytes(broken.read_bytes()[:-700])
    assert SECRETS[0].encode() in broken.read_bytes()
    cache = f"cache={tmp_path / 'cache'}"
    said = []
    for expected, entry, words in (
        (0, describe.main, ["dataset=folder", f"dataset.root={root}"]),
        (0, prepare.main, ["dataset=folder", f"dataset.root={root}", "image.size=32", cache]),
        (2, prepare.main, ["dataset=folder", f"dataset.root={torn}", "image.size=32", cache]),
        (0, prepare.main, ["dataset=folder", f"dataset.root={torn}", "image.size=32", cache, "dataset.on_error=skip"]),
        (0, check.main, ["dataset=folder", f"dataset.root={root}"]),
        (2, check.main, ["dataset=folder", f"dataset.root={torn}"]),
        (0, evaluate.main, [f"run={both / 'run'}", "bootstrap=20"]),
        (0, predict_main, [f"run={both / 'run'}", f"input={torn}", "num_workers=0", "output=out.csv"]),
    ):
        code, text = here(*words, entry=entry)
        assert code == expected, text
        said.append(text)
    assert "images that cannot be read:\n  train/normal/patient000/0.dcm" in said[5]
    left = [p for top in (tmp_path, both) for p in top.rglob("*") if p.is_file() and not {"set", "torn"} & set(p.parts)]
    assert len(left) > 20
    for secret in SECRETS:
        assert secret not in caplog.text + "".join(said)
        assert not [p for p in left if secret.encode() in p.read_bytes()]


def test_frames_are_slices_of_a_volume_in_training_and_after(tmp_path):
    rng = np.random.default_rng(0)
    top = tmp_path / "volumes"
    for split, n in (("train", 12), ("test", 6)):
        for k in range(n):
            folder = top / split / ("sick" if k % 2 else "normal")
            folder.mkdir(parents=True, exist_ok=True)
            frames = rng.integers(20, 90 + 60 * (k % 2), (3, 40, 36)).astype(np.uint8)
            dataset(frames, frames=True).save_as(folder / f"s{k}.dcm", enforce_file_format=True)
    dataset(frames[0]).save_as(top / "train" / "normal" / "one.dcm", enforce_file_format=True)  # a volume of one slice
    table = Folder(str(top)).read(top)
    assert not table.views
    findings = examine(Folder(str(top), on_error="skip"), top)
    assert not findings.faults
    assert int(findings.counts["images"].sum()) == 18 * 3 + 1
    how = ["dataset=folder", f"dataset.root={top}", "image.rescale=true", f"cache={tmp_path / 'cache'}"]
    run = train_run(tmp_path / "run", *SMALL, *how, "pool=max_feature")
    assert load_module(run / "checkpoints" / "best.ckpt").images == {
        "channels": 1, "bits": None, "views": False, "rule": {"series": "largest", "window": [], "slices": None}
    }  # fmt: skip
    found = predict(run, find_studies(str(top / "test"), "file"), Options(workers=0)).table
    of_run = pd.read_csv(run / "predictions" / "test.csv")
    assert found["p_sick"].to_numpy() == pytest.approx(of_run["p_sick"].to_numpy(), abs=1e-6)


def test_slices_in_files_are_prepared_one_by_one_in_training_and_after(tmp_path):
    """Each slice has a range of its own, so that to stretch it is not to stretch the volume's."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(18):
        names = [f"s{k}_{i}.dcm" for i in range(3)]
        for i, name in enumerate(names):
            picture = rng.integers(0, 50 + 90 * i, (40, 36)).astype(np.uint8)
            dataset(picture, Modality="CT", ImagePositionPatient=[0, 0, i]).save_as(tmp_path / name, enforce_file_format=True)
        rows.append([f"s{k}", ("train", "test")[k >= 12], ";".join(names), k % 2])
    pd.DataFrame(rows, columns=["id", "split", "images", "sick"]).to_csv(tmp_path / "t.csv", index=False)
    how = ["dataset=table", f"dataset.root={tmp_path / 't.csv'}", "dataset.views=false", "image.rescale=true", "pool=max_feature"]
    run = train_run(tmp_path / "run", *SMALL, *how, f"cache={tmp_path / 'cache'}")
    assert load_module(run / "checkpoints" / "best.ckpt").images["volumes"] is False
    (tmp_path / "list.csv").write_text("id,images\n" + "".join(f"{r[0]},{r[2]}\n" for r in rows[12:]))
    found = predict(run, find_studies(str(tmp_path / "list.csv")), Options(workers=0)).table
    of_run = pd.read_csv(run / "predictions" / "test.csv")
    assert found["p_sick"].to_numpy() == pytest.approx(of_run["p_sick"].to_numpy(), abs=1e-6)


# ---- what is and is not done with a file each of a series ---------------------------------------------------------------


def series(top, modality="CT", placed=True):
    """Two classes of files of their own, and of one class a study of three slices."""
    image = draw_picture(np.random.default_rng(0))
    for split in ("train", "test"):
        for name in ("normal", "sick"):
            (top / split / name / "exam").mkdir(parents=True)
            dataset(image).save_as(top / split / name / "a.dcm", enforce_file_format=True)
            for k in range(3):
                place = {"ImagePositionPatient": [0, 0, k]} if placed else {}
                file = top / split / name / "exam" / f"{k}.dcm"
                dataset(image, Modality=modality, **place).save_as(file, enforce_file_format=True)
    return top


@pytest.mark.parametrize(("modality", "placed"), [("CT", True), ("MR", False), ("OT", True)])
def test_a_series_of_slices_is_not_taken_for_views(tmp_path, modality, placed):
    """Of these neither the orientation nor an order is known, so that a folder of them is refused."""
    top = series(tmp_path / "set", modality, placed)
    with pytest.raises(UserError, match=r"4 studies without a series of slices that can be put in order.*: test/normal/exam, "):
        Folder(str(top)).read(top)
    table = Folder(str(top), on_error="skip").read(top)
    assert sorted(table.frame["id"]) == ["test/normal/a", "test/sick/a", "train/normal/a", "train/sick/a"]
    rows = [f"{s}{c},{s},{';'.join(f'{s}/{c}/exam/{k}.dcm' for k in range(3))},{int(c == 'sick')}"
            for s in ("train", "test") for c in ("normal", "sick")]  # fmt: skip
    (top / "t.csv").write_text("\n".join(["id,split,images,ill", *rows]))
    with pytest.raises(UserError, match="4 studies that look like a series of slices"):
        CsvTable(str(top / "t.csv")).read(top / "t.csv")
    volumes = CsvTable(str(top / "t.csv"), views=False).read(top / "t.csv")
    assert not volumes.views
    assert len(volumes.frame) == 4


def test_views_of_a_visit_are_no_series(tmp_path):
    top = series(tmp_path / "set", "DX", placed=False)
    table = Folder(str(top)).read(top)
    assert table.views
    assert len(table.frame) == 8


def test_prediction_says_what_it_does_with_a_series(both, tmp_path, caplog):
    top = series(tmp_path / "set")
    predict(both / "run", find_studies(str(top / "test")), Options(workers=0))
    assert "2 studies look like series of slices (CT, MR or PET): each slice is predicted as a view" in caplog.text


def test_volumes_and_studies_of_views_do_not_mix(tmp_path):
    image = draw_picture(np.random.default_rng(0))
    for split in ("train", "test"):
        for name in ("normal", "sick"):
            (top := tmp_path / split / name / "visit").mkdir(parents=True)
            for view in ("front", "side"):
                cv2.imwrite(str(top / f"{view}.png"), image)
    dataset(np.stack([image, image]), frames=True).save_as(tmp_path / "train" / "sick" / "loop", enforce_file_format=True)
    dataset(np.stack([image, image]), frames=True).save_as(tmp_path / "train" / "sick" / "visit" / "x", enforce_file_format=True)
    table = Folder(str(tmp_path), on_error="skip").read(tmp_path)
    assert table.views
    named = {kind.split(" (")[0].split(",")[0]: names for kind, names in table.problems.items()}
    assert named == {"studies of several files": ["train/sick/visit"], "volumes": ["train/sick/loop"]}


def test_without_pydicom_it_says_what_to_install(tmp_path, monkeypatch):
    top = write(tmp_path / "set", "dicom")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"and 35 more: reading DICOM needs pydicom: pip install 'xraylab\[dicom\]'"):
        Folder(str(top)).read(top)


def test_names_that_are_uids_are_ids(tmp_path):
    top = tmp_path / "set"
    image = draw_picture(np.random.default_rng(0))
    for split in ("train", "test"):
        for name in ("normal", "sick"):
            (top / split / name).mkdir(parents=True)
            for uid in ("1.2.840.1", "1.2.840.2"):
                dataset(image).save_as(top / split / name / uid, enforce_file_format=True)
    ids = Folder(str(top)).read(top).frame["id"].tolist()
    assert len(ids) == 8
    assert "train/sick/1.2.840.2" in ids
