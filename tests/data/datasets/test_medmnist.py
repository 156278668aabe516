"""MedMNIST: every set by name, from generated files of its layout."""

from __future__ import annotations

import numpy as np
import pytest

from xraylab.data.datasets.medmnist import MedMNIST
from xraylab.data.published import MEDMNIST
from xraylab.data.splits import assign_splits
from xraylab.data.synthetic.medmnist import write_medmnist
from xraylab.errors import UserError


@pytest.mark.parametrize("subset", MEDMNIST)
def test_every_set_reads_as_written(subset, tmp_path):
    write_medmnist(tmp_path / f"{subset}.npz", subset, train=30, val=30, test=32)
    reader = MedMNIST(str(tmp_path), subset=subset)
    path = reader.find()
    table = assign_splits(reader.read(path), "holdout", None, 0.2, 0)
    about, names = MEDMNIST[subset], MEDMNIST[subset].labels.split()
    assert table.labels == tuple(names[1:] if about.kind == "binary" else names)
    assert table.frame["split"].value_counts().to_dict() == {"test": 32, "train": 30, "valid": 30}
    assert table.exclusive == (about.kind == "classes")
    raw = np.load(path)
    row = table.part("test").iloc[3]
    image = table.source.read(row["images"])
    assert np.array_equal(image if about.volume else image[0], raw["test_images"][3])
    values = row[list(table.labels)].to_numpy(int)
    truth = raw["test_labels"][3]
    if about.kind == "findings":
        assert np.array_equal(values, truth)
    elif about.kind == "binary":
        assert values == truth
    else:
        assert values.sum() == 1
        assert values.argmax() == truth[0]


def test_the_file_names_the_set(tmp_path):
    path = write_medmnist(tmp_path / "breastmnist.npz", "breastmnist", train=20, val=20, test=20)
    assert MedMNIST(str(path)).subset == "breastmnist"
    assert MedMNIST(str(path.with_name("organmnist3d_64.npz"))).published_name == "organmnist3d_64.npz"
    renamed = path.rename(tmp_path / "mine.npz")
    assert MedMNIST(str(renamed), subset="breastmnist").find() == renamed
    with pytest.raises(UserError, match="leave one of them out"):
        MedMNIST(str(path), subset="pneumoniamnist")
    with pytest.raises(UserError, match="leave one of them out"):
        MedMNIST("organmnist3d_64.npz", resolution=128)
    with pytest.raises(UserError, match="add subset="):
        MedMNIST(str(renamed))
    with pytest.raises(UserError, match="Did you mean pneumoniamnist"):
        MedMNIST(subset="pneumonia")


def test_wrong_contents_are_named(tmp_path, pneumonia_file):
    good = dict(np.load(pneumonia_file))

    def read(**changes):
        path = tmp_path / "pneumoniamnist.npz"
        np.savez(path, **{k: v for k, v in {**good, **changes}.items() if v is not None})
        return MedMNIST(str(path)).read(path)

    with pytest.raises(UserError, match="has no val_labels"):
        read(val_labels=None)
    with pytest.raises(UserError, match="train_images is uint8"):
        read(train_images=good["train_images"][:, :14])
    with pytest.raises(UserError, match="float64"):
        read(train_images=good["train_images"].astype(float))
    with pytest.raises(UserError, match=r"test_labels is .* expected integers"):
        read(test_labels=good["test_labels"][:5])
    labels = good["train_labels"].copy()
    labels[7] = 5
    with pytest.raises(UserError, match=r"1 labels in train_labels outside the 2 of pneumoniamnist: train:7 \(\[5\]\)"):
        read(train_labels=labels)
    cut = tmp_path / "pneumoniamnist.npz"
    cut.write_bytes(pneumonia_file.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        MedMNIST(str(cut)).read(cut)


def test_three_published_splits_are_kept(pneumonia_file):
    table = MedMNIST(str(pneumonia_file)).read(pneumonia_file)
    for selection in ("official", "split_valid"):
        with pytest.raises(UserError, match="publishes train, valid and test"):
            assign_splits(table, selection, None, 0.2, 0)
    folded = assign_splits(table, "holdout", "2/4", 0.2, 0).frame
    assert (folded["split"] == "test").sum() == 80
    assert (folded["split"] == "valid").sum() == 55


def test_every_set_has_an_embedded_sample_of_its_own(tmp_path):
    options = {"train": 20, "val": 20, "test": 20}
    paths = {
        MedMNIST(subset=s, resolution=r).embedded(options)
        for s, r in (("breastmnist", 28), ("pneumoniamnist", 28), ("breastmnist", 64))
    }
    assert {p.name for p in paths} == {"breastmnist.npz", "pneumoniamnist.npz", "breastmnist_64.npz"}
    assert MedMNIST(subset="breastmnist").embedded(options) in paths
    with pytest.raises(UserError, match=r"dataset.sample: .*trian"):
        MedMNIST(subset="breastmnist").embedded({"trian": 3})


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XRAYLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="XRAYLAB_CACHE"):
        MedMNIST().embedded({})
