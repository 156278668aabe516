"""Packed images are those of the files, in any order and in any process."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch
from test_build import assert_same_pictures, table_of, write_views
from test_build import views as views
from torch.utils.data import DataLoader

from xraylab.data.batching import Draw, StudyDataset
from xraylab.data.cache import build as packed
from xraylab.data.cache.build import pack_table
from xraylab.data.datasets.mrnet import MRNet
from xraylab.data.preprocessing import prepare
from xraylab.data.study_table import StudyTable
from xraylab.errors import UserError


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("suffix", "colour"), [("png", False), ("png", True), ("jpg", False)])
def test_pictures_are_those_of_the_files(tmp_path, suffix, colour, rescale):
    write_views(tmp_path / "views", suffix=suffix)
    table = table_of(tmp_path / "views", colour=colour)
    for size in (32, 64):  # smaller and larger
        assert_same_pictures(table, pack_table(table, tmp_path / "cache", size, rescale, "stop"), size, rescale)


@pytest.mark.parametrize("rescale", [False, True])
def test_pictures_of_one_size_are_packed_as_they_are(tmp_path, rescale):
    write_views(tmp_path / "views", sizes=(40, 40))
    table = table_of(tmp_path / "views", colour=True)
    assert_same_pictures(table, pack_table(table, tmp_path / "cache", None, rescale, "stop"), None, rescale)


@pytest.mark.parametrize(("size", "rescale"), [(None, False), (None, True), (64, False), (64, True)])
def test_volumes_are_those_of_the_files(mrnet_root, tmp_path, size, rescale):
    table = MRNet().read(mrnet_root)
    assert_same_pictures(table, pack_table(table, tmp_path, size, rescale, "stop"), size, rescale)


def test_chunks_do_not_show(views, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "CHUNK", 5)
    assert_same_pictures(views, pack_table(views, tmp_path / "a", 32, False, "stop", workers=3), 32, False)
    monkeypatch.setattr(packed, "CHUNK_BYTES", 2500)  # two pictures
    assert_same_pictures(views, pack_table(views, tmp_path / "b", 32, False, "stop"), 32, False)


def test_images_come_in_the_order_asked_for(views, tmp_path):
    source = pack_table(views, tmp_path / "cache", 32, False, "stop").source
    names = [name for images in views.frame["images"] for name in images]
    mixed = [names[i] for i in np.random.default_rng(0).permutation(len(names))] + names[:2]
    assert np.array_equal(source.read(mixed), prepare(views.source.read(mixed), 32))


def test_what_is_read_is_the_readers_own(views, tmp_path):
    source = pack_table(views, tmp_path / "cache", 32, False, "stop").source
    name = views.frame["images"][0]
    before = source.read(name)
    source.read(name)[:] = 0
    assert np.array_equal(source.read(name), before)
    assert not source.costly(resized=True)
    assert source.path(name[0]) is None
    with pytest.raises(UserError, match=r"elsewhere\.png: not in the packed cache"):
        source.read(["elsewhere.png"])


def test_readers_in_other_processes_read_right(views, tmp_path):
    table = pack_table(views, tmp_path / "cache", 32, False, "stop")
    draws = [Draw([row, (row + 7) % len(table.frame)], None, 1.0) for row in range(len(table.frame))]
    loader = DataLoader(StudyDataset(table), sampler=draws, batch_size=None, collate_fn=lambda batch: batch, num_workers=2)
    decoding = StudyDataset(views, size=32)
    for draw, batch in zip(draws, loader, strict=True):
        assert torch.equal(batch.images, decoding[draw].images)
        assert torch.equal(batch.study, decoding[draw].study)


def test_a_source_travels_without_its_arrays(views, tmp_path):
    table = pack_table(views, tmp_path / "cache", 32, False, "stop")
    text = pickle.dumps(table.source)
    assert len(text) < 10_000 < 48 * 32 * 32
    arrived = StudyTable(table.frame, table.labels, pickle.loads(text), table.name)
    assert_same_pictures(views, arrived, 32, False)
    shutil.rmtree(tmp_path / "cache")  # what is open stays open
    assert_same_pictures(views, arrived, 32, False)
    with pytest.raises(UserError, match="deleted or changed since the start"):
        pickle.loads(text)
