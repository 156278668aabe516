"""Damage that decoders get over: every cut, zeroed or overwritten part is refused where a decoder or a checksum can tell."""

from __future__ import annotations

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import Image

from xraylab.data.images.source import decode, of_one_value
from xraylab.errors import UserError

y, x = np.mgrid[:160, :160]
NOISE = np.random.default_rng(0).normal(0, 12, (160, 160))
PICTURE = (128 + 80 * np.sin(x / 17) * np.cos(y / 23) + NOISE).clip(0, 255).astype(np.uint8)


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, kind, **options)
    return file.getvalue()


FILES = {
    "jpeg": encoded("JPEG", quality=90),
    "jpeg of restarts": cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_RST_INTERVAL, 10])[1].tobytes(),
    "png": encoded("PNG"),
    "lzw": encoded("TIFF", compression="tiff_lzw"),
    "deflate": encoded("TIFF", compression="tiff_adobe_deflate"),
    "jpeg in tiff": encoded("TIFF", compression="jpeg"),
}


def damaged(data, how, seed):
    """Cut, or 200 bytes of zeros or of ones, somewhere in the last nine tenths."""
    at = int(np.random.default_rng(seed).integers(len(data) // 10, len(data) - 300))
    return data[:at] if how == "cut" else data[:at] + how * 200 + data[at + 200 :]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("how", ["cut", b"\0", b"\xff"])
def test_no_damaged_picture_is_read_as_another(kind, how):
    whole = decode(np.frombuffer(FILES[kind], np.uint8), "x")
    for seed in range(10):
        with suppress(UserError):
            found = decode(np.frombuffer(damaged(FILES[kind], how, seed), np.uint8), "x")
            assert np.array_equal(found, whole), f"{kind}: {how!r} by seed {seed}"


def test_the_decoders_words_are_of_the_file_that_caused_them():
    sound, torn = (np.frombuffer(d, np.uint8) for d in (FILES["jpeg"], damaged(FILES["jpeg"], b"\0", 1)))
    torn_at = [i % 7 == 3 for i in range(140)]

    def refused(is_torn):
        try:
            decode(torn if is_torn else sound, "x")
        except UserError as error:
            return "Corrupt JPEG data" in str(error)
        return False

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(refused, torn_at)) == torn_at


def test_a_whole_picture_with_odd_metadata_is_read_and_the_file_named(caplog):
    jpeg = FILES["jpeg"]
    odd = jpeg[:2] + b"\xff\xe5\0\4ab" + b"123" + jpeg[2:]  # bytes between two segments
    with caplog.at_level(logging.WARNING):
        found = decode(np.frombuffer(odd, np.uint8), "odd.jpg")
    assert np.array_equal(found, decode(np.frombuffer(jpeg, np.uint8), "x"))
    assert "odd.jpg: its decoder says: Corrupt JPEG data: 3 extraneous bytes" in caplog.text


def test_one_value_is_of_all_pixels_of_all_slices():
    black, colour = np.zeros((50, 40), np.uint8), np.full((50, 40, 3), (9, 90, 200), np.uint8)
    assert of_one_value([black])
    assert of_one_value([colour])
    assert of_one_value(np.zeros((3, 50, 40), np.uint8))
    for place in ((0, 0), (49, 39), (17, 23)):
        dot = black.copy()
        dot[place] = 1
        assert not of_one_value([dot])
        assert not of_one_value(np.stack([black, dot]))
