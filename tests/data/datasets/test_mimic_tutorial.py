"""The tutorial's shards and tables: what they hold, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from crc32c import crc32c
from tfrecord.writer import TFRecordWriter

from xraylab.data.cache.build import pack_table
from xraylab.data.datasets.mimic_tutorial import FEATURES, MimicTutorial
from xraylab.data.findings import COMPETITION
from xraylab.data.images.source import FileSource
from xraylab.data.images.tfrecord import TFRecordSource
from xraylab.data.integrity import examine
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError


def picture(seed: int, shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    return cv2.GaussianBlur(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), (0, 0), 2)


def jpg(seed: int, shape: tuple[int, ...] = (20, 30)) -> bytes:
    return cv2.imencode(".jpg", picture(seed, shape), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def features(seed: int, **changed) -> dict:
    """A record: label i of record n is coded (n + i) % 4. A change to None leaves the feature out."""
    found = {name: ((seed + i) % 4, "int") for i, name in enumerate(FEATURES)}
    found |= {"jpg_bytes": (jpg(seed), "byte")} | changed
    return {name: value for name, value in found.items() if value is not None}


def shard(path: Path, *records: dict) -> Path:
    """Written by the writer of the package tfrecord, an outside reference for the framing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = TFRecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.fixture
def root(tmp_path):
    """Two shards of frontal train, one of the rest; record n of all frontal ones is n."""
    root = tmp_path / "mimic-cxr-tutorial"
    for name, seeds in (("train-00000-of-00002", (0, 1, 2)), ("train-00001-of-00002", (3, 4)), ("valid", (5, 6)), ("test", (7,))):
        shard(root / "frontal" / f"{name}.tfrecord", *map(features, seeds))
    for i, name in enumerate(("train", "validate", "test")):
        shard(root / "lateral" / f"{name}.tfrecords", features(20 + i))
    return root


def read(root, **options):
    reader = MimicTutorial(str(root), **options)
    return reader.read(reader.find())


def offsets(path: Path) -> list[int]:
    """Where each record begins."""
    data, found = path.read_bytes(), [0]
    while found[-1] < len(data):
        found.append(found[-1] + 16 + struct.unpack_from("<Q", data, found[-1])[0])
    return found[:-1]


def test_rows_labels_and_images_are_those_of_the_records(root):
    table = read(root)
    assert table.frame["id"].tolist() == [
        "frontal/test:0", "frontal/train-00000-of-00002:0", "frontal/train-00000-of-00002:1", "frontal/train-00000-of-00002:2",
        "frontal/train-00001-of-00002:0", "frontal/train-00001-of-00002:1", "frontal/valid:0", "frontal/valid:1",
    ]  # fmt: skip
    assert table.frame["split"].tolist() == ["test", *["train"] * 5, "valid", "valid"]
    assert set(table.frame["group"]) == {"frontal"}
    assert table.labels == tuple("lung_opacity" if name == "airspace_opacity" else name for name in FEATURES)
    seeds = [7, 0, 1, 2, 3, 4, 5, 6]
    decoded = {0: np.nan, 1: 0, 2: -1, 3: 1}
    expected = np.array([[decoded[(n + i) % 4] for i in range(14)] for n in seeds], np.float32)
    assert np.array_equal(table.label_values(), expected, equal_nan=True)
    for n, images in zip(seeds, table.frame["images"], strict=True):
        assert np.array_equal(table.source.read(images)[0], cv2.imdecode(np.frombuffer(jpg(n), np.uint8), cv2.IMREAD_GRAYSCALE))
        assert table.source.shape(images[0]) == (1, 20, 30)
    assert table.views
    assert not table.patients_known
    assert (table.frame["patient"] == "").all()
    assert not table.problems
    assert assign_splits(table, "holdout", None, 0.2, 0).frame["split"].tolist() == table.frame["split"].tolist()


def test_views_and_findings_are_chosen(root):
    both = read(root, view="all", findings=["Airspace Opacity", "edema"])
    assert both.frame["group"].value_counts().to_dict() == {"frontal": 8, "lateral": 3}
    assert both.labels == ("lung_opacity", "edema")
    lateral = read(root, view="lateral", findings="competition")
    assert lateral.labels == COMPETITION
    assert lateral.frame["split"].tolist() == ["test", "train", "valid"]
    values = [{0: np.nan, 1: 0, 2: -1, 3: 1}[(21 - 1 + FEATURES.index("edema")) % 4]]
    assert np.array_equal(lateral.part("train")["edema"], np.float32(values), equal_nan=True)
    with pytest.raises(UserError, match=r"view=pa: it is frontal, lateral or all"):
        MimicTutorial(view="pa")


@pytest.mark.parametrize(
    "names",
    [
        ["frontal_training.tfrecord", "frontal_test.tfrecord"],
        ["mimic-train-frontal.tfrecord-00000-of-00001", "mimic-test-frontal.tfrecord-00000-of-00001"],
        ["a/Frontal/train/x.tfrecords", "a/Frontal/testing/x.tfrecords"],
        ["frontal/train.tfrecord", "frontal/val.tfrecord"],
    ],
)
def test_words_of_the_path_tell_split_and_view(tmp_path, names):
    for n, name in enumerate(names):
        shard(tmp_path / name, features(n))
    table = read(tmp_path / "a" if names[0].startswith("a/") else tmp_path)
    assert sorted(table.frame["split"]) == ["heldout", "train"], "one split beside train is held out"
    assert table.frame["group"].tolist() == ["frontal", "frontal"]


def test_the_root_may_be_the_parent_or_named_by_the_environment(root, tmp_path, monkeypatch):
    assert MimicTutorial(str(tmp_path)).find() == root
    monkeypatch.setenv("XRAYLAB_DATA", str(tmp_path))
    assert MimicTutorial().find() == root
    other = root.rename(tmp_path / "renamed")
    assert MimicTutorial(str(other)).find() == other


def test_a_path_that_does_not_tell_is_refused_with_how_to_name_it(root, tmp_path):
    shard(root / "frontal" / "part-7.tfrecord", features(9))
    with pytest.raises(UserError) as refused:
        read(root)
    assert "1 of 8 files do not tell in their path what they hold: frontal/part-7.tfrecord." in str(refused.value)
    assert "one of train, valid and test" in str(refused.value)
    (root / "frontal" / "part-7.tfrecord").rename(root / "frontal" / "train_and_test.tfrecord")
    with pytest.raises(UserError, match=r"hold: frontal/train_and_test\.tfrecord"):
        read(root)
    shard(tmp_path / "alone" / "part-7.tfrecord", features(9))
    with pytest.raises(UserError, match=r"(?s)frontal/ *\n.*do not tell what they hold: part-7\.tfrecord"):
        read(tmp_path / "alone")


def test_a_view_that_is_not_there_is_refused(root):
    for path in (root / "lateral").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"none of its files is lateral, only 4 frontal\. Choose view=frontal"):
        read(root, view="all")


def test_compressed_shards_are_read_alike(root):
    plain = read(root)
    pictures = [plain.source.read(images)[0] for images in plain.frame["images"]]
    for path in (root / "frontal").iterdir():
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    table = read(root)
    pd.testing.assert_frame_equal(table.frame.drop(columns="images"), plain.frame.drop(columns="images"))
    for images, expected in zip(table.frame["images"], pictures, strict=True):
        assert np.array_equal(table.source.read(images)[0], expected)
        assert table.source.path(images[0]).suffix == ".gz"
    cut = root / "frontal" / "test.tfrecord.gz"
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"1 compressed shards that are damaged: frontal/test\.tfrecord\.gz"):
        read(root)


def broken(root):
    """One fault of every kind, each in a record of its own; what each must be reported as."""
    path = root / "frontal" / "train-00000-of-00002.tfrecord"
    shard(
        path, features(0), features(1, edema=(4, "int")), features(2, fracture=None), features(3, jpg_bytes=None),
        features(4, jpg_bytes=(b"", "byte")), features(5, edema=([1, 2], "int")), features(6, pneumonia=(1.0, "float")),
        features(7, lung_opacity=(1, "int")), features(8), features(9), features(10), features(11),
    )  # fmt: skip
    data, starts = bytearray(path.read_bytes()), offsets(path)
    data[starts[9] + 200] ^= 1
    noise = b"\xff" * 20
    data[starts[10] : starts[11]] = framed(noise)
    path.write_bytes(data)
    cut = root / "frontal" / "train-00001-of-00002.tfrecord"
    cut.write_bytes(cut.read_bytes()[:-3])
    length = root / "frontal" / "valid.tfrecord"
    data = bytearray(length.read_bytes())
    data[offsets(length)[1] + 1] ^= 1
    length.write_bytes(data)
    shard(root / "frontal" / "test-00000-of-00003.tfrecord", features(0))
    (root / "frontal" / "test-00002-of-00003.tfrecord").write_bytes(b"")
    name = "frontal/train-00000-of-00002"
    return {
        "shards that are not there": ["frontal/test-00001-of-00003.tfrecord"],
        "shards without a record": ["frontal/test-00002-of-00003.tfrecord"],
        "labels other than 0, 1, 2 and 3": [
            f"{name}:1 (edema: 4)", f"{name}:5 (edema: not one whole number)", f"{name}:6 (pneumonia: not one whole number)",
        ],
        "records with empty jpg_bytes": [f"{name}:4"],
        "records with two features of one finding": [f"{name}:7"],
        "records whose checksum is wrong": [f"{name}:9"],
        "records that are no tf.train.Example": [f"{name}:10"],
        "records that are cut short, with which their shard ends": ["frontal/train-00001-of-00002:1"],
        "records whose length is damaged, so that the rest of their shard cannot be read": ["frontal/valid:1"],
        "records without fracture": [f"{name}:2"],
        "records without jpg_bytes": [f"{name}:3"],
    }  # fmt: skip


def framed(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def test_everything_wrong_is_named_or_skipped(root):
    faults = broken(root)
    with pytest.raises(UserError) as stop:
        read(root)
    for kind, names in faults.items():
        assert f"\n  {len(names)} {kind}: {', '.join(names)}\n" in str(stop.value), kind
    assert str(stop.value).count("\n") == len(faults) + 1
    assert "of 20 records" in str(stop.value)
    table = read(root, on_error="skip")
    assert table.problems == faults
    assert table.frame["id"].tolist() == [
        "frontal/test-00000-of-00003:0", "frontal/test:0", "frontal/train-00000-of-00002:0", "frontal/train-00000-of-00002:8",
        "frontal/train-00000-of-00002:11", "frontal/train-00001-of-00002:0", "frontal/valid:0",
    ], "a record keeps its number, whatever is left out"  # fmt: skip
    found = table.frame.set_index("id").loc["frontal/train-00000-of-00002:11", "images"]
    assert np.array_equal(table.source.read(found)[0], cv2.imdecode(np.frombuffer(jpg(11), np.uint8), cv2.IMREAD_GRAYSCALE))
    assert set(read(root, on_error="skip", findings=["atelectasis"]).problems) == {
        kind for kind in faults if "label" not in kind and "fracture" not in kind
    }, "faults of other findings do not matter"


def test_a_feature_that_is_nowhere_is_shown_beside_those_that_are(tmp_path):
    for split in ("train", "test"):
        shard(tmp_path / "frontal" / f"{split}.tfrecord", features(0, edema=None, oedema=(1, "int")))
    with pytest.raises(UserError) as stop:
        read(tmp_path)
    assert "no record has edema. Did you mean oedema?\n  expected: jpg_bytes, no_finding, " in str(stop.value)
    assert "oedema" in str(stop.value).split("found:")[1]
    assert read(tmp_path, findings="pneumonia").labels == ("pneumonia",)


def test_two_copies_of_a_shard_are_refused(root):
    path = root / "frontal" / "test.tfrecord"
    path.with_name("test.tfrecord.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"frontal/test\.tfrecord and frontal/test\.tfrecord\.gz are of one name"):
        read(root)


def test_what_cannot_be_decoded_names_shard_and_record(root):
    shard(root / "frontal" / "test.tfrecord", features(0), features(1, jpg_bytes=(jpg(1)[:200], "byte")))
    table = read(root)
    bad = table.frame.set_index("id").loc["frontal/test:1", "images"]
    with pytest.raises(UserError, match=r"frontal/test\.tfrecord:1: not a whole image \(200 bytes\)"):
        table.source.read(bad)
    shard(root / "frontal" / "test.tfrecord", features(0, extra=(5, "int")), features(1))
    with pytest.raises(UserError, match=r"frontal/test\.tfrecord:1: there is no whole record any more"):
        table.source.read(bad)
    (root / "frontal" / "test.tfrecord").unlink()
    with pytest.raises(UserError, match=r"frontal/test\.tfrecord:1: cannot be read"):
        table.source.read(bad)


def test_pictures_are_decoded_as_files_are(tmp_path):
    """Colour becomes grey, 16 bits are asked for: one decoder for both sources."""
    deep = cv2.imencode(".png", picture(1).astype(np.uint16) << 4)[1].tobytes()
    colour = jpg(2, (8, 9, 3))
    path = shard(tmp_path / "x.tfrecord", features(0, jpg_bytes=(deep, "byte")), features(1, jpg_bytes=(colour, "byte")))
    (tmp_path / "deep.png").write_bytes(deep)
    (tmp_path / "colour.jpg").write_bytes(colour)
    references = [f"x.tfrecord:{n}@{place}" for n, place in enumerate(offsets(path))]
    for a, b in zip(
        TFRecordSource(tmp_path, "jpg_bytes", 12).read(references),
        FileSource(tmp_path, bits=12).read(["deep.png", "colour.jpg"]), strict=True,
    ):  # fmt: skip
        assert np.array_equal(a, b)
    with pytest.raises(UserError, match=r"x\.tfrecord:0: uint16 values up to \d+, and dataset\.bits is not set"):
        TFRecordSource(tmp_path, "jpg_bytes").read(references)


def test_the_source_goes_to_other_processes_and_into_the_packed_cache(root, tmp_path):
    table = read(root)
    images = [image for study in table.frame["images"] for image in study]
    again = pickle.loads(pickle.dumps(table.source))
    assert all(np.array_equal(a, b) for a, b in zip(again.read(images), table.source.read(images), strict=True))
    packed = pack_table(table, tmp_path / "cache", 16, False, "stop")
    for image in images:
        expected = cv2.resize(table.source.read([image])[0], (16, 16), interpolation=cv2.INTER_AREA)
        assert np.array_equal(packed.source.read([image])[0], expected)
    before = set((tmp_path / "cache").rglob("index.json"))
    shard(root / "frontal" / "test.tfrecord", features(30))
    pack_table(read(root), tmp_path / "cache", 16, False, "stop")
    assert len(set((tmp_path / "cache").rglob("index.json")) - before) == 1, "a shard that changed is packed anew"


def test_the_check_reads_both_views_and_names_what_is_damaged(root):
    (root / "notes.txt").write_text("stray")
    shard(root / "lateral" / "test.tfrecords", features(1, jpg_bytes=(jpg(1)[:200], "byte")))
    reader = MimicTutorial(str(root), on_error="skip")
    found = examine(reader, root)
    assert found.verdict[0] == "no published counts"
    assert found.counts["studies"].sum() == 11
    assert [name.rpartition("@")[0] for name in found.faults["images that cannot be read"]] == ["lateral/test.tfrecords:0"]
    assert found.strays == ["notes.txt"]


def write_csv(root, header=None, **cells):
    """``frontal/{train,test}.csv`` of three pictures each; a cell as ``train_2_edema``."""
    for split in ("train", "test"):
        rows = [",".join(header or ["path", *FEATURES])]
        (root / "frontal" / split).mkdir(parents=True, exist_ok=True)
        for n in range(3):
            (root / "frontal" / split / f"{n}.jpg").write_bytes(jpg(n))
            row = {"path": f"{split}/{n}.jpg"} | {name: str((n + i) % 4) for i, name in enumerate(FEATURES)}
            row |= {name: cells[f"{split}_{n}_{name}"] for name in row if f"{split}_{n}_{name}" in cells}
            rows.append(",".join(row.values()))
        (root / "frontal" / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return root


def test_tables_beside_pictures_are_read_as_shards_are(tmp_path):
    table = read(write_csv(tmp_path))
    assert table.frame["id"].tolist() == [f"frontal/{split}/{n}.jpg" for split in ("test", "train") for n in range(3)]
    assert table.frame["split"].tolist() == ["heldout"] * 3 + ["train"] * 3
    values = {0: np.nan, 1: 0, 2: -1, 3: 1}
    expected = np.array([[values[(n + i) % 4] for i in range(14)] for n in (0, 1, 2) * 2], np.float32)
    assert np.array_equal(table.label_values(), expected, equal_nan=True)
    assert table.source.read(table.frame["images"][1])[0].shape == (20, 30)


def test_faults_of_tables_are_named(tmp_path):
    write_csv(
        tmp_path, train_0_edema="-1", train_1_path="train/gone.jpg", train_2_path="../../x.jpg",
        test_0_path="", test_1_path="test/2.jpg",
    )  # fmt: skip
    faults = {
        "rows without an image": ["frontal/test.csv line 2"],
        "images twice in one table": ["frontal/test/2.jpg (frontal/test.csv line 4)"],
        "labels other than 0, 1, 2 and 3": ["frontal/train.csv line 2 (edema: '-1')"],
        "missing image files of frontal/train.csv": ["frontal/train/gone.jpg"],
        "images outside the dataset's folder": ["../../x.jpg (frontal/train.csv line 4)"],
    }
    assert read(tmp_path, on_error="skip").problems == faults
    with pytest.raises(UserError, match=r"5 of 6 images"):
        read(tmp_path)
    file = tmp_path / "frontal" / "test.csv"
    file.write_text(file.read_text().replace("\n", "\n\n", 1))  # blank lines count, as an editor counts them
    assert read(tmp_path, on_error="skip").problems["rows without an image"] == ["frontal/test.csv line 3"]
    file.write_text(f"{file.read_text()}\n1,2\n")
    with pytest.raises(UserError, match=r"test\.csv: line 7: 2 cells, and the header has 15"):
        read(tmp_path)
    write_csv(tmp_path, header=["where", *FEATURES[:5], "oedema", *FEATURES[6:]])
    with pytest.raises(UserError, match=r"(?s)no column path, edema\.\n  expected: path, no_f.*\n  found:    where, no_f"):
        read(tmp_path)


def test_a_run_learns_nothing_wrong_from_a_shard(root, train_here, tmp_path):
    """From the command's configuration to a finished run, with processes that read."""
    for split in ("train", "valid", "test"):
        shard(root / "frontal" / f"{split}.tfrecord", *(features(n) for n in range(8)))
        for path in (root / "frontal").glob("train-*"):
            path.unlink()
    directory = train_here(
        tmp_path / "run", "dataset=mimic_tutorial", f"dataset.root={root}", "findings=[edema,fracture]", "backbone=resnet18",
        "image.size=32", "max_epochs=1", "batch_size=4", "bootstrap=5", "num_workers=1", "cache=off", "precision=32",
    )  # fmt: skip
    table = pd.read_csv(directory / "predictions" / "test.csv")
    assert table["id"].tolist() == [f"frontal/test:{n}" for n in range(8)]
    codes = [(n + FEATURES.index("edema")) % 4 for n in range(8)]
    assert np.array_equal(table["y_edema"], [{0: np.nan, 1: 0, 2: -1, 3: 1}[c] for c in codes], equal_nan=True)
