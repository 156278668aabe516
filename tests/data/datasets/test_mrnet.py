"""MRNet-v1.0 as downloaded, and everything that can be wrong with it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from xraylab.data.datasets.mrnet import MRNet
from xraylab.errors import UserError


@pytest.fixture
def tree(mrnet_root, tmp_path):
    return shutil.copytree(mrnet_root, tmp_path / "MRNet-v1.0")


def test_rows_labels_and_images_are_those_of_the_files(mrnet_root):
    reader = MRNet(str(mrnet_root), plane="sagittal", task=["acl", "meniscus"])
    table = reader.read(reader.find())
    assert table.labels == ("acl", "meniscus")
    assert (table.frame["split"].value_counts().to_dict()) == {"train": 40, "heldout": 30}
    assert table.frame["id"].iloc[0] == "0000", "the first row is not a header"
    assert set(table.frame["group"]) == {"sagittal"}
    assert not table.patients_known
    truth = dict(line.split(",") for line in (mrnet_root / "valid-meniscus.csv").read_text().split())
    row = table.frame[table.frame["id"] == "0050"].iloc[0]
    assert row["meniscus"] == float(truth["0050"])
    assert np.array_equal(table.source.read(row["images"]), np.load(mrnet_root / "valid" / "sagittal" / "0050.npy"))


def test_the_root_is_the_folder_its_parent_or_a_mirrors_nesting(mrnet_root, tmp_path, monkeypatch):
    assert MRNet(str(mrnet_root)).find() == mrnet_root
    assert MRNet(str(mrnet_root.parent)).find() == mrnet_root
    nested = tmp_path / "mirror" / "mrnet-v1" / "MRNet-v1.0"
    nested.parent.mkdir(parents=True)
    nested.symlink_to(mrnet_root)
    assert MRNet(str(tmp_path / "mirror")).find() == nested
    monkeypatch.setenv("XRAYLAB_DATA", str(mrnet_root.parent))
    assert MRNet().find() == mrnet_root
    assert MRNet("sample").find() is None
    monkeypatch.delenv("XRAYLAB_DATA")
    monkeypatch.chdir(tmp_path)
    assert MRNet().find() is None
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "MRNet-v1.0").symlink_to(mrnet_root)
    assert MRNet().find().samefile(mrnet_root)


def test_half_a_dataset_does_not_become_the_sample(tree, tmp_path, monkeypatch):
    (tree / "train-acl.csv").unlink()
    monkeypatch.setenv("XRAYLAB_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"MRNet-v1\.0 is not there"):
        MRNet().find()
    monkeypatch.setenv("XRAYLAB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="there is no such folder"):
        MRNet().find()


def test_files_of_another_kind_are_named(tree):
    with open(tree / "train" / "axial" / "0000.npy", "wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(UserError, match=r"0000.npy \(an archive, not an array\)"):
        MRNet().read(tree)
    (tree / "train-acl.csv").write_bytes(b"\xff\xfe0\x000")
    with pytest.raises(UserError, match=r"train-acl\.csv: cannot be read"):
        MRNet().read(tree)


def test_a_sample_is_recognised_wherever_it_lies(mrnet_root):
    assert MRNet().read(mrnet_root).data == "synthetic sample"
    (mrnet_root / "SYNTHETIC_SAMPLE.txt").rename(mrnet_root / "hidden.txt")
    try:
        assert MRNet().read(mrnet_root).data == "MRNet-v1.0"
    finally:
        (mrnet_root / "hidden.txt").rename(mrnet_root / "SYNTHETIC_SAMPLE.txt")


def broken(tree):
    """One fault of every kind; what each must be reported as."""
    axial = tree / "train" / "axial"
    np.save(axial / "0000.npy", np.zeros((2, 128, 128), np.uint8))
    np.save(axial / "0001.npy", np.zeros((2, 256, 256), np.float32))
    (axial / "0002.npy").write_bytes((axial / "0002.npy").read_bytes()[:1000])
    (axial / "0003.npy").write_bytes(b"")
    (axial / "0004.npy").unlink()
    shutil.copy(axial / "0005.npy", axial / "9999.npy")
    (axial / "._0005.npy").write_bytes(b"AppleDouble")
    lines = (tree / "train-acl.csv").read_text().splitlines()
    lines[6] = "0006,2"
    lines[7] = "0007;1"
    lines.append(lines[8])
    (tree / "train-acl.csv").write_text("\n".join(lines) + "\n")


def test_everything_wrong_is_counted_and_named_in_one_summary(tree):
    broken(tree)
    with pytest.raises(UserError) as stop:
        MRNet().read(tree)
    text = str(stop.value)
    assert text.count("\n") < 12
    for said in (
        "0000.npy (shape (2, 128, 128)", "0001.npy (dtype float32", "0002.npy (unreadable", "0003.npy (unreadable", "4 arrays",
        "1 ids of train without a file in train/axial: 0004", "9999.npy", "0006 ('2', line 7)", "line 8: 0007;1",
        "1 duplicate ids in train-acl.csv: 0008", "dataset.on_error=skip",
    ):  # fmt: skip
        assert said in text, said
    assert "._0005" not in text


def test_skip_goes_on_without_them_and_remembers(tree):
    broken(tree)
    table = MRNet(on_error="skip").read(tree)
    ids = set(table.frame["id"])
    assert not ids & {"0000", "0001", "0002", "0003", "0004", "0006", "0007", "0008", "9999"}
    assert len(ids) == 70 - 8
    assert sum(map(len, table.problems.values())) >= 9


def test_an_id_in_both_splits_is_named(tree):
    (tree / "valid-acl.csv").write_text((tree / "valid-acl.csv").read_text() + "0000,1\n")
    shutil.copy(tree / "train" / "axial" / "0000.npy", tree / "valid" / "axial" / "0000.npy")
    with pytest.raises(UserError, match="ids in both train and valid: 0000"):
        MRNet().read(tree)


@pytest.mark.parametrize(("plane", "task"), [("axil", "acl"), ("axial", "alc"), ("axial", ["acl", "acl"]), ("axial", [])])
def test_wrong_planes_and_tasks_are_refused(plane, task):
    with pytest.raises(UserError, match="it is one of"):
        MRNet(plane=plane, task=task)
