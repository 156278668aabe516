"""Shards: which images share one, when it is built anew, and when an old one goes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from test_build import arrays, assert_same_pictures, count_decodes, forbid_reading, table_of
from test_build import views as views

from xraylab.data.cache.build import pack_table
from xraylab.data.cache.source import PackedSource
from xraylab.data.images.source import FileSource
from xraylab.data.preprocessing import prepare
from xraylab.data.study_table import StudyTable
from xraylab.errors import UserError


def test_another_way_of_resizing_has_a_cache_of_its_own(tmp_path):
    (tmp_path / "train").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (16, 60)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "train" / "a.bmp"), picture)
    frame = pd.DataFrame(
        {"id": ["a"], "patient": ["p"], "group": ["g"], "split": ["train"], "images": [("train/a.bmp",)], "x": [1.0]}
    )
    table = StudyTable(frame, ("x",), FileSource(tmp_path), "ways", views=True)
    for _ in range(2):  # neither takes the other's, nor deletes it
        for resize in ("each_axis", "shorter_side"):
            found = pack_table(table, tmp_path / "cache", 16, False, "stop", resize=resize).source.read(["train/a.bmp"])
            assert np.array_equal(found, prepare(picture[None], 16, resize=resize))
    assert len(list((tmp_path / "cache").rglob("index.json"))) == 2


def test_the_index_says_what_was_packed(views, tmp_path):
    pack_table(views, tmp_path / "cache", 32, True, "stop")
    (folder,) = (tmp_path / "cache" / "Views-v1").glob("train_wrist_32_rescaled_*")
    index = json.loads((folder / "index.json").read_text())
    files = list(Path(views.source.root).glob("train/wrist/*/*"))
    assert index["shape"] == [12, 32, 32]
    assert (index["files"], index["bytes"]) == (12, sum(f.stat().st_size for f in files))
    assert (index["size"], index["rescale"], index["colour"], index["synthetic"]) == (32, True, False, False)
    assert index["root"] == str(views.source.root)
    assert index["checksum"].startswith(folder.name.rpartition("_")[2])
    rows = np.load(folder / "images.npy")
    for name, (start, count) in index["images"].items():
        assert np.array_equal(rows[start : start + count], prepare(views.source.read([name]), 32, True))


def test_a_dataset_of_the_same_names_sizes_and_times_elsewhere_has_a_cache_of_its_own(tmp_path):
    tables = []
    for k, name in enumerate(("one", "other")):
        path = tmp_path / name / "train" / "a.bmp"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.full((40, 40), 100 * k + 50, np.uint8))
        os.utime(path, (1_000_000, 1_000_000))
        frame = pd.DataFrame(
            {"id": ["a"], "patient": ["p"], "group": ["g"], "split": ["train"], "images": [("train/a.bmp",)], "x": [1.0]}
        )
        tables.append(StudyTable(frame, ("x",), FileSource(tmp_path / name), "same", views=True))
    found = [pack_table(t, tmp_path / "cache", 16, False, "stop").source.read(["train/a.bmp"]) for t in tables]
    assert [int(images.mean()) for images in found] == [50, 150]


def test_one_body_part_and_all_share_shards(views, tmp_path, monkeypatch):
    pack_table(table_of(tmp_path / "views", groups=("wrist",)), tmp_path / "cache", 32, False, "stop")
    wrist = arrays(tmp_path / "cache")
    assert [name.rpartition("_")[0] for name in wrist] == ["heldout_wrist_32", "train_wrist_32"]
    decoded = count_decodes(monkeypatch)
    everything = pack_table(views, tmp_path / "cache", 32, False, "stop")
    assert len(decoded) == 24
    assert all("elbow" in name for name in decoded)
    assert wrist.items() <= arrays(tmp_path / "cache").items()
    assert_same_pictures(views, everything, 32, False)


@pytest.mark.parametrize("how", ["content", "time", "bytes", "gone"])
def test_a_changed_file_makes_a_new_shard_and_the_old_one_goes(views, tmp_path, how):
    pack_table(views, tmp_path / "cache", 32, False, "stop")
    pack_table(views, tmp_path / "cache", 16, False, "stop")
    before = arrays(tmp_path / "cache")
    file = tmp_path / "views" / "train/wrist/study2/image1.png"
    if how in ("content", "bytes"):
        then = file.stat().st_mtime_ns
        assert cv2.imwrite(str(file), np.full((50, 50), 200, np.uint8))
        if how == "bytes":
            os.utime(file, ns=(then, then))
    elif how == "time":
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    else:
        file.unlink()
    table = table_of(tmp_path / "views")
    assert_same_pictures(table, pack_table(table, tmp_path / "cache", 32, False, "stop"), 32, False)
    after = arrays(tmp_path / "cache")
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    assert [name.rpartition("_")[0] for name in gone] == ["train_wrist_32"]  # not that at 16 pixels, stale as it is
    assert [name.rpartition("_")[0] for name in new] == ["train_wrist_32"]
    assert all(after[name] == before[name] for name in before.keys() & after.keys())


def test_shards_of_another_root_or_of_fewer_studies_stay(views, tmp_path, monkeypatch):
    shutil.copytree(tmp_path / "views", tmp_path / "other", copy_function=shutil.copyfile)  # with times of their own
    other = table_of(tmp_path / "other")
    pack_table(other, tmp_path / "cache", 32, False, "stop")
    before = arrays(tmp_path / "cache")
    fewer = views.frame[views.frame["id"] != "train/wrist/study0"].reset_index(drop=True)
    fewer = StudyTable(fewer, views.labels, views.source, views.name)
    pack_table(fewer, tmp_path / "cache", 32, False, "stop")
    before |= arrays(tmp_path / "cache")
    os.utime(tmp_path / "other/train/wrist/study1/image0.png", (0, 0))  # stale, but not this root's
    pack_table(views, tmp_path / "cache", 32, False, "stop")
    assert before.items() <= arrays(tmp_path / "cache").items()
    forbid_reading(monkeypatch)
    pack_table(fewer, tmp_path / "cache", 32, False, "stop")


@pytest.mark.parametrize("damage", ["truncated", "longer", "no array", "no index", "half an index", "wrong array"])
def test_a_damaged_shard_is_built_again(views, tmp_path, damage, caplog):
    source = pack_table(views, tmp_path / "cache", 32, False, "stop").source
    folder = next(f for f in source.folders if f.name.startswith("train_wrist"))
    array, index = folder / "images.npy", folder / "index.json"
    if damage == "truncated":
        os.truncate(array, array.stat().st_size - 100)
    elif damage == "longer":
        array.write_bytes(array.read_bytes() + b"more")
    elif damage == "wrong array":
        np.save(array, np.zeros((12, 32, 31), np.uint8))
    elif damage == "half an index":
        os.truncate(index, 100)
    else:
        (array if damage == "no array" else index).unlink()
    with pytest.raises(UserError, match="not a whole shard"):
        PackedSource([folder])
    before = arrays(tmp_path / "cache")
    assert_same_pictures(views, pack_table(views, tmp_path / "cache", 32, False, "stop"), 32, False)
    assert f"{folder} is damaged" in caplog.text
    after = arrays(tmp_path / "cache")
    assert {name for name in after if after[name] != before.get(name)} == {folder.name}


def test_group_names_are_made_fit_for_files(views, tmp_path):
    frame = views.frame.assign(group=views.frame["group"].map({"wrist": "../left wrist", "elbow": ""}))
    table = StudyTable(frame, views.labels, views.source, "Views: all/of them")
    assert_same_pictures(table, pack_table(table, tmp_path / "cache", 32, False, "stop"), 32, False)
    names = {p.name.rpartition("_")[0] for p in (tmp_path / "cache" / "Views-all-of-them").iterdir()}
    assert names == {"train_left-wrist_32", "heldout_left-wrist_32", "train_all_32", "heldout_all_32"}
