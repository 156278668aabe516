"""``python -m xraylab.check``: complete, partial, another dataset; what is broken is named."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import hydra
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from xraylab.config.dataset import resolved
from xraylab.data.datasets import mrnet, mura
from xraylab.data.datasets.medmnist import MedMNIST
from xraylab.data.datasets.mrnet import MRNet
from xraylab.data.datasets.mura import MURA
from xraylab.data.integrity import Compared, Findings, examine
from xraylab.data.published import MEDMNIST
from xraylab.data.study_table import UNREADABLE
from xraylab.system.paths import conf_dir

# split, body part, patient, study, positive, views: by hand, in the published layout
STUDIES = [
    ("train", "elbow", 1, 1, 1, 2), ("train", "elbow", 2, 1, 0, 1), ("train", "wrist", 1, 1, 0, 3),
    ("train", "wrist", 3, 1, 1, 1), ("train", "wrist", 4, 1, 0, 1), ("train", "elbow", 5, 1, 1, 1),
    ("valid", "elbow", 6, 1, 0, 2), ("valid", "wrist", 7, 1, 1, 1), ("valid", "wrist", 7, 2, 0, 1),
]  # fmt: skip


def write_mura_tree(root: Path) -> Path:
    """A tiny MURA-v1.1 without the mark of the sample generator: 9 studies, 13 images of several sizes."""
    images: dict[str, list[str]] = {"train": [], "valid": []}
    labels: dict[str, list[str]] = {"train": [], "valid": []}
    for n, (split, part, patient, study, positive, views) in enumerate(STUDIES):
        folder = f"{split}/XR_{part.upper()}/patient{patient:05d}/study{study}_{'positive' if positive else 'negative'}"
        (root / folder).mkdir(parents=True)
        for view in range(1, views + 1):
            pixels = np.random.default_rng([n, view]).integers(0, 256, (20 + n, 16 + 2 * view), dtype=np.uint8)
            assert cv2.imwrite(str(root / folder / f"image{view}.png"), pixels)
            images[split].append(f"{root.name}/{folder}/image{view}.png\n")
        labels[split].append(f"{root.name}/{folder}/,{positive}\n")
    for split in images:
        (root / f"{split}_image_paths.csv").write_text("".join(images[split]))
        (root / f"{split}_labeled_studies.csv").write_text("".join(labels[split]))
    return root


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """That tree; what it holds is what is published."""
    totals = {"train": {"patients": 5, "studies": 6, "images": 9}, "heldout": {"patients": 2, "studies": 3, "images": 4}}
    monkeypatch.setattr(mura, "TOTALS", totals)
    monkeypatch.setattr(mura, "IMAGES", {"elbow": (1, 3, 2), "wrist": (4, 1, 2)})
    monkeypatch.setattr(mura, "MURA_STUDIES", {"elbow": ((99, 99), (99, 99))})  # wrong, and from the literature
    return write_mura_tree(tmp_path / "MURA-v1.1")


def of_mura(root: Path, read_images: bool = True) -> Findings:
    return examine(MURA(str(root), body_part="wrist", on_error="skip"), root, read_images)


def first_image(root: Path) -> Path:
    return root / "train/XR_ELBOW/patient00001/study1_positive/image1.png"


def test_the_published_numbers_of_mura_agree_with_each_other():
    assert set(mura.IMAGES) == set(mura.MURA_STUDIES) == set(mura.PARTS)
    assert sum(normal + abnormal for normal, abnormal, _ in mura.IMAGES.values()) == mura.TOTALS["train"]["images"]
    assert sum(held for _, _, held in mura.IMAGES.values()) == mura.TOTALS["heldout"]["images"]
    for place, split in enumerate(("train", "heldout")):
        assert sum(sum(of[place]) for of in mura.MURA_STUDIES.values()) == mura.TOTALS[split]["studies"]
        assert mura.TOTALS[split]["patients"] <= mura.TOTALS[split]["studies"] <= mura.TOTALS[split]["images"]


def test_the_published_numbers_of_mrnet_agree_with_each_other():
    for of in mrnet.MRNET.values():
        assert set(of["slices"]) == set(mrnet.PLANES)
        assert set(of["positives"]) == set(mrnet.TASKS)
        assert max(of["positives"].values()) == of["positives"]["abnormal"] < of["exams"]
        assert all(least < most for least, most in of["slices"].values())
    assert all(sum(about.counts) > 700 for about in MEDMNIST.values())


def test_a_whole_download_is_complete_whatever_body_part_is_chosen(tree):
    found = of_mura(tree)
    assert found.verdict == ("complete", "all 14 published numbers are found")
    assert not found.failed
    assert (found.read, found.faults, found.strays, found.dotfiles) == (13, {}, [], 0)
    lines = [" ".join(line.split()) for line in found.text().splitlines()]
    assert "train elbow images, abnormal positive 3 3" in lines
    assert "train elbow studies, abnormal positive 99 2 less (literature)" in lines, "shown, and judged by nothing"
    assert "valid wrist 2 1 2" in lines, "studies, patients, images"
    assert lines[-1] == "verdict: complete: all 14 published numbers are found"


def test_a_missing_image_makes_it_partial_and_is_named(tree):
    first_image(tree).unlink()
    found = of_mura(tree)
    assert found.verdict[0] == "partial"
    assert "train images 8, published 9" in found.verdict[1]
    assert "XR_ELBOW/patient00001/study1_positive/image1.png" in found.text()
    assert found.failed


def test_more_than_published_is_another_dataset(tree, monkeypatch):
    monkeypatch.setitem(mura.IMAGES, "wrist", (3, 1, 2))
    first_image(tree).unlink()
    found = of_mura(tree)
    assert found.verdict[0] == "not this dataset"
    assert "train wrist images 5, published 4" in found.verdict[1]
    assert found.failed


def test_the_first_release_has_no_certain_numbers(tree, monkeypatch):
    for split in ("train", "valid"):
        (tree / f"{split}_labeled_studies.csv").unlink()
        rows = (tree / f"{split}_image_paths.csv").read_text().splitlines()
        (tree / f"{split}.csv").write_text("".join(f"{row},{int('positive' in row)}\n" for row in rows))
        (tree / f"{split}_image_paths.csv").unlink()
    found = of_mura(tree)
    assert (found.name, found.verdict[0], found.failed) == ("MURA-v1.0", "partial", True), "far from all"
    assert "40,895     13  less" in found.text()
    monkeypatch.setattr(mura, "TOTALS_V10", {"patients": 7, "studies": 10, "images": 14})
    found = of_mura(tree)
    assert (found.verdict[0], found.failed) == ("no published counts", False), "a little less than numbers that are not certain"


def test_an_image_that_cannot_be_read_is_named_unless_images_are_left_out(tree):
    whole = first_image(tree).read_bytes()
    first_image(tree).write_bytes(whole[:60])
    found = of_mura(tree)
    assert found.verdict[0] == "complete"
    named = "train/XR_ELBOW/patient00001/study1_positive/image1.png (not a whole image (60 bytes))"
    assert found.faults == {UNREADABLE: [named]}
    assert found.failed
    assert "1 fault, named above" in found.line
    unread = of_mura(tree, read_images=False)
    assert (unread.read, unread.faults) == (None, {})
    assert "image files were not read" in unread.text()


def test_burnt_in_text_is_counted_and_named_and_is_no_fault(tree):
    assert "burnt-in text" not in of_mura(tree).text()
    picture = cv2.putText(np.full((300, 400), 60, np.uint8), "JOHN DOE", (20, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 1)
    assert cv2.imwrite(str(first_image(tree)), picture)
    found = of_mura(tree)
    assert found.texts == ["train/XR_ELBOW/patient00001/study1_positive/image1.png"]
    assert not found.failed
    assert "images with burnt-in text, by its shape (look whether it names patients): 1 (train/XR_ELBOW" in found.text()
    assert of_mura(tree, read_images=False).texts == []


def test_stray_files_are_named_and_do_no_harm(tree):
    (tree / "notes.txt").touch()
    (first_image(tree).parent / "image9.png").touch()
    (first_image(tree).parent / "._image1.png").touch()
    (tree / ".cache").mkdir()
    (tree / ".cache" / "file").touch()
    found = of_mura(tree)
    assert found.strays == ["notes.txt", "train/XR_ELBOW/patient00001/study1_positive/image9.png"]
    assert found.dotfiles == 2
    assert not found.failed
    assert "2 (notes.txt, train/XR_ELBOW" in found.text()


def test_a_patient_in_both_splits_is_a_fault(tree):
    (tree / "valid/XR_ELBOW/patient00006").rename(tree / "valid/XR_ELBOW/patient00005")
    for name in ("valid_image_paths.csv", "valid_labeled_studies.csv"):
        (tree / name).write_text((tree / name).read_text().replace("patient00006", "patient00005"))
    found = of_mura(tree)
    assert found.faults == {"patients in more than one split": ["patient00005"]}
    assert found.failed


def test_so_many_names_or_all(tree):
    shutil.rmtree(tree / "train/XR_WRIST")
    found = of_mura(tree)
    text = found.text(2)
    assert "patient00001/study1_negative/image2.png" in text
    assert "patient00001/study1_negative/image3.png" not in text
    assert "... and 3 more; names=null names all" in text
    assert "patient00001/study1_negative/image3.png" in found.text(None)


@pytest.fixture
def exams(mrnet_root, tmp_path, monkeypatch) -> Path:
    """A tiny MRNet-v1.0 that does not say it is synthetic, and is what is published."""
    root = shutil.copytree(mrnet_root, tmp_path / "MRNet-v1.0")
    (root / "SYNTHETIC_SAMPLE.txt").unlink()
    published = {}
    for split, folder, count in (("train", "train", 40), ("heldout", "valid", 30)):
        slices = {p: [len(np.load(f, mmap_mode="r")) for f in (root / folder / p).iterdir()] for p in mrnet.PLANES}
        labels = {t: (root / f"{folder}-{t}.csv").read_text() for t in mrnet.TASKS}
        published[split] = {
            "exams": count,
            "slices": {plane: (min(n), max(n)) for plane, n in slices.items()},
            "positives": {task: text.count(",1\n") for task, text in labels.items()},
        }
    monkeypatch.setattr(mrnet, "MRNET", published)
    return root


def of_mrnet(root: Path) -> Findings:
    return examine(MRNet(str(root), plane="coronal", task="acl", on_error="skip"), root)


def test_all_planes_and_tasks_of_mrnet_are_covered(exams):
    found = of_mrnet(exams)
    assert (found.verdict[0], found.read, found.failed) == ("complete", 210, False)
    assert found.labels == mrnet.TASKS
    assert sorted(found.counts["group"].unique()) == sorted(mrnet.PLANES)
    (exams / "valid" / "sagittal" / "1130.npy").unlink(missing_ok=True)
    path = next((exams / "train" / "sagittal").iterdir())
    path.unlink()
    found = of_mrnet(exams)
    assert "train sagittal studies 39, published 40" in found.verdict[1]
    assert found.faults["ids of train without a file in train/sagittal"] == [path.stem]


def test_a_missing_plane_or_list_is_partial(exams):
    shutil.rmtree(exams / "train" / "axial")
    (exams / "valid-meniscus.csv").unlink()
    found = of_mrnet(exams)
    assert found.verdict[0] == "partial"
    assert found.faults["lists that are not there"] == ["valid-meniscus.csv"]
    assert len(found.faults["ids of train without a file in train/axial"]) == 40
    lines = [" ".join(line.split()) for line in found.text().splitlines()]
    assert "train axial studies 40 0 less" in lines
    assert any(line.startswith("train axial images a study") and line.endswith("- narrower") for line in lines)
    assert any(line.startswith("train studies, meniscus positive") and line.endswith(" 0 less") for line in lines)


@pytest.mark.parametrize(
    ("published", "found", "excess"),
    [((17, 61), (17, 61), 0), ((17, 61), (18, 61), -1), ((17, 61), (16, 40), 1), ((17, 61), None, -1), (3, 2, -1), (3, 4, 1)],
)
def test_more_and_less(published, found, excess):
    assert Compared("", published, found, "").excess == excess


def test_a_sample_is_not_compared_and_data_of_ones_own_cannot_be(mrnet_root, exams, monkeypatch):
    sample = of_mrnet(mrnet_root)
    assert (sample.verdict[0], sample.failed) == ("synthetic sample", False)
    assert "published" not in sample.text().split("split  group")[0].replace("compared with what is published", "")
    monkeypatch.setattr(MRNet, "published", lambda *_: [])
    own = of_mrnet(exams)
    assert (own.verdict[0], own.failed) == ("no published counts", False)
    assert own.verdict[1] == "there is nothing to compare with" + "; no faults were found" * (own.read is not None)
    unread = replace(own, read=None)
    assert unread.verdict[1] == "there is nothing to compare with", "pictures that nobody read may be at fault"
    assert replace(own, read=3, faults={"broken": ["a"]}).verdict[1] == "there is nothing to compare with"


def test_progress_tells_the_rate_and_the_time_left(tree, monkeypatch, caplog):
    monkeypatch.setattr("xraylab.system.progress.INTERVAL", 0.0)
    with caplog.at_level(logging.INFO):
        of_mura(tree)
    assert "reading images: 5 of 13, " in caplog.text
    assert "a second, 00:00 to go" in caplog.text
    assert "13 of 13" not in caplog.text


def test_one_file(pneumonia_file, tmp_path):
    copy = Path(shutil.copy(pneumonia_file, tmp_path))
    (tmp_path / "other.txt").touch()
    found = examine(MedMNIST(str(copy), on_error="skip"), copy)
    assert found.verdict == (
        "partial",
        "less than published: train studies 160, published 4,708; valid studies 60, published 524; "
        "test studies 80, published 624",
    )
    assert found.strays == []
    assert "read with the file that holds them" in found.text()


def test_the_command(command, tmp_path):
    counts = dict(zip(("train", "val", "test"), MEDMNIST["breastmnist"].counts, strict=True))
    rng = np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for s, n in counts.items()}
    labels = {f"{s}_labels": rng.integers(0, 2, (n, 1), dtype=np.uint8) for s, n in counts.items()}
    np.savez(tmp_path / "breastmnist.npz", **arrays, **labels)
    done = command("check", "dataset=medmnist", f"dataset.root={tmp_path / 'breastmnist.npz'}")
    assert done.returncode == 0, done.stderr
    assert "verdict: complete: all 3 published numbers are found" in done.stdout
    assert not list((tmp_path / "empty").iterdir()), "nothing is left"

    done = command("check", "dataset=mura", f"dataset.root={write_mura_tree(tmp_path / 'MURA-v1.1')}")
    assert done.returncode == 2
    assert "verdict: partial" in done.stdout
    assert done.stderr.startswith("error: MURA-v1.1 at ")
    assert done.stderr.count("\n") == 1, "one line"


def test_the_command_without_data_says_where_it_looked(command, tmp_path):
    done = command("check", "dataset=mura")
    assert done.returncode == 2
    for words in ("there is no MURA-v1.1", "$XRAYLAB_DATA, which is not set", "data", "dataset.root=sample", "stanfordmlgroup"):
        assert words in done.stderr
    (tmp_path / "wrong" / "train").mkdir(parents=True)
    done = command("check", "dataset=mura", f"dataset.root={tmp_path / 'wrong'}")
    assert done.returncode == 2
    assert "train_image_paths.csv" in done.stderr
    assert "wrong/" in done.stderr


def test_the_embedded_sample_can_be_checked(caplog):
    typed = ["dataset=medmnist", "dataset.root=sample", *(f"dataset.sample.{split}=8" for split in ("train", "val", "test"))]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("check", typed)
    data = resolved(cfg, typed)
    assert data.path is None
    assert "SYNTHETIC SAMPLE (as asked)" in caplog.text
    found = examine(data.reader, data.data())
    assert (found.verdict[0], found.failed) == ("synthetic sample", False)
    assert found.counts["studies"].tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("read_images=3", "it is true or false"),
        ("names=0", "from 1 on"),
        ("+foo=1", "no key foo"),
        ("body_part=leg", "one of elbow"),
    ],
)
def test_mistakes_are_named(command, typed, said):
    done = command("check", "dataset=mura", typed)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_check_needs_no_torch(tmp_path):
    root = write_mura_tree(tmp_path / "MURA-v1.1")
    code = (
        f"import sys; sys.argv = ['check', 'dataset=mura', r'dataset.root={root}']\n"
        "from xraylab.check import main\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert ended.code == 2\n"
        "heavy = {'torch', 'sklearn', 'matplotlib', 'pytorch_lightning', 'albumentations'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_it_composes():
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("check")
    assert (cfg.read_images, cfg.names) == (True, 20)
    assert "dataset" in cfg


# ---- what a file's name and size do not tell ----------------------------------------------------------------------------
