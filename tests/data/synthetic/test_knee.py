"""The MRNet sample: the published layout, and findings that must be seen to be told."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from xraylab.data.synthetic.knee import PLANES, draw_exam, write_mrnet
from xraylab.errors import UserError

HEALTHY = {"abnormal": False, "acl": False, "meniscus": False}


def test_the_tree_is_the_published_one(mrnet_root):
    for split, ids in (("train", range(40)), ("valid", range(40, 70))):
        for plane in PLANES:
            assert {p.name for p in (mrnet_root / split / plane).iterdir()} == {f"{i:04d}.npy" for i in ids}
        for task in ("abnormal", "acl", "meniscus"):
            lines = (mrnet_root / f"{split}-{task}.csv").read_text().splitlines()
            assert [line.split(",")[0] for line in lines] == [f"{i:04d}" for i in ids]  # no header
            labels = [line.split(",")[1] for line in lines]
            assert set(labels) == {"0", "1"}
            if split == "valid":
                assert min(labels.count("0"), labels.count("1")) >= 15
    exam = np.load(mrnet_root / "train" / "axial" / "0000.npy")
    assert exam.dtype == np.uint8
    assert exam.shape[1:] == (256, 256)


def test_slices_are_as_published_unless_fewer_are_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    assert draw_exam("axial", HEALTHY, 19, rng)[0].shape == (19, 256, 256)
    root = write_mrnet(tmp_path / "MRNet-v1.0", train=10, valid=30, slices=(1, 2))
    counts = {len(np.load(p, mmap_mode="r")) for p in root.rglob("*.npy")}
    assert counts == {1, 2}


def test_the_same_seed_draws_the_same_exam():
    one, two, other = (draw_exam("coronal", HEALTHY, 3, np.random.default_rng(s))[0] for s in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("finding", ["acl", "meniscus"])
def test_a_finding_shows_in_a_few_slices(plane, finding):
    sick = {**HEALTHY, "abnormal": True, finding: True}
    changed = 0
    for seed in range(4):
        # abnormality may draw an effusion as well: compare with an exam that differs by the finding alone
        a = draw_exam(plane, sick, 21, np.random.default_rng(seed))[0].astype(int)
        b = draw_exam(
            plane,
            {**sick, finding: False, "acl": finding != "acl", "meniscus": finding != "meniscus"},
            21,
            np.random.default_rng(seed),
        )[0].astype(int)
        slices = (np.abs(a - b) > 40).sum((1, 2)) > 20
        assert 2 <= slices.sum() <= 14
        changed += slices.sum()
    assert changed


@pytest.mark.parametrize("plane", PLANES)
def test_mean_brightness_does_not_tell(plane):
    rng = np.random.default_rng(0)
    truth = np.arange(160) % 2
    exams = [draw_exam(plane, {"abnormal": bool(t), "acl": bool(t), "meniscus": False}, 4, rng)[0] for t in truth]
    for statistic in (np.mean, np.std, lambda e: np.percentile(e, 99)):
        assert abs(roc_auc_score(truth, [statistic(e) for e in exams]) - 0.5) < 0.2


def test_mistakes_are_refused(tmp_path, mrnet_root):
    with pytest.raises(UserError, match="not empty"):
        write_mrnet(mrnet_root)
    with pytest.raises(UserError, match="15 of each class"):
        write_mrnet(tmp_path / "a", valid=20)
    with pytest.raises(UserError, match="least, most"):
        write_mrnet(tmp_path / "a", slices=(5, 2))
