"""Images that cannot be read: named at once, left out if asked for, and packed when they are mended."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_build import assert_same_pictures, forbid_reading, pack_interrupted, table_of, write_views
from test_build import views as views

from xraylab.data.cache import build as packed
from xraylab.data.cache.build import pack_table
from xraylab.data.datasets.mrnet import MRNet
from xraylab.data.images.source import FileSource
from xraylab.data.study_table import UNREADABLE, StudyTable
from xraylab.errors import UserError


def spoil(root: Path) -> dict[str, str]:
    """Files that cannot be read, with what is said of them; the only view of a study, one of several, another split's."""
    empty, cut, text = "train/wrist/study0/image0.png", "train/elbow/study2/image1.png", "heldout/elbow/study4/image1.png"
    (root / empty).write_bytes(b"")
    os.truncate(root / cut, (root / cut).stat().st_size // 2)  # its header is whole
    (root / text).write_text("not a picture")
    return {name: f"{name} (not a whole image ({(root / name).stat().st_size} bytes))" for name in (empty, cut, text)}


def test_all_unreadable_images_are_named_at_once(views, tmp_path, monkeypatch):
    said = spoil(tmp_path / "views")
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UserError) as stopped:
            pack_table(views, tmp_path / "cache", 32, False, "stop")
        assert f"3 {UNREADABLE}: " in str(stopped.value)
        assert all(words in str(stopped.value) for words in said.values())
        assert str(tmp_path / "views") in str(stopped.value)
        assert "dataset.on_error=skip" in str(stopped.value)
        forbid_reading(monkeypatch)


def test_unreadable_images_are_left_out_and_named(views, tmp_path, monkeypatch):
    said = spoil(tmp_path / "views")
    views.problems["rows that are wrong"] = ["line 3"]
    first = pack_table(views, tmp_path / "cache", 32, False, "skip")
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        second = pack_table(views, tmp_path / "cache", 32, False, "skip")
    for table in (first, second):
        assert table.problems.keys() == {"rows that are wrong", UNREADABLE, "studies of whose images none can be read"}
        assert table.problems["studies of whose images none can be read"] == ["train/wrist/study0"]
        assert sorted(table.problems[UNREADABLE]) == sorted(said.values())
        assert set(views.frame["id"]) - set(table.frame["id"]) == {"train/wrist/study0"}
        assert table.frame.index.tolist() == list(range(23))
        assert sum(map(len, table.frame["images"])) == 45
        good = StudyTable(table.frame, views.labels, views.source, views.name)
        assert_same_pictures(good, table, 32, False)
    assert views.problems.keys() == {"rows that are wrong"}
    with pytest.raises(UserError, match=r"train/elbow/study2/image1\.png: not in the packed cache"):
        first.source.read(["train/elbow/study2/image1.png"])


def test_images_found_unreadable_before_an_interruption_are_named_after_it(views, tmp_path, monkeypatch):
    said = spoil(tmp_path / "views")
    monkeypatch.setattr(FileSource, "shape", lambda self, image: (1, 30, 30))  # so that all faults show when decoding
    monkeypatch.setattr(packed, "CHUNK", 5)
    pack_interrupted(views, tmp_path / "cache", monkeypatch, 11)
    table = pack_table(views, tmp_path / "cache", 32, False, "skip")
    assert sorted(table.problems[UNREADABLE]) == sorted(said.values())
    assert_same_pictures(StudyTable(table.frame, views.labels, views.source, views.name), table, 32, False)


def test_a_mended_image_is_packed(views, tmp_path):
    said = spoil(tmp_path / "views")
    pack_table(views, tmp_path / "cache", 32, False, "skip")
    for name in said:
        assert cv2.imwrite(str(tmp_path / "views" / name), np.full((50, 40), 99, np.uint8))
    mended = pack_table(views, tmp_path / "cache", 32, False, "stop")
    assert mended.problems == {}
    assert_same_pictures(views, mended, 32, False)


def test_faults_of_the_system_are_not_remembered(views, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fromfile = np.fromfile

        def failing(file, *rest):
            if Path(file).match("*/wrist/study2/image1.png"):
                raise OSError(5, "Input/output error")
            return fromfile(file, *rest)

        patch.setattr(np, "fromfile", failing)
        for _ in range(2):
            with pytest.raises(UserError, match=r"2 images.*study2/image1\.png \(cannot be read: Input/output error\)"):
                pack_table(views, tmp_path / "cache", 32, False, "stop")
    assert_same_pictures(views, pack_table(views, tmp_path / "cache", 32, False, "stop"), 32, False)


def test_unreadable_volumes_are_named(mrnet_root, tmp_path):
    root = shutil.copytree(mrnet_root, tmp_path / "MRNet-v1.0")
    table = MRNet().read(root)
    names = [images[0] for images in table.frame["images"]]
    (root / names[3]).write_bytes(b"")
    os.truncate(root / names[5], 1000)
    np.save(root / names[7], np.zeros((3, 256, 256)))
    np.save(root / names[8], np.zeros((0, 256, 256), np.uint8))
    (root / names[-1]).unlink()
    bad = [names[3], names[5], names[7], names[8], names[-1]]
    for size in (None, 64):
        with pytest.raises(UserError, match=f"5 {UNREADABLE}") as stopped:
            pack_table(table, tmp_path / "cache", size, True, "stop")
        assert all(name in str(stopped.value) for name in bad)
        skipped = pack_table(table, tmp_path / "cache", size, True, "skip")
        assert [n for n in names if n not in bad] == [images[0] for images in skipped.frame["images"]]
        assert_same_pictures(StudyTable(skipped.frame, table.labels, table.source, table.name), skipped, size, True)


def test_a_shard_of_which_nothing_can_be_read(tmp_path):
    write_views(tmp_path / "views", studies=2)
    for file in (tmp_path / "views" / "train" / "wrist").glob("*/*"):
        file.write_bytes(b"")
    table = table_of(tmp_path / "views")
    for _ in range(2):
        skipped = pack_table(table, tmp_path / "cache", 32, False, "skip")
        assert len(skipped.problems[UNREADABLE]) == 3
        assert not skipped.frame["id"].str.startswith("train/wrist").any()
        assert_same_pictures(StudyTable(skipped.frame, table.labels, table.source, table.name), skipped, 32, False)
