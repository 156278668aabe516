"""From rows to batches: steps, packing, and pictures that depend on seed, epoch and study alone."""

from __future__ import annotations

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from xraylab.data.augmentation import Augmentation
from xraylab.data.batching import StepSampler
from xraylab.data.datamodule import StudyDataModule
from xraylab.data.datasets.mrnet import MRNet
from xraylab.data.preprocessing import pack, prepare
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError


@pytest.fixture(scope="module")
def table(mrnet_root):
    return assign_splits(MRNet(task=["acl", "abnormal"]).read(mrnet_root), "holdout", None, 0.2, 0)


def mrnet_augmentation():
    return Augmentation([A.Affine(rotate=(-25, 25), translate_percent=(-0.1, 0.1), p=1.0), A.HorizontalFlip(p=0.5)], per="study")


def test_batches_know_the_scored_labels_of_their_whole_step():
    scored = np.array([1, 2, 0, 1, 1, 2, 1])
    draws = list(StepSampler(np.arange(7), scored, batch_size=2, accumulate=2))
    assert [d.rows for d in draws] == [[0, 1], [2, 3], [4, 5], [6]]
    assert [d.scored for d in draws] == [4, 4, 4, 4]
    whole = list(StepSampler(np.arange(7), scored, batch_size=4))
    assert [d.scored for d in whole] == [4, 4]


def test_the_order_is_seeded_and_new_every_epoch():
    sampler = StepSampler(np.arange(50), np.ones(50), 8, shuffle=True, seed=1)
    first = [d.rows for d in sampler]
    assert [d.rows for d in sampler] == first
    sampler.set_epoch(1)
    second = [d.rows for d in sampler]
    assert second != first
    assert sorted(row for rows in second for row in rows) == list(range(50))
    sampler.skip = 3
    assert [d.rows for d in sampler] == second[3:]
    assert [d.rows for d in sampler] == second, "only one epoch is cut"


def test_batches_of_static_shapes_are_filled_to_a_power_of_two(table):
    plain, data = (StudyDataModule(table, batch_size=3, size=16, static_shapes=s) for s in (False, True))
    shapes = set()
    for split in ("train", "valid", "test"):
        for before, batch in zip(plain.loader(split), data.loader(split), strict=True):
            n = len(before.images)
            assert before.real is None
            assert batch.real == n
            assert len(batch.images) == 2 ** int(np.ceil(np.log2(n)))
            assert torch.equal(batch.images[:n], before.images)
            assert torch.equal(batch.study[:n], before.study)
            assert not batch.images[n:].any()
            assert (batch.study[n:] == len(batch.labels)).all()
            shapes.add((len(batch.images), len(batch.labels)))
    assert len(shapes) < len({(len(b.images), len(b.labels)) for s in ("train", "valid", "test") for b in plain.loader(s)})


def test_a_batch_is_packed(table):
    data = StudyDataModule(table, batch_size=3, size=64)
    batch = next(iter(data.loader("valid")))
    rows = batch.rows.tolist()
    counts = [len(np.load(table.source.root / table.frame["images"][r][0])) for r in rows]
    assert batch.images.shape == (sum(counts), 1, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert torch.bincount(batch.study).tolist() == counts
    assert batch.ids == tuple(table.frame["id"][rows])
    assert torch.equal(batch.labels, torch.tensor(table.frame.loc[rows, ["acl", "abnormal"]].to_numpy(np.float32)))


def pictures(table, workers, epoch, seed=0):
    data = StudyDataModule(table, 2, size=64, augmentation=mrnet_augmentation(), workers=workers, seed=seed)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    out = {}
    for batch in loader:
        for i, name in enumerate(batch.ids):
            out[name] = batch.images[batch.study == i]
    return out


def test_pictures_do_not_depend_on_the_number_of_workers(table):
    alone, two = pictures(table, 0, epoch=3), pictures(table, 2, epoch=3)
    assert alone.keys() == two.keys()
    assert all(torch.equal(alone[k], two[k]) for k in alone)


def test_pictures_differ_from_epoch_to_epoch_and_seed_to_seed(table):
    one, two, other = pictures(table, 0, 0), pictures(table, 0, 1), pictures(table, 0, 0, seed=1)
    assert not any(torch.equal(one[k], two[k]) for k in one)
    assert not any(torch.equal(one[k], other[k]) for k in one)


def test_all_slices_of_an_exam_share_one_draw_and_views_do_not():
    image = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    same = mrnet_augmentation()(np.stack([image] * 4), 0, 0, "a")
    assert all(np.array_equal(same[0], s) for s in same)
    assert not np.array_equal(same[0], image)
    views = Augmentation([A.Rotate((-25, 25), p=1.0)], per="image")(np.stack([image] * 4), 0, 0, "a")
    assert not np.array_equal(views[0], views[1])
    colour = Augmentation([A.HorizontalFlip(p=1.0)])(np.stack([np.dstack([image] * 3)] * 2), 0, 0, "a")
    assert np.array_equal(colour[1], np.dstack([image] * 3)[:, ::-1])


def test_validation_pictures_are_not_augmented(table):
    data = StudyDataModule(table, 1, augmentation=mrnet_augmentation())
    for split in ("valid", "test", "train"):
        batch = next(iter(data.loader(split, plain=True)))
        stored = table.source.read(table.frame["images"][int(batch.rows[0])])
        assert np.array_equal(batch.images[:, 0].numpy(), stored)


def test_prepare_rescales_and_resizes():
    exam = np.random.default_rng(0).integers(20, 120, (3, 256, 256)).astype(np.uint8)
    out = prepare(exam, None, rescale=True)
    assert (out.min(), out.max()) == (0, 255)
    expected = np.round((exam.astype(float) - exam.min()) * 255 / (exam.max() - exam.min()))
    assert np.abs(out - expected).max() <= 1
    small = prepare(exam, 64)
    assert np.array_equal(small[1], cv2.resize(exam[1], (64, 64), interpolation=cv2.INTER_AREA))
    assert np.array_equal(prepare(exam, 256), exam)
    assert prepare(np.full((1, 8, 8), 7, np.uint8), None, rescale=True).max() == 0


def test_images_of_different_sizes_ask_for_a_size():
    with pytest.raises(UserError, match=r"10x10, 8x8.*image.size"):
        pack([np.zeros((1, 8, 8), np.uint8), np.zeros((1, 10, 10), np.uint8)])
    assert pack([np.zeros((2, 8, 8, 3), np.uint8)]).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_fewest_images_are_counted_as_they_come(world):
    rng = np.random.default_rng(world)
    for _ in range(30):
        images, batch_size = rng.integers(1, 4, rng.integers(3, 20)), int(rng.integers(world, 7))
        samplers = [StepSampler(np.arange(len(images)), images, batch_size, 2, True, 5, r, world) for r in range(world)]
        found = []
        for epoch in range(3):
            for sampler in samplers:
                sampler.set_epoch(epoch)
                found += [images[d.rows].sum() if d.blank is None else images[d.blank] for d in sampler]
        assert samplers[0].fewest(images, batch_size, 3) == min(found)


def test_slices_of_a_volume_are_many_images_of_one_study(table):
    rows = table.part("train").index
    slices = [table.source.shape(i[0])[0] for i in table.frame["images"][rows]]
    assert min(slices) > 1
    assert not StudyDataModule(table, len(rows) - 1).lone_image(3)
    assert not StudyDataModule(table, 1).lone_image(3)


def averaged(length: int, size: int) -> np.ndarray:
    """What averages a line of so many pixels to a shorter one, (size,length): each pixel as much as it lies in the new one."""
    edges = np.arange(size + 1) * (length / size)
    inside = np.minimum(edges[1:, None], np.arange(length) + 1) - np.maximum(edges[:-1, None], np.arange(length))
    return np.maximum(inside, 0) * size / length


@pytest.mark.parametrize(("height", "width"), [(224, 512), (100, 512), (512, 224), (700, 90), (300, 400), (100, 150), (223, 512)])
def test_each_axis_is_resized_by_its_own_factor(height, width):
    """Against areas in float64 where an axis shrinks, and torch's cubic where one grows."""
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8), (0, 0), 2)
    expected = image.astype(np.float64)
    if height > 224:
        expected = averaged(height, 224) @ expected
    if width > 224:
        expected = expected @ averaged(width, 224).T
    expected = torch.nn.functional.interpolate(torch.from_numpy(expected)[None, None], (224, 224), mode="bicubic")[0, 0].numpy()
    assert np.abs(prepare(image[None], 224)[0] - expected.clip(0, 255)).max() <= 1.6  # rounded once or twice
    if (height > 224) == (width > 224):
        assert np.array_equal(prepare(image[None], 224), prepare(image[None], 224, resize="shorter_side"))


@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_finer_than_a_pixel_does_not_come_back_as_stripes(axis):
    """Stripes 2.7 pixels wide in the axis that shrinks from 512 to 224, beside one that stays."""
    stripes = np.where(np.arange(512) % 2.7 < 1.35, 255, 0).astype(np.uint8)
    image = np.tile(stripes, (224, 1)) if axis else np.tile(stripes[:, None], (1, 224))
    with_torch = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None].float(), (224, 224), mode="bilinear", antialias=True
    )
    left = float(with_torch.std())
    assert prepare(image[None], 224).std() < 1.5 * left
    assert prepare(image[None], 224, resize="shorter_side").std() > 2 * left
