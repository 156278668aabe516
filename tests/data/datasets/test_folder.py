"""Folders of classes: what becomes a study, a label, a split; and everything that can be wrong with them."""

from __future__ import annotations

import os
import shlex

import cv2
import numpy as np
import pytest

from xraylab.config.dataset import resolved
from xraylab.data.datasets.folder import Folder
from xraylab.data.splits import assign_splits
from xraylab.errors import UserError


def plant(root, *paths):
    """Small pictures at these paths; a path that ends in a slash becomes an empty folder."""
    for k, path in enumerate(paths):
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
            continue
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / path), np.full((8, 10 + k), k, np.uint8))
    return root


GOOD = (
    "train/normal/a.png", "train/normal/patient1/front.png", "train/normal/patient1/side.JPG", "train/abnormal/b.tif",
    "train/abnormal/patient2/x.bmp", "test/normal/c.pgm", "test/abnormal/patient3/1.webp",
)  # fmt: skip


@pytest.fixture
def root(tmp_path):
    return plant(tmp_path / "hands", *GOOD)


def read(root, **options):
    reader = Folder(str(root), **options)
    return reader.read(reader.find())


def rows(table, column):
    return dict(zip(table.frame["id"], table.frame[column], strict=True))


def test_a_file_is_a_study_and_a_folder_is_one(root):
    table = read(root)
    assert rows(table, "images") == {
        "train/normal/a": ("train/normal/a.png",),
        "train/normal/patient1": ("train/normal/patient1/front.png", "train/normal/patient1/side.JPG"),
        "train/abnormal/b": ("train/abnormal/b.tif",),
        "train/abnormal/patient2": ("train/abnormal/patient2/x.bmp",),
        "test/normal/c": ("test/normal/c.pgm",),
        "test/abnormal/patient3": ("test/abnormal/patient3/1.webp",),
    }
    assert table.labels == ("abnormal",)
    assert rows(table, "abnormal")["test/abnormal/patient3"] == 1
    assert rows(table, "abnormal")["train/normal/a"] == 0
    assert set(table.frame["split"]) == {"train", "heldout"}
    assert table.name == "hands"
    assert set(table.frame["group"]) == {"hands"}
    assert table.views
    assert not table.patients_known
    assert not table.synthetic
    for images in table.frame["images"]:
        assert all(view.shape[0] == 8 for view in table.source.read(images)), "every kind of file is decoded"


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "test"), {"train", "heldout"}),
        (("train", "val"), {"train", "heldout"}),
        (("Train", "VALIDATION"), {"train", "heldout"}),
        (("train", "valid", "test"), {"train", "valid", "test"}),
    ],
)
def test_splits_go_by_the_names_of_folders(tmp_path, folders, splits):
    plant(tmp_path, *[f"{f}/{c}/{i}.png" for f in folders for c in ("no", "yes") for i in range(3)])
    table = read(tmp_path)
    assert set(table.frame["split"]) == splits
    assigned = assign_splits(table, "holdout", None, 0.4, 0)
    assert set(assigned.frame["split"]) == {"train", "valid", "test"}


def test_without_a_heldout_split_there_is_no_dataset(tmp_path):
    plant(tmp_path, "train/no/a.png", "train/yes/a.png")
    with pytest.raises(UserError, match=r"there is no test/ or val/"):
        Folder(str(tmp_path)).find()
    plant(tmp_path, "val/no/a.png", "validation/no/a.png")
    with pytest.raises(UserError, match=r"val/ and validation/ are both the valid split"):
        Folder(str(tmp_path)).find()


@pytest.mark.parametrize(
    ("classes", "positive", "label"),
    [
        (("normal", "abnormal"), None, "abnormal"),
        (("Healthy", "tumour"), None, "tumour"),
        (("0", "1"), None, "1"),
        (("0", "1"), 0, "0"),
        (("benign", "malignant"), "malignant", "malignant"),
    ],
)
def test_the_positive_one_of_two_classes(tmp_path, classes, positive, label):
    plant(tmp_path, *[f"{split}/{c}/{c}.png" for split in ("train", "test") for c in classes])
    table = read(tmp_path, positive=positive)
    assert table.labels == (label,)
    assert all((study.endswith(f"/{label}")) == bool(value) for study, value in rows(table, label).items())


def test_what_cannot_be_labels_is_refused(tmp_path):
    def find(*classes, positive=None):
        root = plant(tmp_path / "_".join(classes), *[f"{s}/{c}/a.png" for s in ("train", "test") for c in classes])
        return Folder(str(root), positive=positive).find()

    with pytest.raises(UserError, match=r"dataset\.positive=benign or dataset\.positive=malignant"):
        find("benign", "malignant")
    with pytest.raises(UserError, match=r"dataset\.positive=healthy or dataset\.positive=normal"):
        find("normal", "healthy")
    with pytest.raises(UserError, match=r"positive=abnormall: .* Did you mean abnormal"):
        find("normal", "abnormal", positive="abnormall")
    with pytest.raises(UserError, match=r"positive=a: it is for two classes"):
        find("a", "b", "c", positive="a")
    with pytest.raises(UserError, match="one class only, normal"):
        find("normal")
    with pytest.raises(UserError, match="called patient, which cannot name a label"):
        find("control", "patient")


def test_more_classes_are_exclusive_and_bring_their_loss(tmp_path, compose):
    classes = ("glioma", "meningioma", "none")
    plant(tmp_path, *[f"{s}/{c}/{i}.png" for s in ("train", "test") for c in classes for i in range(2)])
    table = read(tmp_path)
    assert table.labels == classes
    assert table.exclusive
    assert (table.label_values().sum(1) == 1).all()
    assert table.frame.loc[table.frame["id"] == "test/none/1", "none"].item() == 1
    typed = ["dataset=folder", f"dataset.root={tmp_path}"]
    cfg = compose(*typed)
    assert resolved(cfg, typed).config.loss["_target_"].endswith("CrossEntropy")


def test_classes_have_to_be_those_of_train(root, caplog):
    plant(root, "val/normal/d.png", "val/abnorml/e.png")
    with pytest.raises(UserError, match=r"val/abnorml: train has no such class\. Did you mean abnormal or normal\?"):
        Folder(str(root)).find()
    (root / "val" / "abnorml").rename(root / "val" / "ABN")
    with pytest.raises(UserError, match="The classes of train are: abnormal, normal"):
        Folder(str(root)).find()
    (root / "val" / "ABN" / "e.png").unlink()
    (root / "val" / "ABN").rmdir()
    assert set(read(root).frame["split"]) == {"train", "valid", "test"}
    assert "val has no class abnormal" in caplog.text


def test_patients_and_groups_are_parts_of_the_path(tmp_path):
    studies = [f"{part}_p{i // 2}_{i}.png" for part in ("hand", "foot") for i in range(10)]  # a patient has both parts
    plant(tmp_path, *[f"train/{('no', 'yes')[i % 2]}/{name}" for i, name in enumerate(studies)])
    plant(tmp_path, *[f"test/{c}/hand_p{i}_0.png" for c in ("no", "yes") for i in (7, 8)])
    table = read(tmp_path, patient=r"_p(\d+)_", group="/(hand|foot)_")
    assert table.patients_known
    assert rows(table, "patient")["train/yes/hand_p1_3"] == "1"
    assert rows(table, "group")["train/no/foot_p2_4"] == "foot"
    assigned = assign_splits(table, "holdout", None, 0.4, 0).frame
    assert assigned[assigned["split"] == "valid"]["patient"].nunique() == 2
    assert (assigned.groupby("patient")["split"].nunique() == 1).all()
    plant(tmp_path, "test/no/hand_p3_9.png")
    with pytest.raises(UserError, match="1 patients are in more than one split: 3"):
        assign_splits(read(tmp_path, patient=r"_p(\d+)_"), "holdout", None, 0.4, 0)


def test_a_study_without_the_patient_that_was_asked_for_is_named(root):
    with pytest.raises(
        UserError, match=r"3 studies in whose path dataset\.patient=patient\(\\d\+\) finds nothing: .*train/normal/a"
    ):
        read(root, patient=r"patient(\d+)")
    with pytest.raises(UserError, match=r"dataset\.patient=zzz\(\.\): it finds nothing in the path of any of \d+ studies, as"):
        read(root, patient="zzz(.)")
    with pytest.raises(UserError) as refused:
        read(root, patient="patient")
    typed = shlex.split(str(refused.value).split("as in ")[1].rstrip("."))
    assert typed == [r"dataset.patient='patient(\d+)'"], "as a shell hands it on, quoted for the grammar of Hydra"
    table = read(root, patient=r"patient(\d+)", on_error="skip")
    assert set(table.frame["patient"]) == {"1", "2", "3"}
    assert table.patients_known


@pytest.mark.parametrize("key", ["patient", "group"])
@pytest.mark.parametrize(
    ("pattern", "said"), [("p(", "not a regular expression"), ("p\\d+", "it has 0 groups"), ("(p)(q)", "it has 2 groups")]
)
def test_wrong_expressions_are_refused(key, pattern, said):
    with pytest.raises(UserError, match=f"dataset.{key}=.*{said}"):
        Folder("somewhere", **{key: pattern})


def broken(root):
    """One fault of every kind."""
    plant(
        root, "train/normal/a.jpg", "train/normal/b.png", "train/normal/b/view.png", "train/loose.png", "test/normal/hollow/",
        "train/abnormal/deep/study1/1.png", "train/abnormal/deep/0.png",
    )  # fmt: skip
    (root / "train" / "abnormal" / "cut.png").write_bytes(b"")
    (root / "train" / "abnormal" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "train" / "normal" / "patient1" / "back.png").write_bytes(b"")


def test_everything_wrong_is_counted_and_named_in_one_summary(root):
    broken(root)
    with pytest.raises(UserError) as stop:
        read(root)
    text = str(stop.value)
    for said in (
        "2 studies of one name: train/normal/a (train/normal/a.jpg, train/normal/a.png), train/normal/b (",
        "1 images in no class folder: train/loose.png", "1 folders without an image: test/normal/hollow",
        "1 folders inside a study's folder, which holds images only: train/abnormal/deep/study1",
        "2 empty image files: train/abnormal/cut.png, train/normal/patient1/back.png",
        "1 missing image files: train/abnormal/gone.png", "8 of 12 studies", "dataset.on_error=skip",
    ):  # fmt: skip
        assert said in text, said


def test_skip_goes_on_without_those_studies_and_remembers(root):
    broken(root)
    table = read(root, on_error="skip")
    assert set(table.frame["id"]) == {
        "train/abnormal/b", "train/abnormal/patient2", "test/normal/c", "test/abnormal/patient3",
    }  # fmt: skip
    assert sum(map(len, table.problems.values())) == 8


def test_files_that_are_no_images_are_left_alone(root, caplog):
    for name in ("test/readme.txt", "train/normal/Thumbs.db", "train/normal/patient1/notes.csv"):
        (root / name).write_text("x")
    for name in ("train/.DS_Store", "train/normal/._a.png", "train/normal/patient1/._front.png"):
        (root / name).write_bytes(b"")
    (root / ".cache").mkdir()
    table = read(root)
    assert len(table.frame) == 6
    assert not table.problems
    assert "3 files are not images" in caplog.text
    assert "Thumbs.db" in caplog.text
    assert "._a" not in caplog.text


def test_links_are_followed(root, tmp_path):
    (tmp_path / "linked" / "train").mkdir(parents=True)
    (tmp_path / "linked" / "test").symlink_to(root / "test")
    for name in ("normal", "abnormal"):
        (tmp_path / "linked" / "train" / name).symlink_to(root / "train" / name)
    assert len(read(tmp_path / "linked").frame) == 6


def test_colour_is_asked_for(root, compose):
    typed = ["dataset=folder", f"dataset.root={root}", "dataset.colour=true"]
    cfg = compose(*typed)
    cfg.backbone.in_chans = 1
    found = resolved(cfg, typed)
    assert found.config.backbone.in_chans == 3
    table = found.reader.read(found.path)
    assert table.channels == 3
    assert table.source.read(table.frame["images"][0])[0].shape[2] == 3


def test_the_root_has_to_be_given_and_to_hold_classes(tmp_path, root, monkeypatch):
    monkeypatch.chdir(root.parent)
    with pytest.raises(UserError, match=r"(?s)dataset\.root must be given: .* dataset\.root=sample .*patient7_study1/"):
        Folder().find()
    plant(tmp_path / "flat", "train/a.png", "test/b.png")
    for wrong, found in ((tmp_path / "flat", "a.png"), (tmp_path / "none", "there is no such file or folder")):
        with pytest.raises(UserError) as stop:
            Folder(str(wrong)).find()
        assert "patient7_study1/" in str(stop.value), "what is expected"
        assert found in str(stop.value)
    assert Folder("hands").find().samefile(root)


def test_the_sample_is_arranged_so(tmp_path):
    reader = Folder("sample", patient=r"patient(\d+)")
    assert reader.find() is None
    path = reader.embedded({"train": 12, "val": 4, "test": 8, "seed": 3})
    assert sorted(p.name for p in path.iterdir() if p.is_dir()) == ["test", "train", "val"]
    table = assign_splits(reader.read(path), "holdout", None, 0.2, 0)
    assert table.synthetic
    assert table.frame["split"].value_counts().to_dict() == {"train": 12, "test": 8, "valid": 4}
    assert (table.frame.groupby("split")["abnormal"].mean() == 0.5).all()
    counts = table.frame["images"].map(len)
    assert set(counts) == {1, 2, 3}
    views = [view for images in table.frame["images"] for view in table.source.read(images)]
    assert all(64 <= side <= 96 for view in views for side in view.shape)
    assert reader.embedded({"train": 12, "val": 4, "test": 8, "seed": 3}) == path
    for options, said in (({"train": 2}, "at least 4"), ({"trian": 2}, r"dataset\.sample: .*trian")):
        with pytest.raises(UserError, match=said):
            reader.embedded(options)
    with pytest.raises(UserError, match="is not empty"):
        reader.write_sample(path.parent)


# ---- what archives, desktops, other layouts and other systems bring ---------------------------------------------------


def noisy(root, *paths):
    """Pictures of noise at these paths."""
    for k, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / path), np.random.default_rng(k).integers(0, 256, (9, 9), dtype=np.uint8))
    return root


def test_what_archives_leave_is_no_class_and_no_study(root):
    before = read(root).frame
    for name in ("__MACOSX", "train/__MACOSX", "train/normal/__MACOSX", "test/@eaDir"):
        noisy(root, f"{name}/x.png")
        (root / name / "._a.png").write_bytes(b"\0\5\26\7")
    assert read(root).frame.equals(before)


def test_a_class_folder_without_an_image_is_named_and_no_class(root):
    (root / "train" / "New folder" / "deep").mkdir(parents=True)
    (root / "test" / "normal" / "c.pgm").unlink()
    with pytest.raises(UserError, match="2 class folders without an image: test/normal, train/New folder"):
        read(root)
    table = read(root, on_error="skip")
    assert table.labels == ("abnormal",)
    assert not table.exclusive
    for name in ("a.png", "patient1/front.png", "patient1/side.JPG"):
        (root / "train" / "normal" / name).unlink()
    with pytest.raises(UserError, match=r"has one class only, abnormal.*Without an image: .*train/normal"):
        read(root, on_error="skip")


def test_masks_beside_pictures_are_no_studies(tmp_path, caplog):
    classes = [f"{split}/{name}" for split in ("Train", "Test") for name in ("COVID-19", "Normal")]
    noisy(tmp_path, *(f"{c}/{kind}/x{i}.png" for c in classes for kind in ("images", "lung masks") for i in range(3)))
    table = read(tmp_path)
    assert sorted(table.frame["id"]) == sorted(f"{c}/images/x{i}" for c in classes for i in range(3))
    assert "12 pictures are masks" in caplog.text
    places = [f"{s}/{c}/{c} ({i})" for s in ("train", "test") for c in ("no", "yes") for i in (1, 2)]
    ultrasound = noisy(tmp_path / "busi", *(f"{place}{end}.png" for place in places for end in ("", "_mask", "_mask_1")))
    assert len(read(ultrasound).frame) == 8
    assert "16 pictures are masks" in caplog.text
    whole = noisy(tmp_path / "segmentation", *(f"{s}/{c}/a.png" for s in ("train", "test") for c in ("images", "masks")))
    with pytest.raises(UserError, match="masks/ beside images/ are masks and their pictures, no classes"):
        read(whole, positive="masks")


def test_a_study_with_a_word_like_mask_is_a_study(tmp_path):
    names = ("mask.png", "a_mask.png", "unmasked.png")  # of which there is no picture, or which are none
    root = noisy(tmp_path, *(f"{s}/{c}/{n}" for s in ("train", "test") for c in ("no", "yes") for n in names))
    assert len(read(root).frame) == 12


def test_names_that_are_not_utf8_are_named(root):
    odd = os.fsencode(root / "train" / "normal") + b"/r\xf6ntgen"
    os.rename(os.fsencode(root / "train" / "normal" / "a.png"), odd + b".png")
    with pytest.raises(UserError, match=r"1 names that are not UTF-8.*: train/normal/r\\xf6ntgen\.png"):
        read(root)
    table = read(root, on_error="skip")
    assert len(table.frame) == 5
    table.split_digest()
    os.mkdir(odd)
    assert [len(n) for n in read(root, on_error="skip").problems.values()] == [2]


def test_links_to_nowhere_and_in_circles_are_named(root):
    (root / "train" / "normal" / "patient9").symlink_to(root / "nowhere")
    (root / "train" / "normal" / "round").symlink_to("about")
    (root / "train" / "normal" / "about").symlink_to("round")
    (root / "train" / "abnormal" / "b2.png").symlink_to("b2.png")
    (root / "train" / "abnormal" / "patient2" / "up").symlink_to(root / "train")
    with pytest.raises(UserError) as stop:
        read(root)
    for said in (
        "3 links that lead nowhere or in circles: train/normal/about, train/normal/patient9, train/normal/round",
        "1 missing image files: train/abnormal/b2.png", "holds images only: train/abnormal/patient2/up",
    ):  # fmt: skip
        assert said in str(stop.value)


def test_what_is_no_file_is_not_waited_for(root):
    os.mkfifo(root / "train" / "normal" / "pipe.png")
    os.mkfifo(root / "train" / "normal" / "pipe")
    os.mkfifo(root / "train" / "normal" / "other.dcm")
    table = read(root, on_error="skip")
    assert len(table.frame) == 6
    (names,) = table.problems.values()
    assert names == ["train/normal/other.dcm", "train/normal/pipe.png"]
