"""``plane=all``: one network that sees the three planes of an exam at once, from the files to what is made of its tables."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import albumentations as A
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, assemble, compose_config
from torch import nn

import xraylab
from xraylab.config.resume import resumed_config
from xraylab.data.augmentation import Augmentation
from xraylab.data.batching import StudyDataset
from xraylab.data.cache.build import pack_table
from xraylab.data.datasets.mrnet import PLANES, MRNet
from xraylab.data.images.source import NpySource
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError
from xraylab.evaluation.ensembles.combine import CombineOptions, combine
from xraylab.evaluation.ensembles.members import read_members
from xraylab.inference.inputs import LEFT_OUT, find_studies, with_parts
from xraylab.inference.predictor import predict
from xraylab.inference.studies import Options
from xraylab.models import CNN, Attention, MaxFeature, MaxProbability, MeanProbability, StudyNet
from xraylab.reporting.dataset_report import describe
from xraylab.train import train

CPU = Options(workers=0)
GROUP = "axial+coronal+sagittal"
SMALL = [
    *TINY, "dataset=mrnet", "backbone=resnet18", "+backbone.kwargs.channels=[8,16,16,32]", "batch_size=4", "optimizer.lr=5e-3",
    "monitor=valid/loss", "early_stopping=null",
]  # fmt: skip


# ---- the network ------------------------------------------------------------------------------------------------------


def nets(kind):
    """A network of three parts, and one of a single bag with the first block of its head."""
    torch.manual_seed(0)
    joint, single = (StudyNet(CNN(image_size=16, layers=2), kind(), 2, parts=parts).double().eval() for parts in (PLANES, ()))
    width = single.backbone.num_features
    assert joint.head[0].weight.shape == (2, 3 * width)
    single.load_state_dict({**joint.state_dict(), "head.0.weight": joint.head[0].weight[:, :width]})
    return joint, single


@pytest.mark.parametrize("kind", [MaxFeature, Attention])
def test_parts_are_pooled_on_their_own_and_joined_before_the_head(kind):
    joint, single = nets(kind)
    width = single.backbone.num_features
    of = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5])  # two exams of three planes, row * 3 + plane
    x = torch.randn(len(of), width, dtype=torch.double, requires_grad=True)
    logits = joint.pooled(x, of, 2)
    shuffled = torch.tensor([2, 0, 1, 4, 3, 5, 7, 6, 8, 10, 9])
    torch.testing.assert_close(joint.pooled(x[shuffled], of, 2), logits, msg="the order of slices within a plane")
    first = joint.pooled(x[:6], of[:6], 1)
    torch.testing.assert_close(logits[:1], first, msg="an exam on its own")
    by_plane = [
        single.pool(x[of == part], torch.zeros(int((of == part).sum()), dtype=torch.long), 1, nn.Identity())
        for part in of.unique()
    ]
    torch.testing.assert_close(logits, joint.head(torch.cat(by_plane).reshape(2, -1)))
    assert not torch.allclose(joint.pooled(x, (of + 1) % 3 + of // 3 * 3, 2), logits), "which plane a slice is of matters"
    logits.sum().backward()
    assert all(p.grad is not None for p in joint.behind_features())

    silent = x.detach() * (of % 3 == 0)[:, None]
    axial = of % 3 == 0
    torch.testing.assert_close(joint.pooled(silent, of, 2), single.pooled(x[axial], of[axial] // 3, 2))


def test_pools_of_probabilities_are_refused():
    for kind in (MeanProbability, MaxProbability):
        with pytest.raises(UserError, match="pool=max_feature or pool=attention"):
            StudyNet(CNN(image_size=16, layers=2), kind(), 1, parts=PLANES)


# ---- the data ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(mrnet_root):
    return assign_splits(MRNet(plane="all").read(mrnet_root), "holdout", None, 0.2, 0)


def test_studies_and_splits_are_those_of_a_single_plane(table, mrnet_root):
    for plane in PLANES:
        single = assign_splits(MRNet(plane=plane).read(mrnet_root), "holdout", None, 0.2, 0)
        assert single.frame[["id", "split", "acl"]].equals(table.frame[["id", "split", "acl"]])
        assert single.split_digest() == table.split_digest()


def test_a_batch_holds_each_plane_as_a_volume_of_its_own(table, mrnet_root, tmp_path):
    draw = Augmentation([A.Affine(rotate=(-40, 40), p=1.0)])
    plain, drawn = StudyDataset(table, 32, rescale=True), StudyDataset(table, 32, augmentation=draw)
    batch = plain.batch([3, 7], [plain.read(3), plain.read(7)], 2.0)
    singles = {p: StudyDataset(MRNet(plane=p).read(mrnet_root), 32, rescale=True) for p in PLANES}
    for row, study in enumerate((3, 7)):
        for k, plane in enumerate(PLANES):
            (alone,) = singles[plane].read(study)  # rescaled by the range of this plane
            assert np.array_equal(batch.images[batch.study == 3 * row + k, 0].numpy(), alone)
    first, again, later = drawn.read(3, 1), drawn.read(3, 1), drawn.read(3, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, later, strict=True))
    same = [np.full((1, 32, 32), 0, np.uint8) for _ in PLANES]
    same = [np.pad(s[:, 12:20, 8:24], ((0, 0), (12, 12), (8, 8)), constant_values=200) for s in same]
    drawn.prepared = lambda *_: same
    assert len({bag.tobytes() for bag in drawn.read(3, 1)}) == 3, "each plane has a draw of its own"

    packed = pack_table(table, tmp_path, 32, True, "stop")
    cached = StudyDataset(packed)
    assert all(np.array_equal(a, b) for a, b in zip(cached.read(7), plain.read(7), strict=True))
    shards = sorted(p.name for p in (tmp_path / table.name).iterdir())
    pack_table(assign_splits(MRNet(plane="coronal").read(mrnet_root), "holdout", None, 0.2, 0), tmp_path, 32, True, "stop")
    assert sorted(p.name for p in (tmp_path / table.name).iterdir()) == shards, "a single plane has the same shards"


def test_a_missing_plane_is_named_and_counted(mrnet_root, tmp_path):
    root = shutil.copytree(mrnet_root, tmp_path / "MRNet-v1.0")
    (root / "train" / "coronal" / "0003.npy").unlink()
    (root / "valid" / "sagittal" / "0045.npy").write_bytes(b"broken")
    with pytest.raises(UserError, match="1 ids of train without a file in train/coronal: 0003"):
        MRNet(plane="all").read(root)
    table = MRNet(plane="all", on_error="skip").read(root)
    assert len(table.frame) == 68
    assert table.problems["ids of train without a file in train/coronal"] == ["0003"]
    assert "valid/sagittal/0045.npy" in table.problems["arrays that cannot be used"][0]

    class Torn(NpySource):
        def read(self, images):
            if any("axial/0007" in image for image in images):
                raise UserError("axial/0007.npy: torn.")
            return super().read(images)

    torn = pack_table(replace(table, source=Torn(root)), tmp_path / "cache", 32, False, "skip")
    assert torn.problems["studies of which axial or coronal or sagittal cannot be read"] == ["0007"]
    assert len(torn.frame) == 67
    shutil.rmtree(root / "valid" / "axial")
    with pytest.raises(UserError, match=r"MRNet-v1\.0 is not there"):
        MRNet(str(root), plane="all").find()


def test_an_exam_is_described_with_all_its_slices(table, mrnet_root):
    found = describe(table, None, 1, 0, skip=False)
    slices = [len(np.load(p, mmap_mode="r")) for p in (mrnet_root / "valid").glob("*/*.npy")]
    assert found.count("test", GROUP, "images") == sum(slices)
    assert all(", axial slice " in caption for caption, _ in found.pictures[GROUP])


# ---- from training to a combination -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, mrnet_root):
    """A joint run that learns, and a short one of a plane."""
    home = tmp_path_factory.mktemp("planes")
    for plane, more in (("all", ["max_epochs=12"]), ("coronal", ["max_epochs=1", "cases=0"])):
        words = [*SMALL, f"dataset.root={mrnet_root}", f"plane={plane}", *more]
        (home / plane).mkdir()
        train(compose_config(*words), home / plane, words)
    return home


def table_of(path):
    return pd.read_csv(path, dtype={"id": str})


def test_it_learns_the_sample(runs):
    evaluation = json.loads((runs / "all" / "evaluation.json").read_text())
    assert evaluation["splits"]["test"]["labels"]["acl"]["auroc"]["value"] >= 0.9
    assert set(evaluation["splits"]["test"]["groups"]) == {GROUP}
    assert table_of(runs / "all" / "figures" / "cases" / "cases.csv")["what"].str.match(r"axial slice \d of \d").all()


def test_it_predicts_as_it_was_evaluated_from_whatever_names_its_planes(runs, mrnet_root, tmp_path):
    test = table_of(runs / "all" / "predictions" / "test.csv")
    again = predict(runs / "all", "test", CPU).table
    assert np.abs(again["p_acl"] - test["p_acl"]).max() < 1e-6
    assert again["y_acl"].tolist() == test["y_acl"].tolist()

    model = xraylab.load(runs / "all")
    exam = {plane: np.load(mrnet_root / "valid" / plane / "0045.npy") for plane in PLANES}
    expected = test.set_index("id").loc["0045", "p_acl"]
    assert model.predict(dict(reversed(exam.items())))["acl"] == pytest.approx(expected, abs=1e-6)
    assert model.predict({p: volume[::-1].copy() for p, volume in exam.items()})["acl"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match=r'axial, coronal\} given; this model wants \{"axial": volume, "coronal": volume, "sag'):
        model.predict({p: exam[p] for p in PLANES[:2]})
    with pytest.raises(UserError, match="images without names given"):
        model.predict(exam["axial"])
    with pytest.raises(UserError, match="this model wants the images of a study"):
        xraylab.load(runs / "coronal").predict(exam)

    root = shutil.copytree(mrnet_root / "valid", tmp_path / "valid")
    (root / "coronal" / "0041.npy").unlink()
    (root / "sagittal" / "0043.npy").write_bytes(b"broken")
    shutil.copy(root / "axial" / "0042.npy", root / "stray.npy")
    done = predict(runs / "all", find_studies(str(root)), CPU)
    kept = test[~test["id"].isin(["0041", "0043"])]
    assert done.table["id"].tolist() == kept["id"].tolist()
    assert np.abs(done.table["p_acl"].to_numpy() - kept["p_acl"].to_numpy()).max() < 1e-6
    assert {(s.id, s.reason, s.study) for s in done.skipped} == {
        ("0041", "there is no coronal of it", LEFT_OUT),
        ("0043", "not a whole array", LEFT_OUT),
        ("stray", "its path does not name one of axial, coronal, sagittal", LEFT_OUT),
    }
    with pytest.raises(UserError, match="no study has them all"):
        predict(runs / "all", find_studies(str(root / "axial")), CPU)


def test_a_part_may_be_several_files(tmp_path):
    for plane, count in zip(PLANES, (2, 1, 3), strict=True):
        for k in range(count):
            (tmp_path / "exam" / plane).mkdir(parents=True, exist_ok=True)
            (tmp_path / "exam" / plane / f"{k}.png").touch()
    row = with_parts(find_studies(str(tmp_path)), PLANES).frame.iloc[0]
    assert (row["id"], len(row["images"])) == ("exam", 6)
    assert row["parts"] == ("axial", "axial", "coronal", "sagittal", "sagittal", "sagittal")
    other = tmp_path / "other"
    for plane in PLANES:
        (other / "7").mkdir(parents=True, exist_ok=True)
        np.save(other / "7" / f"{plane}.npy", np.zeros((2, 8, 8), np.uint8))
    assert with_parts(find_studies(str(other)), PLANES).frame["id"].tolist() == ["7"]


def test_it_is_combined_with_a_single_plane(runs, mrnet_root, tmp_path):
    members = read_members([str(runs / "all"), str(runs / "coronal")], {})
    evaluation = combine(members, CombineOptions("stack", bootstrap=20), tmp_path)
    (tmp_path / "config.yaml").write_text("method: stack\n")
    assert evaluation["splits"]["test"]["n"] == 30
    assert set(evaluation["splits"]["test"]["groups"]) == {GROUP}
    test = table_of(tmp_path / "predictions" / "test.csv")
    files = predict(tmp_path, find_studies(str(mrnet_root / "valid")), CPU).table
    assert files[["id", "group"]].to_numpy().tolist() == test[["id", "group"]].to_numpy().tolist()
    assert np.abs(files["p_acl"] - test["p_acl"]).max() < 1e-6


@pytest.mark.slow
def test_it_resumes_to_the_same_weights(mrnet_root, tmp_path):
    words = [*SMALL, f"dataset.root={mrnet_root}", "plane=all", "image.size=32", "bootstrap=0", "cases=0"]
    for name, epochs in (("whole", 2), ("halves", 1)):
        (tmp_path / name).mkdir()
        train(compose_config(*words, f"max_epochs={epochs}"), tmp_path / name, words)
    again = [f"resume={tmp_path / 'halves'}", "max_epochs=2"]
    train(resumed_config(str(tmp_path / "halves"), again), tmp_path / "halves", again)
    a, b = (torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for n in ("whole", "halves"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_settings_that_cannot_be_are_refused(mrnet_root):
    for word, said in (("pool=mean_probability", "joined by their features"), ("unit=image", "are slices, whose labels")):
        words = [*SMALL, f"dataset.root={mrnet_root}", "plane=all", word]
        with pytest.raises(UserError, match=said):
            assemble(compose_config(*words), words)
    with pytest.raises(UserError, match=r"or all\."):
        MRNet(plane="al")
