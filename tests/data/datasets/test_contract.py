"""The contract of readers with lists: the same studies, labels, attributes and pixels, in whatever order rows stand."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pytest

from xraylab.data.datasets.chexpert import CheXpert
from xraylab.data.datasets.csv_table import CsvTable
from xraylab.data.datasets.nih import NIH
from xraylab.data.datasets.published_tables.challenges import RSNAPneumonia, SIIMPneumothorax, VinDrCXR
from xraylab.data.datasets.published_tables.reports import OpenI, PadChest

READERS = {
    "table": (CsvTable, {"train": 12, "test": 8}),
    "nih": (NIH, {"train": 20, "test": 20}),
    "chexpert": (CheXpert, {"train": 20, "valid": 20}),
    "padchest": (PadChest, {"studies": 84}),
    "open_i": (OpenI, {"studies": 48}),
    "rsna": (RSNAPneumonia, {"studies": 12}),
    "siim": (SIIMPneumothorax, {"studies": 12}),
    "vindr": (VinDrCXR, {"train": 28, "test": 14}),
}


def content(reader):
    """The table by id, images of a study sorted, and the pixels of each image."""
    table = reader.read(reader.find())
    frame = table.frame.assign(images=[tuple(sorted(images)) for images in table.frame["images"]])
    pixels = {image: table.source.read([image])[0] for images in frame["images"] for image in images}
    return frame.sort_values("id", ignore_index=True), pixels


@pytest.mark.parametrize("name", READERS)
def test_the_order_of_rows_does_not_matter(name, tmp_path):
    kind, sizes = READERS[name]
    if name in ("rsna", "siim", "vindr"):
        pytest.importorskip("pydicom")
    root = kind().write_sample(tmp_path, **sizes)
    more = {"bits": 16} if name == "padchest" else {}
    frame, pixels = content(kind(str(tmp_path), **more))
    for file in (*root.rglob("*.csv"), *root.rglob("*_list.txt")):
        rows = list(csv.reader(file.open(newline="")))
        head = rows[:1] if file.suffix == ".csv" else []
        order = np.random.default_rng(0).permutation(len(rows) - len(head)) + len(head)
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([*head, *(rows[k] for k in order)])
    again, same = content(kind(str(tmp_path), **more))
    pd.testing.assert_frame_equal(again, frame)
    assert pixels.keys() == same.keys()
    assert all(np.array_equal(pixels[image], same[image]) for image in pixels)
