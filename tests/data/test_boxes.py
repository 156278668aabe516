"""Boxes: as the samples write them, as ChestX-ray14 has them, and what is no table of boxes."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest

from xraylab.data.boxes import boxes_of, find_boxes, read_boxes
from xraylab.data.synthetic.chest import write_nih
from xraylab.errors import UserError


def test_parts_that_are_near_each_other_share_a_box():
    mask = np.zeros((64, 64), bool)
    mask[10:20, 5:15] = mask[10:20, 18:28] = mask[50:60, 50:60] = True
    assert sorted(boxes_of(mask)) == [(5, 10, 10, 10), (18, 10, 10, 10), (50, 50, 10, 10)]
    assert sorted(boxes_of(mask, joined=1 / 16)) == [(5, 10, 23, 10), (50, 50, 10, 10)]
    assert boxes_of(mask, joined=1) == [(5, 10, 55, 50)]
    assert boxes_of(mask & False) == []


def test_the_boxes_of_knees_hold_the_bright_fluid_of_a_tear(mrnet_root):
    boxes = read_boxes(mrnet_root / "boxes.csv")
    assert set(boxes["finding"]) == {"abnormal", "acl", "meniscus"}
    torn = {name: set(pd.read_csv(mrnet_root / f"valid-{name}.csv", header=None, dtype=str).query("`1` == '1'")[0])
            for name in ("acl", "meniscus")}  # fmt: skip
    for finding, exams in torn.items():
        there = boxes[(boxes["finding"] == finding) & boxes["image"].str.startswith("valid/")]
        assert set(there["image"].str[-8:-4]) == exams, "each torn exam, and no other"
    inside, outside = [], []
    for box in boxes[boxes["finding"] == "acl"].to_dict("records")[:40]:
        image = np.load(mrnet_root / box["image"])[int(box["slice"]) - 1]
        mask = np.zeros(image.shape, bool)
        mask[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]] = True
        inside.append(np.quantile(image[mask], 0.75))
        outside.append(np.quantile(image[~mask], 0.75))
    assert np.mean(np.array(inside) > np.array(outside) + 20) > 0.9


def test_the_boxes_of_bones_hold_what_differs_and_no_normal_study_has_one(mura_root):
    boxes = read_boxes(mura_root / "boxes.csv")
    assert all("_positive/" in image for image in boxes["image"])
    for box in boxes.head(20).to_dict("records"):
        height, width = cv2.imread(str(mura_root / box["image"])).shape[:2]
        assert 0 <= box["x"] < box["x"] + box["width"] <= width
        assert 0 <= box["y"] < box["y"] + box["height"] <= height


def test_the_sample_of_chest_x_ray14_has_the_published_file(tmp_path):
    root = write_nih(tmp_path / "ChestX-ray14", train=20, test=20, size=48)
    lines = (root / "BBox_List_2017.csv").read_text().splitlines()
    assert lines[0] == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    boxes = read_boxes(root / "BBox_List_2017.csv")
    test = set((root / "test_list.txt").read_text().split())
    entries = pd.read_csv(root / "Data_Entry_2017_v2020.csv").set_index("Image Index")["Finding Labels"]
    assert set(boxes["image"]) <= test
    for box in boxes.to_dict("records"):
        assert box["finding"].replace("pleural_effusion", "effusion") in entries[box["image"]].lower()
        assert box["x"] + box["width"] <= box["unit_width"] + 1e-6 == 1024 + 1e-6


def test_the_published_names_are_those_of_the_vocabulary(tmp_path):
    (tmp_path / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n1.png,Infiltrate,10.5,20,30,40,,,\n2.png,Effusion,1,2,3,4,,,\n"
    )
    boxes = read_boxes(tmp_path / "BBox_List_2017.csv")
    assert boxes["finding"].tolist() == ["infiltration", "pleural_effusion"]
    assert boxes.loc[0, ["x", "y", "width", "height"]].tolist() == [10.5, 20, 30, 40]
    assert find_boxes(tmp_path / "images" / "1.png") == tmp_path / "BBox_List_2017.csv"


def test_what_is_no_table_of_boxes_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("image,finding,x,y,width\na.png,acl,1,2,3\n")
    with pytest.raises(UserError, match="there is no height"):
        read_boxes(path)
    path.write_text("image,finding,x,y,width,height\na.png,acl,1,2,0,3\n")
    with pytest.raises(UserError, match=r"box of a\.png has no width"):
        read_boxes(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_boxes(tmp_path / "other.csv")
