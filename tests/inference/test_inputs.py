"""Studies without labels: folders, lists and files, of every kind that is read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from xraylab.data.datasets.mrnet import PLANES
from xraylab.data.images.any_file import AnyFileSource
from xraylab.errors import UserError
from xraylab.inference.inputs import find_studies, of_plane, with_parts


def picture(path: Path, value: int = 90, size: tuple[int, int] = (40, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(value).integers(0, 256, size, dtype=np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


def ids_and_bags(given, **options) -> dict[str, list[str]]:
    frame = find_studies(given if isinstance(given, list) else str(given), **options).frame
    return {i: [Path(p).name for p in images] for i, images in zip(frame["id"], frame["images"], strict=True)}


def test_a_folder_is_cut_into_studies(tmp_path):
    top = tmp_path / "clinic"
    for name in ("b.png", "a10.jpg", "a9.tif", "visit/side.png", "visit/front.png", "deep/er/one.png", "._x.png", ".hid/y.png"):
        picture(top / name)
    (top / "notes.txt").write_text("not an image")
    np.save(top / "visit" / "mri.npy", np.zeros((2, 8, 8), np.uint8))
    assert ids_and_bags(top) == {
        "a9": ["a9.tif"], "a10": ["a10.jpg"], "b": ["b.png"], "deep/er": ["one.png"], "visit": ["front.png", "side.png"],
        "visit/mri": ["mri.npy"],
    }  # fmt: skip
    assert list(ids_and_bags(top, study="file")) == ["a9", "a10", "b", "deep/er/one", "visit/front", "visit/mri", "visit/side"]
    assert ids_and_bags(top, study="folder")["visit"] == ["front.png", "mri.npy", "side.png"]
    assert ids_and_bags(top, study="folder")["clinic"] == ["a9.tif", "a10.jpg", "b.png"]
    picture(top / "b.jpg")
    assert {"b.png", "b.jpg"} < set(ids_and_bags(top)), "ids stay apart"


def test_the_unlabelled_test_tree_of_mura(tmp_path):
    top = tmp_path / "MURA-v1.1" / "test"
    for study in ("XR_WRIST/patient11185/study1", "XR_WRIST/patient11185/study2", "XR_HAND/patient11186/study1"):
        for k in (1, 2):
            picture(top / study / f"image{k}.png", k)
    frame = find_studies(str(top)).frame
    studies = ["XR_HAND/patient11186/study1", "XR_WRIST/patient11185/study1", "XR_WRIST/patient11185/study2"]
    assert frame["id"].tolist() == [f"test/{study}" for study in studies], "as the published set names its studies"
    assert find_studies(str(top / "XR_HAND")).frame["id"].tolist() == [f"test/{studies[0]}"]
    assert frame["patient"].tolist() == ["patient11186", "patient11185", "patient11185"]
    assert frame["group"].tolist() == ["hand", "wrist", "wrist"]
    one = find_studies(str(top / "XR_HAND" / "patient11186" / "study1")).frame
    assert [len(images) for images in one["images"]] == [2], "a study's own folder is one study"
    frame = find_studies(str(top), patient=r"/(XR_\w+)/", group=r"(study\d)").frame
    assert frame["patient"].tolist() == ["XR_HAND", "XR_WRIST", "XR_WRIST"]
    assert frame["group"].tolist() == ["study1", "study1", "study2"]


def test_studies_that_lie_as_in_a_published_set_have_its_ids(tmp_path):
    chexpert = "CheXpert-v1.0/valid/patient1/study1/v.jpg"
    for name in ("x/files/p10/p10000032/s50414267/a.jpg", "n/images/00000001_000.png", chexpert):
        picture(tmp_path / name)
    assert list(ids_and_bags(tmp_path / "x")) == ["s50414267"]
    assert list(ids_and_bags(tmp_path / "n", study="file")) == ["00000001_000.png"]
    assert list(ids_and_bags(tmp_path / "n" / "images" / "00000001_000.png")) == ["00000001_000.png"]
    (tmp_path / "list.csv").write_text(f"path\n{chexpert}\n")
    assert list(ids_and_bags(tmp_path / "list.csv")) == ["valid/patient1/study1"]
    (tmp_path / "list.csv").write_text(f"id,path\nmine,{chexpert}\n")
    assert list(ids_and_bags(tmp_path / "list.csv")) == ["mine"], "an id that is given stays"


def test_exams_of_two_splits_are_never_one(tmp_path):
    for name in ("train/axial/1.png", "train/coronal/1.png", "valid/axial/1.png", "valid/axial/2.png"):
        picture(tmp_path / name)
    found = find_studies(str(tmp_path), study="file")
    assert of_plane(found, "axial", PLANES).frame["id"].tolist() == ["train/1", "valid/1", "valid/2"]
    assert with_parts(found, ("axial", "coronal")).frame["id"].tolist() == ["train/1"]
    valid = find_studies(str(tmp_path / "valid"), study="file")
    assert of_plane(valid, "axial", PLANES).frame[["id", "group"]].to_numpy().tolist() == [["1", "axial"], ["2", "axial"]]
    picture(tmp_path / "valid" / "1.png")
    again = of_plane(find_studies(str(tmp_path / "valid"), study="file"), "axial", PLANES)
    assert sorted(again.frame["id"]) == ["1", "axial/1", "axial/2"], "nor is what names no plane"


def test_a_list_keeps_its_order_and_its_ids(tmp_path):
    for name in ("x/1.png", "x/2.png", "x/3.png"):
        picture(tmp_path / name)
    (tmp_path / "list.txt").write_text("x/3.png\nx/1.png\n")
    assert ids_and_bags(tmp_path / "list.txt") == {"x/3": ["3.png"], "x/1": ["1.png"]}
    (tmp_path / "list.csv").write_text("\ufeffid,age,path\nS2,70,x/2.png\nS1,60,x/3.png;x/1.png\nS2,70,x/1.png\n")
    assert ids_and_bags(tmp_path / "list.csv") == {"S2": ["2.png", "1.png"], "S1": ["3.png", "1.png"]}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "list.csv").write_text("path\n2.png\n")
    assert ids_and_bags(tmp_path / "other" / "list.csv", root=str(tmp_path / "x")) == {"2": ["2.png"]}
    assert ids_and_bags(tmp_path / "list.txt", study="folder") == {"x": ["3.png", "1.png"]}
    assert list(ids_and_bags([str(tmp_path / "x" / "2.png"), str(tmp_path / "x" / "1.png")])) == [
        f"{tmp_path.as_posix()}/x/2", f"{tmp_path.as_posix()}/x/1",
    ]  # fmt: skip
    assert ids_and_bags(tmp_path / "x" / "2.png") == {"2": ["2.png"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no path in it"),
        ("id,age\n1,2\n", "no column of paths beside id"),
        ("id,path\n1,x.png\n2,\n", "row 3 has no path, or no id: 2"),
        ("gone.png\nlost.png\n", r"not one of its 2 files is there; the first would be .*gone\.png.*root=<folder>"),
        ("x.png\nx.png\n", r"x\.png is listed twice"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path, text, said):
    picture(tmp_path / "x.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        find_studies(str(tmp_path / "list.csv"))


def test_inputs_that_are_wrong_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for given, options, said in (
        (tmp_path / "gone", {}, "there is no such file or folder.*train, valid or test"),
        ("tset", {}, "Did you mean test"),
        (tmp_path / "empty", {}, "no image in it"),
        (tmp_path / "empty", {"study": "visit"}, "study=visit: it is auto, file or folder"),
        (tmp_path / "empty", {"patient": "p"}, "it has 0 groups"),
        (tmp_path / "empty", {"group": "("}, "not a regular expression"),
    ):
        with pytest.raises(UserError, match=said):
            find_studies(str(given), **options)


def test_every_kind_of_file_is_read_in_grey_and_in_colour(tmp_path):
    rgb = np.random.default_rng(3).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    cv2.imwrite(str(tmp_path / "rgb.png"), rgb[..., ::-1])
    np.save(tmp_path / "one.npy", grey)
    np.save(tmp_path / "volume.npy", np.stack([grey, 255 - grey]))
    np.save(tmp_path / "colour.npy", rgb)
    files = {name: str(tmp_path / name) for name in ("rgb.png", "one.npy", "volume.npy", "colour.npy")}
    source, colour = AnyFileSource(), AnyFileSource(colour=True)
    assert np.abs(source.read([files["rgb.png"]])[0].astype(int) - grey).max() <= 1
    assert np.array_equal(colour.read([files["rgb.png"]])[0], rgb)
    assert np.array_equal(source.read([files["volume.npy"]]), np.stack([grey, 255 - grey]))
    assert colour.read([files["volume.npy"]]).shape == (2, 20, 24, 3)
    assert np.array_equal(colour.read([files["colour.npy"]])[0], rgb)
    assert [source.shape(files[name]) for name in ("rgb.png", "one.npy", "volume.npy")] == [(1, 20, 24), (1, 20, 24), (2, 20, 24)]
    assert colour.shape(files["colour.npy"]) == (1, 20, 24)
    views = source.read([files["one.npy"], files["rgb.png"]])
    assert isinstance(views, list), "views are on their own ..."
    assert AnyFileSource(volumes=True).read([files["one.npy"], files["volume.npy"]]).shape == (3, 20, 24), "slices are one volume"
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 16)
    assert np.array_equal(AnyFileSource(bits=12).read([str(tmp_path / "deep.png")])[0], grey)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 3, 3), np.float32), r"float32 \(2, 3, 3\), where uint8"),
        (np.zeros(5, np.uint8), r"uint8 \(5,\), where uint8"),
        (np.zeros((0, 3, 3), np.uint8), r"uint8 \(0, 3, 3\), where"),
        (np.zeros((2, 3, 3, 3), np.uint8), r"where \(slices,height,width\) is wanted"),
        (np.zeros((9, 8, 3), np.uint8), r"uint8 \(9, 8, 3\), which seems to be 3 channels, where \(slices,height"),
        (np.array([{}], object), "not a whole array"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, array, said):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=said):
        AnyFileSource().read([str(tmp_path / "a.npy")])
