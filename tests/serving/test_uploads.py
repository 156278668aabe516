"""Files of visitors: what is decoded, to which pixels, and what is refused, without harm to the process."""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from xraylab.serving.uploads import Limits, Refusal, Upload, decoded_study, plane_of

SMALL = Limits(files=8, megapixels=1, unpacked_megabytes=1, decode_seconds=20)


def picture(seed: int = 0, shape: tuple[int, ...] = (40, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def archive(files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return out.getvalue()


@pytest.fixture
def study(tmp_path):
    """Decode files by their names; nothing but arrays is left."""

    def decode(files: dict[str, bytes], limits: Limits = SMALL, **more):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        uploads = []
        for number, (name, data) in enumerate(files.items()):
            path = folder / f"upload{number}{os.path.splitext(name)[1].lower()}"
            path.write_bytes(data)
            uploads.append(Upload(name, path))
        return decoded_study(uploads, folder, limits, **more)

    return decode


def test_pictures_and_volumes_have_the_pixels_that_were_sent_in_the_order_of_people(study):
    volume = picture(1, (7, 40, 30))
    images = {f"a/view{k}.png": picture(k) for k in (10, 2, 1)}
    found = study({name: png(image) for name, image in images.items()} | {"a/all.npy": npy(volume)})
    assert [of.name for of in found.files] == ["a/all.npy", "a/view1.png", "a/view2.png", "a/view10.png"]
    assert found.id == "a"
    assert [of.slices for of in found.files] == [7, 1, 1, 1]
    assert np.array_equal(np.load(found.files[0].path), volume)
    for of in found.files[1:]:
        assert np.array_equal(np.load(of.path)[0], images[of.name])


def test_colour_is_kept_where_the_model_sees_it(study):
    bgr = picture(3, (20, 24, 3))
    found = study({"a.png": png(bgr)}, colour=True)
    assert np.array_equal(np.load(found.files[0].path)[0], bgr[..., ::-1])


def test_sixteen_bits_need_to_be_said(study):
    deep = (picture(4).astype(np.uint16) << 4) + 3
    with pytest.raises(Refusal, match="bits"):
        study({"a.png": png(deep)})
    found = study({"a.png": png(deep)}, bits=12)
    assert np.array_equal(np.load(found.files[0].path)[0], picture(4))


def test_an_archive_is_a_study_without_what_systems_leave(study):
    files = {"knee/2.png": png(picture(2)), "knee/1.png": png(picture(1)), "__MACOSX/knee/._1.png": b"x", ".DS_Store": b"x",
             "knee/notes.txt": b"words"}  # fmt: skip
    found = study({"exam.zip": archive(files)})
    assert [of.name for of in found.files] == ["exam/knee/1.png", "exam/knee/2.png"]
    assert found.id == "exam"
    assert [of.file for of in found.unread] == ["exam/knee/notes.txt"]


@pytest.mark.parametrize("name", ["../out.png", "/out.png", "a/../../out.png", "C:\\out.png", "a\\..\\..\\out.png"])
def test_a_name_that_leaves_the_folder_is_refused_and_nothing_is_written(study, tmp_path, name):
    with pytest.raises(Refusal, match="leads out"):
        study({"a.zip": archive({name: png(picture())})})
    assert not list(tmp_path.parent.glob("out.png"))
    assert not list(tmp_path.rglob("*out*"))


def test_a_link_in_an_archive_is_refused(study):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened:
        entry = zipfile.ZipInfo("a.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(entry, "/etc/passwd")
    with pytest.raises(Refusal, match="link"):
        study({"a.zip": out.getvalue()})


def test_a_bomb_is_stopped_by_what_comes_out_and_not_by_what_its_head_says(study, tmp_path):
    data = bytearray(archive({"a.png": bytes(40_000_000)}))
    for at in (data.find(b"PK\x03\x04") + 22, data.find(b"PK\x01\x02") + 24):
        data[at : at + 4] = struct.pack("<I", 1000)  # as if it were small
    for content in (bytes(data), archive({"a.png": bytes(40_000_000)})):
        with pytest.raises(Refusal) as raised:
            study({"a.zip": content})
        assert raised.value.status in (413, 422)
        assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 4_200_000


@pytest.mark.parametrize("content", [{f"{k}.png": b"x" for k in range(9)}, None])
def test_too_many_files_are_refused(study, content):
    files = {"a.zip": archive(content)} if content else {f"{k}.png": png(picture(k)) for k in range(9)}
    with pytest.raises(Refusal, match=r"files") as raised:
        study(files)
    assert raised.value.status == 413


def test_more_pixels_than_the_limit_are_refused_by_their_head(study):
    with pytest.raises(Refusal, match="pixels") as raised:
        study({"a.png": png(np.tile(picture(), (30, 30)))})
    assert raised.value.status == 413
    with pytest.raises(Refusal, match="pixels"):  # together
        study({f"{k}.png": png(np.tile(picture(), (15, 20))) for k in range(8)})


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.png", png(picture())[:200], "not a whole image"),
        ("a.png", b"", "empty"),
        ("a.png", b"<html>", "not a whole image"),
        ("a.npy", npy(picture())[:-9], "not a whole array"),
        ("a.npy", npy(picture().astype(np.float32) / 255), "float32"),
        ("a.npy", npy(np.array([{"a": 1}], dtype=object)), "not a whole array"),
        ("a.png", png(np.full((40, 40), 9, np.uint8)), "blank"),
        ("a.png", png(picture(0, (8, 40))), "8x40"),
        ("a.zip", archive({"a.png": png(picture())})[:150], "no image"),
        ("a.pdf", b"%PDF-1.4", "no image"),
        ("a.dcm", bytes(128) + b"DICM" + bytes(50), "."),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason_and_not_this_machines_paths(study, tmp_path, name, data, words):
    with pytest.raises(Refusal, match=words) as raised:
        study({name: data})
    assert raised.value.reason == "unreadable"
    assert name in str(raised.value)
    assert str(tmp_path) not in str(raised.value)
    left = study({name: data, "good.png": png(picture(5))})
    assert [of.name for of in left.files] == ["good.png"]
    assert [of.file for of in left.unread] == [name]


def test_a_file_that_takes_too_long_costs_itself(study, monkeypatch):
    monkeypatch.setattr("xraylab.serving.uploads.decode_to", slow)
    with pytest.raises(Refusal, match="not done after 1 s"):
        study({"a.png": png(picture())}, Limits(decode_seconds=1))


def slow(*arguments: object) -> None:
    """Does not end by itself."""
    while True:
        sum(range(1000))


def dicom(image: np.ndarray, **tags: object) -> bytes:
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    of = FileDataset("a.dcm", {}, file_meta=meta, preamble=bytes(128))
    of.Rows, of.Columns = image.shape
    of.SamplesPerPixel, of.BitsAllocated, of.BitsStored, of.HighBit, of.PixelRepresentation = 1, 8, 8, 7, 0
    of.PhotometricInterpretation, of.PixelData = "MONOCHROME2", image.tobytes()
    of.PatientName, of.StudyInstanceUID = "Doe^Jane", "1.2.3"
    for name, value in tags.items():
        setattr(of, name, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, of)
    return out.getvalue()


def test_a_dicom_file_says_how_it_was_made_and_nothing_of_its_patient(study):
    tags = {"Modality": "MR", "ViewPosition": "LL", "BodyPartExamined": "KNEE", "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    found = study({"IM0001": dicom(picture(), **tags)})
    (of,) = found.files
    assert of.facts[:4] == ("MR", "KNEE", "LL", "coronal")
    assert np.array_equal(np.load(of.path)[0], picture())
    assert "1.2.3" not in str(found)
    assert "Doe" not in str(found)


def test_files_of_two_studies_are_refused(study):
    files = {"a": dicom(picture(1), StudyInstanceUID="1.2.3"), "b": dicom(picture(2), StudyInstanceUID="1.2.4")}
    with pytest.raises(Refusal, match="several studies"):
        study(files)
    files["b"] = dicom(picture(2), StudyInstanceUID="1.2.3")
    assert len(study(files).files) == 2


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"), ([0.98, 0.17, 0, -0.17, 0.98, 0], "axial"), ([1, 0, 0, 0, 0.2, -0.98], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"), ([1, 0, 0, 1, 0, 0], ""), ([1, 0], ""), (None, ""), ([float("nan")] * 6, ""),
    ],
)  # fmt: skip
def test_planes_are_those_of_the_normal(orientation, plane):
    assert plane_of(orientation) == plane


def test_children_import_no_torch(study):
    """So that they start at once, and what ends them ends little."""
    import subprocess

    code = (
        "import sys, xraylab.serving.uploads; assert not {'torch', 'pandas', 'starlette'} & set(sys.modules), sorted(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_slices_of_a_series_are_refused_by_a_model_of_volumes(study, tmp_path):
    """One by one they would have neither their order nor their volume's scale."""
    pytest.importorskip("pydicom")
    from data.images.phantom import bars, write_series

    files = {path.name: path.read_bytes() for path in write_series(tmp_path / "series", bars(3))}
    with pytest.raises(Refusal, match=r"a slice of a series, whose order and scale only python -m xraylab\.predict finds"):
        study(files, rule={"series": "largest", "window": [], "slices": None})
    assert len(study(files).files) == 3
