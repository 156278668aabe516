"""MURA as downloaded, with its quirks, and everything that can be wrong with it."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from xraylab.data.datasets.mura import MURA, PARTS
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError

# split, body part, patient, study, label, views; patient 2 has two body parts, and two studies of one of them
STUDIES = [
    ("train", "WRIST", 1, 1, 1, 2),
    ("train", "WRIST", 2, 1, 0, 1),
    ("train", "WRIST", 2, 2, 1, 3),
    ("train", "ELBOW", 2, 1, 0, 1),
    ("train", "ELBOW", 3, 1, 1, 1),
    ("train", "SHOULDER", 4, 1, 0, 4),
    ("valid", "WRIST", 11185, 1, 1, 2),
    ("valid", "WRIST", 11186, 1, 0, 1),
    ("valid", "HAND", 11186, 1, 0, 2),
]


def name_of(split, part, patient, study, label, *_):
    return f"{split}/XR_{part}/patient{patient:05d}/study{study}_{('negative', 'positive')[label]}"


def write(root, studies=STUDIES, version="v1.1", header=False):
    """The published files: grey and RGB pictures of several sizes, CSVs with paths from the dataset's own name on."""
    rows = {(split, kind): [] for split in ("train", "valid") for kind in ("image_paths", "labeled_studies", "both")}
    for study in studies:
        folder = name_of(*study)
        (root / folder).mkdir(parents=True)
        (root / folder / "._image1.png").write_bytes(b"\0\5\26\7AppleDouble")
        for k in range(1, study[5] + 1):
            shape = (10 + k, 12) if k % 2 else (10, 12 + k, 3)
            cv2.imwrite(str(root / folder / f"image{k}.png"), np.full(shape, 40 * k, np.uint8))
            rows[study[0], "image_paths"].append(f"MURA-{version}/{folder}/image{k}.png")
            rows[study[0], "both"].append(f"MURA-{version}/{folder}/image{k}.png,{study[4]}")
        rows[study[0], "labeled_studies"].append(f"MURA-{version}/{folder}/,{study[4]}")
    for (split, kind), lines in rows.items():
        if (kind == "both") == (version == "v1.0"):
            name = f"{split}.csv" if kind == "both" else f"{split}_{kind}.csv"
            (root / name).write_text("\n".join((["image,label"] if header else []) + lines) + "\n")
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "MURA-v1.1")


def read(root, **options):
    reader = MURA(str(root), **options)
    return reader.read(reader.find())


def edit(path, change):
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


def test_rows_labels_and_images_are_those_of_the_files(root):
    table = read(root)
    frame = table.frame.set_index("id")
    assert frame.index.tolist() == [name_of(*s) for s in STUDIES], "the first row is not a header"
    assert frame["abnormal"].tolist() == [s[4] for s in STUDIES]
    assert frame["group"].tolist() == [s[1].lower() for s in STUDIES]
    assert frame["patient"].tolist() == [f"patient{s[2]:05d}" for s in STUDIES]
    assert frame["split"].tolist() == [{"train": "train", "valid": "heldout"}[s[0]] for s in STUDIES]
    assert frame["images"].map(len).tolist() == [s[5] for s in STUDIES], "AppleDouble files are no images"
    study = name_of(*STUDIES[2])
    assert frame.loc[study, "images"] == tuple(f"{study}/image{k}.png" for k in (1, 2, 3))
    views = table.source.read(frame.loc[study, "images"])
    assert [view.shape for view in views] == [(11, 12), (10, 14), (13, 12)], "colour becomes grey, sizes stay"
    assert [int(view.mean()) for view in views] == [40, 80, 120]
    assert table.labels == ("abnormal",)
    assert table.name == "MURA-v1.1"
    assert table.views
    assert table.patients_known
    assert not table.synthetic
    assert not table.problems


def test_the_root_may_be_renamed_or_nested(root, tmp_path):
    assert MURA(str(tmp_path)).find() == root
    (tmp_path / "mirror" / "mura").mkdir(parents=True)
    (tmp_path / "mirror" / "mura" / "MURA-v1.1").symlink_to(root)
    assert len(read(tmp_path / "mirror").frame) == 9
    renamed = root.rename(tmp_path / "bones")
    table = read(renamed)
    assert len(table.frame) == 9
    assert table.source.read(table.frame["images"][0])[0].shape == (11, 12)


def test_lines_may_end_as_in_other_systems_and_list_apple_double_files(root):
    for path in root.glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace("\n", "\r\n").encode() + b"\r\n")
    with open(root / "train_image_paths.csv", "a") as file:
        file.write(f"MURA-v1.1/{name_of(*STUDIES[0])}/._image1.png\n")
    table = read(root)
    assert len(table.frame) == 9
    assert len(table.frame["images"][0]) == 2


@pytest.mark.parametrize(
    ("options", "train", "heldout"),
    [
        ({}, {"wrist", "elbow", "shoulder"}, {"wrist", "hand"}),
        ({"body_part": "wrist"}, {"wrist"}, {"wrist"}),
        ({"body_part": ["wrist", "elbow"]}, {"wrist", "elbow"}, {"wrist"}),
        ({"body_part": "elbow", "test_part": "hand"}, {"elbow"}, {"hand"}),
        ({"body_part": "elbow", "test_part": "all"}, {"elbow"}, {"wrist", "hand"}),
    ],
)
def test_body_parts_are_chosen(root, options, train, heldout):
    groups = read(root, **options).frame.groupby("split")["group"].agg(set)
    assert groups.to_dict() == {"train": train, "heldout": heldout}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("wirst", "wirst: it is all, one of elbow, .* Did you mean wrist"),
        ("XR_WRIST", "it is all, one of"),
        (["wrist", "wrist"], "each once"),
        ([], "each once"),
    ],
)
@pytest.mark.parametrize("key", ["body_part", "test_part"])
def test_wrong_body_parts_are_refused(key, given, said):
    with pytest.raises(UserError, match=f"{key}=.*{said}"):
        MURA(**{key: given})


@pytest.mark.parametrize("header", [False, True])
def test_the_first_release_labels_its_images(tmp_path, header):
    write(tmp_path / "MURA-v1.0", version="v1.0", header=header)
    table = read(tmp_path)
    assert table.name == "MURA-v1.0"
    assert table.frame["id"].tolist() == [name_of(*s) for s in STUDIES]
    assert table.frame["abnormal"].tolist() == [s[4] for s in STUDIES]
    assert table.frame["images"].map(len).tolist() == [s[5] for s in STUDIES]
    assert not table.problems


def test_faults_of_the_first_release_are_named(tmp_path):
    root = write(tmp_path / "MURA-v1.0", version="v1.0")
    two, four, odd = (name_of(*STUDIES[i]) for i in (0, 5, 3))
    edit(root / "train.csv", lambda lines: [
        line[:-1] + "0" if line.startswith(f"MURA-v1.0/{two}/image2") else
        line[:-1] + "1" if four in line else
        line[:-1] + "?" if odd in line else line
        for line in lines
    ] + ["image,label"])  # fmt: skip
    with pytest.raises(UserError) as stop:
        read(root)
    for said in (
        f"1 studies of train.csv whose images have different labels: {two} (0, 1)",
        f"1 labels in train.csv that contradict the study's folder: {four} (1, its images)",
        f"1 labels in train.csv other than 0 and 1: {odd} ('?', its images)",
        "1 rows of train.csv that are not an image of train: line 13: image,label",
    ):
        assert said in str(stop.value), said
    assert set(read(root, on_error="skip").frame["id"]) == {name_of(*s) for s in STUDIES} - {two, four, odd}


FAULTY = [("train", "FINGER", 20 + i, 1, 1, 2) for i in range(9)]


def broken(tmp_path):
    """One fault of every kind, each in a study of its own; what each must be reported as."""
    root = write(tmp_path / "broken" / "MURA-v1.1", STUDIES + FAULTY)
    gone, empty, all_gone, two, twice, contradicted, unlabelled, unlisted, again = (name_of(*s) for s in FAULTY)
    (root / gone / "image2.png").unlink()
    (root / empty / "image1.png").write_bytes(b"")
    for image in (root / all_gone).iterdir():
        image.unlink()

    def labels(lines):
        of = {re.sub(r"^[^/]*/|/,.*$", "", line): line for line in lines}
        of[two] = of[two][:-1] + "2"
        of[contradicted] = of[contradicted][:-1] + "0"
        del of[unlabelled]
        return [*of.values(), of[twice], "not a path", "MURA-v1.1/valid/XR_HAND/patient11186/study1_negative/,0"]

    def images(lines):
        rest = [line for line in lines if unlisted not in line]
        outside = ["MURA-v1.1/../../etc/image1.png", f"MURA-v1.1/{again}/../image1.png", "/etc/train/image1.png"]
        return [*rest, "nothing", *outside, f"MURA-v1.1/{again}/image1.png"]

    edit(root / "train_labeled_studies.csv", labels)
    edit(root / "train_image_paths.csv", images)
    return root, {
        "missing image files of train_image_paths.csv": [
            f"{gone}/image2.png", f"{all_gone}/image1.png", f"{all_gone}/image2.png",
        ],
        "empty image files of train_image_paths.csv": [f"{empty}/image1.png"],
        "studies of train of whose images none can be used": [all_gone],
        "labels in train_labeled_studies.csv other than 0 and 1": [f"{two} ('2', line 10)"],
        "studies twice in train_labeled_studies.csv": [f"{twice} (line 15)"],
        "labels in train_labeled_studies.csv that contradict the study's folder": [f"{contradicted} (0, line 12)"],
        "studies of train_image_paths.csv without a label": [unlabelled],
        "studies with a label but no image in train_image_paths.csv": [unlisted],
        "images twice in train_image_paths.csv": [f"{again}/image1.png (line 33)"],
        "rows of train_labeled_studies.csv that are not a study of train": [
            "line 16: not a path", "line 17: MURA-v1.1/valid/XR_HAND/patient11186/study1_negative/,0",
        ],
        "rows of train_image_paths.csv that are not an image of train": [
            "line 29: nothing", "line 30: MURA-v1.1/../../etc/image1.png",
            f"line 31: MURA-v1.1/{again}/../image1.png"[: 60 + len("line 31: ")], "line 32: /etc/train/image1.png",
        ],
    }  # fmt: skip


def test_everything_wrong_is_counted_and_named_in_one_summary(tmp_path):
    root, faults = broken(tmp_path)
    with pytest.raises(UserError) as stop:
        read(root)
    for kind, names in faults.items():
        assert f"\n  {len(names)} {kind}: {', '.join(names)}\n" in str(stop.value), kind
    assert str(stop.value).count("\n") == len(faults) + 1
    assert "dataset.on_error=skip" in str(stop.value)


def test_skip_goes_on_without_them_and_remembers(tmp_path):
    root, faults = broken(tmp_path)
    table = read(root, on_error="skip")
    images = dict(zip(table.frame["id"], table.frame["images"], strict=True))
    left = {name_of(*s) for s in STUDIES} | {name_of(*FAULTY[i]) for i in (0, 1, 8)}
    assert set(images) == left
    assert images[name_of(*FAULTY[0])] == (f"{name_of(*FAULTY[0])}/image1.png",), "the views that are there"
    assert len(images[name_of(*FAULTY[8])]) == 2
    assert table.problems == faults
    assert all(view.size for study in images.values() for view in table.source.read(study))


def test_faults_of_other_body_parts_do_not_matter(tmp_path):
    root, _ = broken(tmp_path)
    for name, start in (("train_labeled_studies.csv", 15), ("train_image_paths.csv", 28)):
        edit(root / name, lambda lines, start=start: lines[:start])  # without the rows that are of no body part
    assert not read(root, body_part=["wrist", "hand"]).problems


@pytest.mark.parametrize("lacking", ["train_labeled_studies.csv", "valid_image_paths.csv"])
def test_half_a_dataset_is_shown_beside_the_whole(root, tmp_path, monkeypatch, lacking):
    (root / lacking).unlink()
    for given in (root, tmp_path):
        with pytest.raises(UserError) as stop:
            MURA(str(given)).find()
        assert "MURA-v1.1 is not there" in str(stop.value)
        assert "XR_WRIST/patient00001/study1_positive/image1.png" in str(stop.value), "what is expected"
        assert "valid/" in str(stop.value).split("found at")[1]
        assert "stanfordmlgroup" in str(stop.value)
    monkeypatch.setenv("XRAYLAB_DATA", str(tmp_path))
    with pytest.raises(UserError, match="is not there"):
        MURA().find()


def test_csvs_that_are_not_text_are_named(root):
    (root / "valid_image_paths.csv").write_bytes(b"\xff\xfe0\x000")
    with pytest.raises(UserError, match=r"valid_image_paths\.csv: cannot be read"):
        read(root)


@pytest.mark.parametrize("selection", ["holdout", "official", "split_valid"])
@pytest.mark.parametrize("seed", range(3))
def test_a_patient_is_in_one_split_across_body_parts(tmp_path, selection, seed):
    studies = [
        (split, PARTS[(p + k) % 7].upper(), first + p, 1, (p + k) % 2, 1)
        for split, first, count in (("train", 1, 30), ("valid", 11185, 10))
        for p in range(count)
        for k in range(1 + p % 3)
    ]
    table = assign_splits(read(write(tmp_path / "MURA-v1.1", studies)), selection, None, 0.2, seed)
    assert len(table.frame) == len(studies)
    assert (table.frame.groupby("patient")["split"].nunique() == 1).all()
    by_split = table.frame.groupby("split")["patient"].nunique().to_dict()
    assert by_split == {
        "holdout": {"train": 24, "valid": 6, "test": 10}, "official": {"train": 30, "valid": 10},
        "split_valid": {"train": 30, "valid": 5, "test": 5},
    }[selection]  # fmt: skip


def test_a_patient_in_both_published_splits_is_refused(tmp_path):
    root = write(tmp_path / "MURA-v1.1", [*STUDIES, ("valid", "WRIST", 1, 1, 0, 1)])
    with pytest.raises(UserError, match="1 patients are in more than one split: patient00001"):
        assign_splits(read(root), "official", None, 0.2, 0)
