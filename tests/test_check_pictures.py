"""The check of pictures, and of whole published trees."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np

from xraylab.data.cache.build import pack_table
from xraylab.data.datasets import mura
from xraylab.data.datasets.folder import Folder
from xraylab.data.datasets.mura import MURA
from xraylab.data.integrity import examine


def write_published_mura(root: Path) -> None:
    """A MURA-v1.1 of 40,005 files in the published numbers, every file the same picture, with dotfiles and the CSVs' quirks."""
    root.mkdir()
    cv2.imwrite(str(root / "one.png"), np.zeros((8, 8), np.uint8))
    first = 1
    for place, (split, totals) in enumerate(mura.TOTALS.items()):
        name = {"train": "train", "heldout": "valid"}[split]
        studies, lines, paths = [], [], []
        for part, counts in mura.MURA_STUDIES.items():
            for label, number in enumerate(counts[place]):
                studies += [(part, label, k) for k in range(number)]
        # patients beyond the number that is published are earlier ones again, under another body part
        order = [first + i % totals["patients"] for i in range(len(studies))]
        for (part, label, k), patient in zip(studies, order, strict=True):
            images = mura.IMAGES[part][label] if split == "train" else mura.IMAGES[part][2]
            of = mura.MURA_STUDIES[part][place][label] if split == "train" else sum(mura.MURA_STUDIES[part][place])
            at = k if split == "train" or label == 0 else k + mura.MURA_STUDIES[part][place][0]
            views = images // of + (at < images % of)
            kind = ("negative", "positive")[label]
            study = f"{name}/XR_{part.upper()}/patient{patient:05d}/study{1 + label}{k}_{kind}"
            (root / study).mkdir(parents=True)
            for view in range(1, views + 1):
                os.link(root / "one.png", root / study / f"image{view}.png")
                paths.append(f"MURA-v1.1/{study}/image{view}.png\n")
            lines.append(f"MURA-v1.1/{study}/,{label}\n")
        (root / study / "._image1.png").write_bytes(b"\0\5\26\7")
        (root / f"{name}_image_paths.csv").write_text("".join(paths))
        (root / f"{name}_labeled_studies.csv").write_text("".join(lines))
        first += totals["patients"]
    (root / "one.png").unlink()


def test_the_published_numbers_of_mura_are_found_in_a_tree_of_them(tmp_path):
    """Row 1 of each CSV counts, for they have no header: a reader that loses it is short of these numbers."""
    root = tmp_path / "MURA-v1.1"
    write_published_mura(root)
    found = examine(MURA(str(root), on_error="skip"), root, read_images=False)
    assert found.verdict[0] == "complete", found.text()
    assert not found.faults
    assert found.dotfiles == 2
    by = found.counts.set_index(["split", "group"])
    assert by.loc["train", "images"].sum() == 36_808
    assert by.loc["valid", "studies"].sum() == 1_199
    assert (by.loc[("train", "wrist"), ["abnormal_negative", "abnormal_positive"]] == [2134, 1326]).all()
    (root / "valid_image_paths.csv").write_text((root / "valid_image_paths.csv").read_text().split("\n", 1)[1])
    assert examine(MURA(str(root), on_error="skip"), root, read_images=False).verdict[0] == "partial"


def own(root):
    """A folder of classes, of noise, in which nothing is wrong."""
    for k, name in enumerate(
        f"{split}/{sick}/{i}.png" for split in ("train", "test") for sick in ("normal", "sick") for i in range(3)
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), np.random.default_rng(k).integers(0, 256, (40, 40), dtype=np.uint8))
    return root


def test_pictures_of_one_value_damage_and_copies_across_splits_are_named(tmp_path):
    root = own(tmp_path / "own")
    assert not examine(Folder(str(root), on_error="skip"), root).faults
    cv2.imwrite(str(root / "train" / "sick" / "0.png"), np.full((40, 40), 7, np.uint8))
    shutil.copy(root / "train" / "normal" / "1.png", root / "test" / "sick" / "2.png")
    picture = np.random.default_rng(1).integers(0, 256, (200, 200), dtype=np.uint8)
    jpeg = bytearray(cv2.imencode(".jpg", picture)[1].tobytes())
    jpeg[9000:9400] = bytes(400)
    (root / "train" / "sick" / "9.jpg").write_bytes(jpeg)
    found = examine(Folder(str(root), on_error="skip"), root)
    assert found.failed
    damaged = found.faults.pop("images that cannot be read")
    assert len(damaged) == 1
    assert damaged[0].startswith("train/sick/9.jpg (damaged inside (Corrupt JPEG data,")
    assert found.faults == {
        "pictures of one value, on which nothing can be seen": ["train/sick/0.png"],
        "files with the same bytes in more than one split": ["test/sick/2.png (heldout) = train/normal/1.png (train)"],
    }
    assert "no faults" not in found.text()


def test_pictures_of_one_value_are_said_when_they_are_packed(tmp_path, caplog):
    root = own(tmp_path / "own")
    cv2.imwrite(str(root / "train" / "sick" / "0.png"), np.zeros((40, 40), np.uint8))
    table = Folder(str(root)).read(root)
    for _ in range(2):  # when they are read, and when a run finds them packed
        caplog.clear()
        pack_table(table, tmp_path / "cache", 32, False, "stop")
        assert "1 pictures of one value, on which nothing can be seen, trained on as they are: train/sick/0.png" in caplog.text
