"""``python -m xraylab.sample``."""

from __future__ import annotations

import numpy as np


def test_it_writes_the_dataset_that_is_asked_for(command, tmp_path):
    options = ["root=samples", "dataset.sample.train=10", "dataset.sample.valid=30", "dataset.sample.slices=[1,1]"]
    done = command("sample", "dataset=mrnet", *options)
    assert done.returncode == 0, done.stderr
    assert "synthetic" in done.stdout
    assert "dataset.root=samples backbone.pretrained=false" in done.stdout, "says how to train on it"
    root = tmp_path / "empty" / "samples" / "MRNet-v1.0"
    assert len(list(root.rglob("*.npy"))) == 40 * 3
    assert [p.name for p in (tmp_path / "empty").iterdir()] == ["samples"], "nothing else is left"
    again = command("sample", "dataset=mrnet", *options)
    assert again.returncode == 2
    assert "exists and is not empty" in again.stderr


def test_any_medmnist(command, tmp_path):
    small = [f"dataset.sample.{split}=8" for split in ("train", "val", "test")]
    done = command("sample", "dataset=medmnist", "subset=nodulemnist3d", "root=s", *small)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "empty" / "s" / "nodulemnist3d.npz")["train_images"].shape == (8, 28, 28, 28)


def test_a_wrong_option_is_named(command):
    done = command("sample", "dataset=mrnet", "root=s", "+dataset.sample.slcies=3")
    assert done.returncode == 2
    assert "slcies" in done.stderr
