"""Files of images: depth, pages, orientation, and what cannot be read."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from xraylab.data.images.source import FileSource, NpySource, check_bits, decode
from xraylab.data.preprocessing import prepare
from xraylab.errors import UserError


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_the_same_colours_become_the_same_grey_in_every_kind_of_file(kind):
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    grey = decode(np.frombuffer(file.getvalue(), np.uint8), "x")
    assert np.abs(grey - colours @ (0.299, 0.587, 0.114)).max() < 0.51, "ITU-R 601, rounded"


def test_grey_and_colour_files_give_the_channels_asked_for(tmp_path, picture):
    colour = np.stack([picture, picture // 2, picture // 4], axis=2)
    Image.fromarray(picture).save(tmp_path / "grey.png")
    Image.fromarray(colour).save(tmp_path / "colour.png")
    grey, mixed = FileSource(tmp_path).read(["grey.png", "colour.png"])
    assert np.array_equal(grey, picture)
    assert mixed.shape == picture.shape
    three, rgb = FileSource(tmp_path, colour=True).read(["grey.png", "colour.png"])
    assert np.array_equal(three, np.repeat(picture[..., None], 3, axis=2))
    assert np.array_equal(rgb, colour)


def test_values_of_16_bits_are_refused_until_their_bits_are_known(tmp_path, picture):
    deep = picture.astype(np.uint16) << 4
    cv2.imwrite(str(tmp_path / "twelve.png"), deep)
    with pytest.raises(UserError, match=r"twelve.png: uint16 values up to \d+, and dataset.bits is not set"):
        FileSource(tmp_path).read(["twelve.png"])
    assert np.array_equal(FileSource(tmp_path, bits=12).read(["twelve.png"])[0], picture)
    with pytest.raises(UserError, match=r"dataset.bits=10"):
        FileSource(tmp_path, bits=10).read(["twelve.png"])
    with pytest.raises(UserError, match=r"dataset.bits=4"):
        check_bits(4)


def test_a_tiff_of_several_pages_is_refused(tmp_path, picture):
    pages = [Image.fromarray(picture), Image.fromarray(picture)]
    pages[0].save(tmp_path / "one.tif")
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(FileSource(tmp_path).read(["one.tif"])[0], picture)
    with pytest.raises(UserError, match="a TIFF of 2 pages"):
        FileSource(tmp_path).read(["two.tif"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_tells_the_shape_of_what_is_read_however_it_is_turned(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=exif)
    source = FileSource(tmp_path)
    assert source.shape("turned.jpg") == (1, *source.read(["turned.jpg"])[0].shape)


def test_what_is_no_image_is_named(tmp_path, picture):
    cv2.imwrite(str(tmp_path / "whole.png"), picture)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "archive.npz", picture)
    for name in ("cut.png", "empty.png", "nowhere.png"):
        with pytest.raises(UserError, match=name):
            FileSource(tmp_path).read([name])
    for name in ("empty.npy", "archive.npz"):
        with pytest.raises(UserError, match=name):
            NpySource(tmp_path).shape(name)
    with pytest.raises(UserError, match=r"empty.npy"):
        NpySource(tmp_path).read(["empty.npy"])


def test_each_view_is_stretched_and_resized_on_its_own(picture):
    views = [picture // 4 + 20, picture[:10] // 2]
    found = prepare(views, 16, rescale=True)
    for k, view in enumerate(views):
        assert np.array_equal(found[k], prepare(view[None], 16, rescale=True)[0])
    with pytest.raises(UserError, match=r"set image.size"):
        prepare(views)
