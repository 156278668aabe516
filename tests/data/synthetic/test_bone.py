"""The MURA sample: the published layout, and signs that must be seen to be told."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from xraylab.data.published import MURA_STUDIES
from xraylab.data.synthetic import bone
from xraylab.data.synthetic.bone import write_mura
from xraylab.data.synthetic.bone_drawing import KINDS, Sign, draw_sign, draw_view
from xraylab.data.synthetic.mark import is_synthetic
from xraylab.errors import UserError

SPLITS = ("train", "valid")
IMAGE = re.compile(r"MURA-v1\.1/((train|valid)/XR_([A-Z]+)/patient(\d{5})/study(\d)_(positive|negative)/image(\d)\.png)")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small tree. Do not change it."""
    return write_mura(tmp_path_factory.mktemp("mura") / "MURA-v1.1", train=110, valid=60)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest tree. Do not change it."""
    return write_mura(tmp_path_factory.mktemp("small") / "MURA-v1.1", train=70, valid=40)


def lines(root, split, name):
    text = (root / f"{split}_{name}.csv").read_bytes().decode("ascii")
    assert text.endswith("\n")
    assert "\r" not in text
    return text.splitlines()


def studies(root, split):
    """Each study's path without its first part, split at the slashes, and its label."""
    rows = [line.split(",") for line in lines(root, split, "labeled_studies")]
    return [(path.split("/")[2:5], int(label)) for path, label in rows]


def same(one, two):
    """Whether two trees hold the same files, byte for byte."""
    files = [{p.relative_to(r): p.read_bytes() for p in r.rglob("*") if p.suffix in (".png", ".csv")} for r in (one, two)]
    return files[0] == files[1]


def test_the_tree_is_the_published_one(root):
    assert {p.name for p in root.iterdir() if p.suffix != ".txt"} == {
        *SPLITS, "boxes.csv", "train_image_paths.csv", "train_labeled_studies.csv", "valid_image_paths.csv", "valid_labeled_studies.csv"
    }  # fmt: skip
    assert is_synthetic(root)
    for split, count in zip(SPLITS, (110, 60), strict=True):
        images = lines(root, split, "image_paths")
        found = [IMAGE.fullmatch(line) for line in images]
        assert all(m and m[2] == split and m[3].lower() in MURA_STUDIES for m in found)
        on_disk = {p.relative_to(root).as_posix() for p in (root / split).rglob("*.png")}
        double = {p for p in on_disk if "/._" in p}
        assert sorted(on_disk - double) == sorted(m[1] for m in found)  # every image is listed, once
        assert double
        assert all((root / p).read_bytes()[:4] == b"\0\5\x16\7" for p in double)
        rows = lines(root, split, "labeled_studies")
        assert len(rows) == count
        of_images = list(dict.fromkeys(line.rpartition("/")[0] for line in images))
        assert rows == [f"{s}/,{int(s.endswith('positive'))}" for s in of_images]  # the same studies in the same order


def test_a_row_is_written_as_published(root):
    assert lines(root, "train", "labeled_studies")[0].startswith("MURA-v1.1/train/XR_ELBOW/patient00001/study1_")
    assert lines(root, "train", "image_paths")[0].endswith("/image1.png")


def test_shares_are_the_published_ones(root):
    for split in SPLITS:
        published = {(p, c): MURA_STUDIES[p][split != "train"][c] for p in MURA_STUDIES for c in (0, 1)}
        counts = Counter((part[3:].lower(), label) for (part, *_), label in studies(root, split))
        for cell, number in published.items():
            expected = number / sum(published.values()) * sum(counts.values())
            assert abs(counts[cell] - expected) < 1.5
            assert counts[cell] >= 1


def test_the_smallest_sample_has_enough_of_each_class(small):
    for split in SPLITS:
        assert len({(part, label) for (part, *_), label in studies(small, split)}) == 14
    labels = [label for _, label in studies(small, "valid")]
    assert min(labels.count(0), labels.count(1)) >= 15


def test_patients_return_but_in_one_split_alone(root):
    patients = {}
    for split in SPLITS:
        parts, per_part = defaultdict(set), Counter()
        for (part, patient, study), _ in studies(root, split):
            parts[patient].add(part)
            per_part[part, patient] += 1
            assert study.startswith(f"study{per_part[part, patient]}_")  # numbered from 1 on
        assert max(map(len, parts.values())) > 1
        assert max(per_part.values()) > 1
        patients[split] = sorted(int(p.removeprefix("patient")) for p in parts)
    assert patients["train"] + patients["valid"] == list(range(1, patients["valid"][-1] + 1))


def test_images_are_of_many_sizes_and_some_in_colour(root):
    images = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in root.rglob("image*.png")]
    sizes = {image.shape[:2] for image in images}
    assert len(sizes) > 50
    assert all(160 <= max(size) <= 224 and min(size) >= 100 for size in sizes)
    assert any(h > w for h, w in sizes)
    assert any(h < w for h, w in sizes)
    assert all(image.dtype == np.uint8 for image in images)
    colour = [image for image in images if image.ndim == 3]
    assert 0.02 < len(colour) / len(images) < 0.2
    assert all(np.ptp(image, axis=2).max() == 0 for image in colour)
    views = Counter(len(list(p.glob("image*.png"))) for p in root.glob("*/XR_*/*/*"))
    assert set(views) == {1, 2, 3, 4}
    assert views[2] + views[3] > views[1] + views[4]


def test_views_of_a_study_differ(root):
    for folder in list(root.glob("train/XR_*/*/*"))[:20]:
        assert len({p.read_bytes() for p in folder.glob("image*.png")}) == len(list(folder.glob("image*.png")))


def test_the_same_seed_writes_the_same_files(tmp_path, small):
    again, other = (write_mura(tmp_path / str(seed), train=70, valid=40, seed=seed) for seed in (0, 1))
    assert same(small, again)
    assert not same(small, other)


@pytest.mark.parametrize("part", MURA_STUDIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sign_shows_in_a_small_part_of_the_picture(part, kind):
    for seed in range(12):
        drawn = draw_sign(np.random.default_rng(seed))
        sign = Sign(kind, drawn.bone, drawn.place, drawn.seed)
        sick, healthy = (draw_view(part, s, np.random.default_rng(seed)).astype(int) for s in (sign, None))
        assert sick.shape == healthy.shape
        assert 0.003 < (np.abs(sick - healthy) > 20).mean() < 0.15


def test_the_sign_of_an_abnormal_study_is_the_only_difference(tmp_path, small, monkeypatch):
    """A tree written again without signs: every abnormal study differs in some view, no normal one does."""
    monkeypatch.setattr(bone, "draw_view", lambda part, sign, rng: draw_view(part, None, rng))
    healthy = write_mura(tmp_path / "healthy", train=70, valid=40)
    views = Counter()
    for study in small.glob("*/XR_*/*/*"):
        images = sorted(study.glob("image*.png"))
        changed = [p.read_bytes() != (healthy / p.relative_to(small)).read_bytes() for p in images]
        assert any(changed) == study.name.endswith("positive")
        views.update(changed if any(changed) else [])
    assert 0 < views[False] < 0.3 * views[True]  # not all views of an abnormal study show its sign


def test_body_parts_can_be_told_apart():
    """Averages of each body part, and new drawings that are nearest to their own."""

    def reduced(part, seed):
        image = draw_view(part, None, np.random.default_rng([seed, 7])).astype(float)
        upright = image if image.shape[0] > image.shape[1] else image.T
        view = cv2.resize(upright, (12, 12), interpolation=cv2.INTER_AREA)
        view = np.minimum(view, np.percentile(view, 95))
        view = view + view[:, ::-1]  # either side
        return (view - view.mean()) / view.std()

    average = {part: np.mean([reduced(part, s) for s in range(60)], axis=0) for part in MURA_STUDIES}
    right = []
    for part in MURA_STUDIES:
        for view in (reduced(part, seed) for seed in range(60, 90)):
            fit = {p: float((a * view).sum()) for p, a in average.items()}
            right.append(max(fit, key=fit.__getitem__) == part)
    assert np.mean(right) > 0.5  # 1/7 by chance


def test_brightness_does_not_tell():
    truth = np.arange(210) % 2
    bags = []
    for i, t in enumerate(truth):
        rng = np.random.default_rng([3, i])
        part, sign = list(MURA_STUDIES)[i // 2 % 7], draw_sign(rng)
        bags.append(np.concatenate([draw_view(part, sign if t else None, rng).ravel() for _ in range(2)]))
    for statistic in (np.mean, np.std, lambda b: np.percentile(b, 99)):
        assert abs(roc_auc_score(truth, [statistic(b) for b in bags]) - 0.5) < 0.2


def test_mistakes_are_refused(tmp_path, root):
    with pytest.raises(UserError, match="not empty"):
        write_mura(root)
    with pytest.raises(UserError, match="15 of each class"):
        write_mura(tmp_path / "a", valid=39)
    with pytest.raises(UserError, match="at least 70"):
        write_mura(tmp_path / "a", train=69)
    assert not (tmp_path / "a").exists()
