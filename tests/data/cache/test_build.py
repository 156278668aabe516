"""The packed cache: the same pictures as the files, built once, gone on with, and never read when stale or half-built."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
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

from xraylab.data.cache import build as packed
from xraylab.data.cache.build import pack_table
from xraylab.data.cache.source import PackedSource
from xraylab.data.images.source import ArraySource, FileSource
from xraylab.data.preprocessing import prepare
from xraylab.data.study_table import StudyTable
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
        patch.setattr(packed.Progress, "add", add)
        with pytest.raises(KeyboardInterrupt):
            pack_table(table, cache, 32, False, "stop", workers=1)
    return done


def forbid_reading(monkeypatch):
    def read(self, images):
        raise AssertionError(f"{images} were read again")

    monkeypatch.setattr(FileSource, "read", read)


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
