"""The packed cache: the same pictures as the files, built once, gone on with, and never read when stale or half-built."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from xraylab.data.batching import Draw, StudyDataset
from xraylab.data.cache import build as packed
from xraylab.data.cache.build import pack_table
from xraylab.data.cache.source import PackedSource
from xraylab.data.datasets.mrnet import MRNet
from xraylab.data.images.source import ArraySource, FileSource
from xraylab.data.preprocessing import prepare
from xraylab.data.study_table import UNREADABLE, StudyTable
from xraylab.errors import UserError
from xraylab.system.files import locked

REPOSITORY = Path(__file__).parents[3]


def write_views(root: Path, groups=("wrist", "elbow"), studies=6, suffix="png", sizes=(30, 60), seed=0) -> None:
    """``<split>/<group>/<study>/image<k>``: noise of various sizes, in colour, 1 to 3 views a study."""
    rng = np.random.default_rng(seed)
    for split, group, study in ((s, g, n) for s in ("train", "heldout") for g in groups for n in range(studies)):
        folder = root / split / group / f"study{study}"
        folder.mkdir(parents=True)
        for k in range(1 + study % 3):
            shape = rng.integers(*sizes, 2) if sizes[0] < sizes[1] else np.array([sizes[0]] * 2)
            coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            assert cv2.imwrite(str(folder / f"image{k}.{suffix}"), cv2.resize(coarse, shape[::-1].tolist()))


def table_of(root: Path, groups=("wrist", "elbow"), colour=False) -> StudyTable:
    rows = [
        (str(folder.relative_to(root)), "train" if folder.parts[-3] == "train" else "heldout", folder.parts[-2],
         tuple(str(p.relative_to(root)) for p in sorted(folder.iterdir())))
        for group in groups for folder in sorted(root.glob(f"*/{group}/*"))
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["id", "split", "group", "images"])
    frame["patient"], frame["abnormal"] = frame["id"], np.float32(0)
    return StudyTable(frame, ("abnormal",), FileSource(root, colour), "Views-v1", views=True, channels=3 if colour else 1)


@pytest.fixture
def views(tmp_path):
    """A table of 48 views in 24 studies, four of them (split, group) 12 views each."""
    write_views(tmp_path / "views")
    return table_of(tmp_path / "views")


class Stat(NamedTuple):
    inode: int
    changed: int


def arrays(folder: Path) -> dict[str, Stat]:
    """Which arrays there are, and whether they are the same as before."""
    return {p.parent.name: Stat(p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(folder.glob("*/*/images.npy"))}


def assert_same_pictures(table, packed_table, size, rescale):
    assert isinstance(packed_table.source, PackedSource)
    for images in table.frame["images"]:
        expected = prepare(table.source.read(images), size, rescale)
        found = packed_table.source.read(images)
        assert type(found) is np.ndarray
        assert found.dtype == np.uint8
        assert found.flags.owndata
        assert np.array_equal(found, expected)
        for image in images:
            one = prepare(table.source.read([image]), size, rescale)
            assert packed_table.source.shape(image) == one.shape[:3]
            assert np.array_equal(packed_table.source.read([image]), one)


def count_decodes(monkeypatch) -> list[str]:
    decoded: list[str] = []
    decode = FileSource._decode

    def counted(self, image):
        decoded.append(image)
        return decode(self, image)

    monkeypatch.setattr(FileSource, "_decode", counted)
    return decoded


def pack_interrupted(table: StudyTable, cache: Path, monkeypatch, chunks: int) -> list[int]:
    """Pack at 32 pixels until so many chunks are done, and then interrupt it; returns the images of each."""
    done: list[int] = []

    def add(self, images):
        done.append(images)
        if len(done) == chunks:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packed._Progress, "add", add)
        with pytest.raises(KeyboardInterrupt):
            pack_table(table, cache, 32, False, "stop", workers=1)
    return done


def forbid_reading(monkeypatch):
    def read(self, images):
        raise AssertionError(f"{images} were read again")

    monkeypatch.setattr(FileSource, "read", read)


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


def test_a_second_run_builds_nothing(views, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    pack_table(views, tmp_path / "cache", 32, False, "stop")
    assert "packing 48 images of Views-v1 (heldout elbow, heldout wrist, train elbow, train wrist) at 32 pixels" in caplog.text
    assert str(tmp_path / "cache" / "Views-v1") in caplog.text
    assert "packed in" in caplog.text
    before = arrays(tmp_path / "cache")
    assert len(before) == 4
    caplog.clear()
    forbid_reading(monkeypatch)
    again = pack_table(views, tmp_path / "cache", 32, False, "stop")
    assert arrays(tmp_path / "cache") == before
    assert caplog.text == ""
    monkeypatch.undo()
    assert_same_pictures(views, again, 32, False)
    left = {p.name for p in (tmp_path / "cache").rglob("*")} - set(before)
    assert left == {"Views-v1", "images.npy", "index.json"}


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


def test_files_that_change_while_they_are_packed_stop_it(views, tmp_path, monkeypatch):
    decode = FileSource._decode

    def growing(self, image):
        os.utime(self.root / image, (0, 0))
        return decode(self, image)

    monkeypatch.setattr(FileSource, "_decode", growing)
    with pytest.raises(UserError, match="files changed while they were packed"):
        pack_table(views, tmp_path / "cache", 32, False, "stop")
    assert arrays(tmp_path / "cache") == {}


def test_an_interrupted_build_goes_on_where_it_was(views, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(packed, "CHUNK", 5)
    expected = pack_table(views, tmp_path / "straight", 32, False, "stop")
    done = pack_interrupted(views, tmp_path / "cache", monkeypatch, 5)  # in the second of four shards, of three chunks each
    assert len([name for name in arrays(tmp_path / "cache") if not name.endswith(".partial")]) == 1
    decoded = count_decodes(monkeypatch)
    resumed = pack_table(views, tmp_path / "cache", 32, False, "stop")
    assert len(decoded) == len(set(decoded)) == 48 - sum(done)
    assert f"{sum(done) - 12:,} of them are done" in caplog.text
    monkeypatch.undo()
    assert_same_pictures(views, resumed, 32, False)
    for folder in expected.source.folders:
        same = tmp_path / "cache" / "Views-v1" / folder.name
        assert (same / "images.npy").read_bytes() == (folder / "images.npy").read_bytes()
        assert (same / "index.json").read_bytes() == (folder / "index.json").read_bytes()


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_build import table_of
from xraylab.data.cache import build as packed
from xraylab.data.images.source import FileSource

decode = FileSource._decode
def slow(self, image):
    time.sleep(0.05)
    return decode(self, image)
FileSource._decode = slow
packed.CHUNK = 5
packed.pack_table(table_of(Path({root!r})), Path({cache!r}), 32, False, "stop", workers=1)
"""


def test_a_killed_build_goes_on_and_is_never_read_before(views, tmp_path, monkeypatch):
    script = SLOW.format(tests=str(Path(__file__).parent), root=str(tmp_path / "views"), cache=str(tmp_path / "cache"))
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    first = "heldout_elbow"  # of four shards
    until = time.monotonic() + 60
    while not any(p.read_text().count("[") >= 2 for p in tmp_path.glob(f"cache/*/{first}*.partial/done.txt")):
        assert child.poll() is None, "it was done before it was killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()

    (partial,) = tmp_path.glob("cache/*/*.partial")
    with pytest.raises(UserError, match="not a whole shard"):
        PackedSource([partial.with_suffix("")])
    numbers = [json.loads(line)[0] for line in (partial / "done.txt").read_text().splitlines() if line]
    plan = list(json.loads((partial / "plan.json").read_text())["images"])
    done = {name for n in numbers for name in plan[5 * n :][:5]}
    monkeypatch.setattr(packed, "CHUNK", 5)
    decoded = count_decodes(monkeypatch)
    resumed = pack_table(views, tmp_path / "cache", 32, False, "stop")
    assert len(done) >= 10
    assert not done & set(decoded)
    assert len(decoded) == 48 - len(done)
    monkeypatch.undo()
    assert_same_pictures(views, resumed, 32, False)
    assert not list(tmp_path.glob("cache/*/*.partial"))
    assert not list(tmp_path.glob("cache/*/*.lock"))


@pytest.mark.parametrize("change", ["order", "truncated", "marks"])
def test_a_partial_build_that_does_not_fit_is_thrown_away(tmp_path, monkeypatch, change):
    write_views(tmp_path / "views", groups=("wrist",))
    table = table_of(tmp_path / "views", groups=("wrist",))
    monkeypatch.setattr(packed, "CHUNK", 5)
    pack_interrupted(table, tmp_path / "cache", monkeypatch, 2)
    (partial,) = tmp_path.glob("cache/*/*.partial")
    if change == "order":
        table = StudyTable(table.frame[::-1].reset_index(drop=True), table.labels, table.source, table.name)
    elif change == "truncated":
        os.truncate(partial / "images.npy", 5000)
    else:
        (partial / "done.txt").write_text("\n[0, {")  # killed while it was written
    decoded = count_decodes(monkeypatch)
    resumed = pack_table(table, tmp_path / "cache", 32, False, "stop")
    assert len(decoded) == 24
    monkeypatch.undo()
    assert_same_pictures(table, resumed, 32, False)


def test_what_was_left_of_a_build_goes_when_its_files_changed(tmp_path, monkeypatch):
    write_views(tmp_path / "views", groups=("wrist",))
    table = table_of(tmp_path / "views", groups=("wrist",))
    pack_interrupted(table, tmp_path / "cache", monkeypatch, 1)
    assert list(tmp_path.glob("cache/*/*.partial"))
    os.utime(tmp_path / "views/heldout/wrist/study0/image0.png", (0, 0))
    assert_same_pictures(table, pack_table(table, tmp_path / "cache", 32, False, "stop"), 32, False)
    assert not list(tmp_path.glob("cache/*/*.partial"))


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


def pack_slowly(root: Path, cache: Path, barrier, decodes, lines) -> None:
    """In a process of its own: pack, each decode taking its time and being counted."""
    decode = FileSource._decode

    def slow(self, image):
        time.sleep(0.02)
        decodes.put(image)
        return decode(self, image)

    FileSource._decode = slow

    class Sent(logging.Handler):
        def emit(self, record):
            lines.put(record.getMessage())

    logging.getLogger("xraylab").addHandler(Sent())
    logging.getLogger("xraylab").setLevel(logging.INFO)
    table = table_of(root)
    barrier.wait(60)
    source = pack_table(table, cache, 32, False, "stop", workers=1).source
    same = all(
        np.array_equal(source.read(images), prepare([decode(table.source, i) for i in images], 32))
        for images in table.frame["images"]
    )
    lines.put("same" if same else "different")


def test_of_two_processes_one_builds_and_the_other_waits(views, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, decodes, lines = context.Barrier(2), context.Queue(), context.Queue()
    arguments = (tmp_path / "views", tmp_path / "cache", barrier, decodes, lines)
    processes = [context.Process(target=pack_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    read = [decodes.get(timeout=60) for _ in range(48)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    said = []
    while not lines.empty():
        said.append(lines.get())
    assert decodes.empty()
    assert len(set(read)) == 48
    assert said.count("same") == 2
    assert sum("packing 48 images" in line for line in said) == 1
    assert sum("waiting for another process that packs Views-v1" in line for line in said) >= 1
    assert len(arrays(tmp_path / "cache")) == 4


def test_who_waited_for_a_lock_holds_the_one_that_others_see(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path, seen = tmp_path / "lock", []

    def second():
        with locked(path, "the same"):
            seen.append(path.exists())
            with pytest.raises(BlockingIOError), locked(path, None):
                pass

    thread = threading.Thread(target=second)
    with locked(path, "the same"):
        thread.start()
        while "waiting" not in caplog.text:
            time.sleep(0.001)
        time.sleep(0.05)
    thread.join(10)
    assert seen == [True]
    assert not path.exists()


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


def test_images_of_different_sizes_ask_for_a_size(views, tmp_path):
    with pytest.raises(UserError, match=r"images of different sizes .*set image\.size"):
        pack_table(views, tmp_path / "cache", None, False, "stop")
    assert arrays(tmp_path / "cache") == {}
    write_views(tmp_path / "two", groups=("wrist",), sizes=(40, 40))
    write_views(tmp_path / "two", groups=("elbow",), sizes=(30, 30))
    for groups in (("wrist",), ("elbow",)):
        pack_table(table_of(tmp_path / "two", groups), tmp_path / "cache", None, False, "stop")
    with pytest.raises(UserError, match=r"30x30, 40x40.*set image\.size"):
        pack_table(table_of(tmp_path / "two"), tmp_path / "cache", None, False, "stop")


def test_a_disk_too_small_is_said_before_anything_is_read(views, tmp_path, monkeypatch):
    forbid_reading(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(UserError) as stopped:
        pack_table(views, tmp_path / "cache", 32, False, "stop")
    for words in (str(48 * 32 * 32), "5000 bytes", str(tmp_path / "cache"), "cache=off", "cache=<folder>", "image.size"):
        assert words in str(stopped.value)


def test_a_disk_that_fills_meanwhile_is_said(views, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device.*cache=off"):
        pack_table(views, tmp_path / "cache", 32, False, "stop")


def test_a_folder_that_cannot_be_written_is_named(views, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(UserError) as stopped:
            pack_table(views, folder, 32, False, "stop")
        for words in (str(folder), "cache=off", "cache=<folder>", "$XRAYLAB_CACHE"):
            assert words in str(stopped.value)


def test_images_in_memory_are_not_packed(views, tmp_path):
    source = ArraySource({"train": np.zeros((3, 8, 8), np.uint8)}, volume=False)
    frame = views.frame[:3].assign(images=[(f"train:{i}",) for i in range(3)])
    with pytest.raises(ValueError, match="no file behind it"):
        pack_table(StudyTable(frame, views.labels, source, views.name), tmp_path / "cache", None, False, "stop")


def test_group_names_are_made_fit_for_files(views, tmp_path):
    frame = views.frame.assign(group=views.frame["group"].map({"wrist": "../left wrist", "elbow": ""}))
    table = StudyTable(frame, views.labels, views.source, "Views: all/of them")
    assert_same_pictures(table, pack_table(table, tmp_path / "cache", 32, False, "stop"), 32, False)
    names = {p.name.rpartition("_")[0] for p in (tmp_path / "cache" / "Views-all-of-them").iterdir()}
    assert names == {"train_left-wrist_32", "heldout_left-wrist_32", "train_all_32", "heldout_all_32"}


def test_progress_is_logged_where_there_is_no_terminal(views, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(packed, "CHUNK", 5)
    monkeypatch.setattr("xraylab.system.progress.INTERVAL", 0.0)
    pack_table(views, tmp_path / "cache", 32, False, "stop", workers=1)
    lines = [record.getMessage() for record in caplog.records if "images/s" in record.getMessage()]
    assert len(lines) == 12
    assert lines[0].startswith("packing: 5 of 48 images, ")
    assert lines[-1].startswith("packing: 48 of 48 images, ")
    assert lines[-1].endswith("0 s left")


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
