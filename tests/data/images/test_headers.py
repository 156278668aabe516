"""Pictures of every kind hold the values that were written, turned as they say; and their heads tell the shape of that.

Files are written byte by byte, so that what is right is known; orientation is held against PIL's exif_transpose.
"""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from xraylab.data.images.source import decode, header_shape
from xraylab.errors import UserError

RNG = np.random.default_rng(0)
GREY, COLOUR, ALPHA = (RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((9, 12), (9, 12, 3), (9, 12, 1)))
DEEP, DEEP_COLOUR = (RNG.integers(0, 65536, shape, dtype=np.uint16) for shape in ((9, 12), (9, 12, 3)))


def read(data: bytes, colour: bool = False, bits: int | None = None) -> np.ndarray:
    """What is decoded; the head must tell its shape."""
    image = decode(np.frombuffer(data, np.uint8), "x", colour, bits)
    assert header_shape(io.BytesIO(data), "x") == (1, *image.shape[:2])
    return image


def assert_holds(data: bytes, values: np.ndarray, bits: int | None = None) -> None:
    """The file is read as these values, (H,W) or (H,W,3), and to grey by ITU-R 601."""
    rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    assert np.array_equal(read(data, colour=True, bits=bits), rgb)
    grey = values if values.ndim == 2 else values @ [0.299, 0.587, 0.114]
    assert np.abs(read(data, bits=bits) - grey).max() <= (0 if values.ndim == 2 else 1.01)


def exif(orientation: int, order: str = "<", prefix: bytes = b"", kind: int = 3) -> bytes:
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return prefix + (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1) + entry + b"\0" * 4


def chunk(kind: bytes, data: bytes, checksum: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ checksum)


def png(values: np.ndarray, *before: bytes, kind: int | None = None, depth: int = 8, behind: bytes = b"") -> bytes:
    channels = 1 if values.ndim == 2 else values.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if kind is None else kind
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
    middle = chunk(b"IHDR", head) + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + behind
    return b"\x89PNG\r\n\x1a\n" + middle + chunk(b"IEND", b"")


GAMMA = chunk(b"gAMA", struct.pack(">I", 45455))
METADATA = {
    "gamma": GAMMA,
    "dark gamma": chunk(b"gAMA", struct.pack(">I", 20000)),
    "sRGB": chunk(b"sRGB", b"\0"),
    "primaries": chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)) + GAMMA,
    "transparent": chunk(b"tRNS", b"\0\5"),
    "no profile": chunk(b"iCCP", b"x\0\0abc"),
    "no EXIF": chunk(b"eXIf", b"junkjunkjunk"),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short resolution": chunk(b"pHYs", b"x"),
    "no text": chunk(b"zTXt", b"k\0\0abc"),
    "checksum": chunk(b"tEXt", b"k\0v", checksum=1),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_of_a_png_changes_no_value_and_costs_no_picture(name):
    extra = METADATA[name]
    assert_holds(png(GREY, extra), GREY)
    if name != "transparent":
        assert_holds(png(COLOUR, extra), COLOUR)
        assert_holds(png(np.dstack([COLOUR, ALPHA]), extra), COLOUR)
        assert np.array_equal(read(png(COLOUR, extra)), read(png(COLOUR))), "to the byte"
        assert np.array_equal(read(png(DEEP_COLOUR, extra, depth=16), bits=16), read(png(DEEP_COLOUR, depth=16), bits=16))
        palette = chunk(b"PLTE", COLOUR.reshape(-1, 3).tobytes())
        assert_holds(png(GREY % 108, extra, palette, kind=3), COLOUR.reshape(-1, 3)[GREY % 108])
    assert_holds(png(DEEP, extra, depth=16), DEEP >> 8, bits=16)
    assert_holds(png(np.dstack([GREY, ALPHA]), GAMMA), GREY)


def test_of_an_animated_png_the_picture_is_read_and_of_a_webp_of_frames_nothing():
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 12, 9, 0, 0, 1, 1, 0, 0))
    other = zlib.compress(b"".join(b"\0" + row.tobytes() for row in 255 - GREY))
    moving = png(GREY, chunk(b"acTL", struct.pack(">II", 1, 0)), behind=frame + chunk(b"fdAT", b"\0\0\0\1" + other))
    assert_holds(moving, GREY)
    file = io.BytesIO()
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    frames[0].save(file, "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="a WebP of 2 pages, where one file is one image"):
        decode(np.frombuffer(file.getvalue(), np.uint8), "x")


def webp(values: np.ndarray, exif: bytes | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "WEBP", lossless=True, exact=True, **options)
    data = file.getvalue()
    if exif is None:
        return data
    height, width = values.shape[:2]
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    body = b"WEBPVP8X" + struct.pack("<II", 10, 8) + sides + data[12:] + b"EXIF" + struct.pack("<I", len(exif)) + exif
    return b"RIFF" + struct.pack("<I", len(body) + len(exif) % 2) + body + b"\0" * (len(exif) % 2)


def test_a_webp_without_loss_holds_its_values():
    assert_holds(webp(COLOUR), COLOUR)
    assert_holds(webp(np.dstack([COLOUR, ALPHA])), COLOUR)
    assert_holds(webp(COLOUR, exif=b"junk!"), COLOUR)
    assert_holds(webp(COLOUR, icc_profile=b"hello"), COLOUR)


def jpeg(values: np.ndarray, *segments: bytes, mode: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, "JPEG", quality=95, **options)
    whole = file.getvalue()
    return whole[:2] + b"".join(segments) + whole[2:]


def segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def tiff(
    pixels: bytes | list[bytes],
    bits: int,
    photometric: int,
    *more: tuple[int, int, list[int]],
    samples: int = 1,
    order: str = "<",
) -> bytes:
    """A page of (9,12), of strips or, with a width of tiles (322) among ``more``, of tiles."""
    strips = [pixels] if isinstance(pixels, bytes) else pixels
    places, sizes = (324, 325) if any(tag == 322 for tag, _, _ in more) else (273, 279)
    tags = {
        256: (3, [12]), 257: (3, [9]), 258: (3, [bits] * samples), 259: (3, [1]), 262: (3, [photometric]), 277: (3, [samples]),
        278: (3, [9]), places: (4, [0] * len(strips)), sizes: (4, [len(strip) for strip in strips]),
    }  # fmt: skip
    tags |= {tag: (kind, values) for tag, kind, values in more}

    def raw(tag: int) -> bytes:
        kind, values = tags[tag]
        return struct.pack(f"{order}{len(values)}{'?BBHI'[kind]}", *values)

    start = 8 + 2 + 12 * len(tags) + 4
    behind = start + sum(len(raw(tag)) for tag in tags if len(raw(tag)) > 4)
    tags[places] = (4, [behind + sum(len(strip) for strip in strips[:k]) for k in range(len(strips))])
    entries, long = b"", b""
    for tag in sorted(tags):
        entries += struct.pack(order + "HHI", tag, tags[tag][0], len(tags[tag][1]))
        entries += raw(tag).ljust(4, b"\0") if len(raw(tag)) <= 4 else struct.pack(order + "I", start + len(long))
        long += raw(tag) if len(raw(tag)) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    return head + entries + b"\0" * 4 + long + b"".join(strips)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_pictures_of_every_kind_as_pil_does(orientation):
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(png(GREY, chunk(b"eXIf", exif(orientation)))))))
    rgb = np.repeat(expected[..., None], 3, axis=2)
    for order in "<>":
        for prefix in (b"", b"Exif\0\0"):
            said = exif(orientation, order, prefix)
            assert_holds(png(GREY, chunk(b"eXIf", said)), expected)
            assert_holds(webp(np.repeat(GREY[..., None], 3, axis=2), exif=said), rgb)
        assert_holds(png(GREY, behind=chunk(b"eXIf", exif(orientation, order))), expected)
        for kind in (3, 4):
            said = segment(0xE1, exif(orientation, order, b"Exif\0\0", kind))
            plain = np.asarray(Image.open(io.BytesIO(jpeg(GREY))))
            turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg(GREY, said)))))
            assert_holds(jpeg(GREY, said), turned)
        assert_holds(jpeg(GREY, segment(0xE1, exif(orientation, order))), plain)  # no EXIF without its prefix
        turn = (274, 3, [orientation])
        assert_holds(tiff(GREY.tobytes(), 8, 1, turn, order=order), expected)
        assert_holds(tiff((255 - GREY).tobytes(), 8, 0, turn, order=order), expected)
        assert_holds(tiff((GREY * np.uint16(257)).astype(order + "u2").tobytes(), 16, 1, turn, order=order), expected, bits=16)
        both = np.dstack([GREY, GREY, GREY, ALPHA])
        assert_holds(tiff(both.tobytes(), 8, 2, turn, (338, 3, [2]), samples=4, order=order), rgb)


@pytest.mark.parametrize(
    "said",
    [b"", b"Exif\0\0", b"Exif\0\0junkjunk", exif(6)[:9], exif(0), exif(9), b"II*\0\xff\xff\0\0", exif(1)[:8] + b"\xff\xff"],
)
def test_broken_exif_costs_no_picture(said):
    assert_holds(png(GREY, chunk(b"eXIf", said)), GREY)
    assert_holds(webp(COLOUR, exif=said), COLOUR)
    for data in (said, b"Exif\0\0" + said):
        assert_holds(jpeg(GREY, segment(0xE1, data)), np.asarray(Image.open(io.BytesIO(jpeg(GREY)))))


def test_jpeg_files_of_every_colour_are_read_as_pil_does():
    y, x = np.mgrid[:24, :30]
    smooth = np.dstack([x * 8, y * 10, 255 - x * 4 - y * 3]).astype(np.uint8)
    for data in (
        jpeg(smooth), jpeg(smooth, progressive=True), jpeg(smooth, keep_rgb=True), jpeg(smooth, mode="CMYK"),
        jpeg(smooth, mode="L"),
        jpeg(smooth, segment(0xE2, b"ICC_PROFILE\0\1\5hello"), segment(0xED, b"Photoshop 3.0\0x"), segment(0xFE, b"\xff\xd9")),
    ):  # fmt: skip
        rgb = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.abs(read(data, colour=True).astype(int) - rgb).max() <= 1
        assert np.abs(read(data) - rgb @ [0.299, 0.587, 0.114]).max() <= 1.6
    twelve = bytearray(jpeg(smooth, mode="L"))
    twelve[twelve.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(UserError, match="x: a JPEG of 12 bits"):
        read(bytes(twelve))


@pytest.mark.parametrize("process", [0, 1, 3, 5, 6, 7, 11, 13, 14, 15])  # others: of pixels coded otherwise, or no such
def test_of_a_jpeg_header_and_pixels_agree_whatever_its_compression(process):
    data = bytearray(jpeg(GREY, mode="L"))
    data[data.index(b"\xff\xc0") + 1] = 0xC0 + process
    if process < 3:
        assert read(bytes(data)).shape == header_shape(io.BytesIO(data), "x")[1:] == GREY.shape
        return
    for reading in (lambda: read(bytes(data)), lambda: header_shape(io.BytesIO(data), "x")):
        with pytest.raises(UserError, match=rf"x: a JPEG whose compression \(SOF{process}\) is not read\. Save it as a"):
            reading()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("way", ["plain", "deflate", "predictor", "tiles"])
def test_tiff_files_hold_what_was_written(order, way):
    def write(values, photometric, *more, bits=None, **options):
        strips = values if isinstance(values, list) else [values]
        if way == "tiles":  # one of 16 x 16
            more = (*more, (322, 3, [16]), (323, 3, [16]))
            strips = [np.pad(v, ((0, 7), (0, 4), (0, 0))[: v.ndim]) for v in strips]
        if way == "predictor":
            more = (*more, (317, 3, [2]))
            strips = [np.diff(v, axis=1, prepend=np.zeros_like(v[:, :1])) for v in strips]
        data = [v.astype(v.dtype.newbyteorder(order)).tobytes() for v in strips]
        if way in ("deflate", "predictor"):
            data, more = [zlib.compress(strip) for strip in data], (*more, (259, 3, [8]))
        return tiff(data, bits or 8 * strips[0].dtype.itemsize, photometric, *more, order=order, **options)

    planes, planar, loose = [*COLOUR.transpose(2, 0, 1)], (284, 3, [2]), (338, 3, [2])
    assert_holds(write(GREY, 1), GREY)
    assert_holds(write(GREY, 0), 255 - GREY)
    assert_holds(write(COLOUR, 2, samples=3), COLOUR)
    assert_holds(write(planes, 2, planar, samples=3), COLOUR)
    if way != "tiles":
        assert_holds(write(np.dstack([COLOUR, ALPHA]), 2, loose, samples=4), COLOUR)
        assert_holds(write([*planes, ALPHA[..., 0]], 2, planar, loose, samples=4), COLOUR)
        assert_holds(write(np.dstack([COLOUR, ALPHA]), 2, (338, 3, [1]), samples=4), COLOUR)
        assert_holds(write(np.dstack([GREY, ALPHA]), 1, loose, samples=2), GREY)
        assert_holds(write(np.dstack([GREY, ALPHA]), 0, loose, samples=2), 255 - GREY)
    palette = RNG.integers(0, 65536, (3, 256))
    if way != "predictor":
        assert_holds(write(GREY, 3, (320, 3, palette.ravel().tolist())), palette.T[GREY] >> 8)
    assert_holds(write(DEEP, 1), DEEP >> 8, bits=16)
    assert_holds(write(DEEP, 0), (65535 - DEEP) >> 8, bits=16)
    assert_holds(write(DEEP >> 4, 0), (4095 - (DEEP >> 4)) >> 4, bits=12)
    assert_holds(write(DEEP_COLOUR, 2, samples=3), DEEP_COLOUR >> 8, bits=16)
    assert_holds(write(DEEP_COLOUR >> 4, 2, samples=3), DEEP_COLOUR >> 8, bits=12)
    for refused, options in (
        ([*DEEP_COLOUR.transpose(2, 0, 1)], {"photometric": 2, "more": [planar], "samples": 3}),
        (np.dstack([DEEP, DEEP]), {"photometric": 1, "more": [loose], "samples": 2}),
        (COLOUR, {"photometric": 8, "more": [], "samples": 3}),
        (GREY.view(np.int8), {"photometric": 1, "more": [(339, 3, [2])]}),
        (DEEP.view(np.float16), {"photometric": 1, "more": [(339, 3, [3])]}),
        (GREY.astype(np.float32), {"photometric": 1, "more": [(339, 3, [3])]}),
    ):
        photometric, more = options.pop("photometric"), options.pop("more")
        with pytest.raises(
            UserError, match=rf"x: a TIFF of \d+ bits .*photometric interpretation {photometric}.* is not read\. Save"
        ):
            read(write(refused, photometric, *more, **options), bits=16)


def test_tiff_files_of_few_bits_and_of_packed_ones():
    for bits in (1, 2, 4):
        values = GREY >> (8 - bits)
        unpacked = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        data = np.packbits(unpacked.reshape(9, -1), axis=1).tobytes()
        shown = values * np.uint8(255 // (2**bits - 1))
        assert_holds(tiff(data, bits, 1), shown)
        assert_holds(tiff(data, bits, 0), 255 - shown)
    for bits in (10, 12, 14):
        unpacked = ((DEEP >> (16 - bits))[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        with pytest.raises(UserError, match=f"a TIFF of {bits} bits"):
            read(tiff(np.packbits(unpacked.reshape(9, -1), axis=1).tobytes(), bits, 1), bits=16)


def test_broken_metadata_of_a_tiff_costs_no_picture():
    for broken in ((34675, 1, [1, 2, 3, 4, 5]), (34665, 4, [999999]), (700, 1, [60] * 7), (65000, 3, [1] * 20), (274, 3, [9])):
        assert_holds(tiff(GREY.tobytes(), 8, 1, broken), GREY)


@pytest.mark.parametrize("white", [100, 255, 4095, 65535])
def test_of_a_pgm_the_largest_value_is_white(white):
    values = RNG.integers(0, white + 1, (9, 12))
    data = b"P5 # a comment\n12 9\n%d\n" % white + values.astype(">u2" if white > 255 else "u1").tobytes()
    bits = white.bit_length() if white > 255 else None
    assert_holds(data, (values >> bits - 8 if bits else np.rint(values * 255 / white)).astype(np.uint8), bits=bits)


def test_the_grey_of_an_ordinary_picture_is_what_opencv_makes_of_it():
    for data in (png(GREY), png(COLOUR), jpeg(COLOUR), jpeg(GREY), webp(COLOUR), tiff(COLOUR.tobytes(), 8, 2, samples=3)):
        flag = cv2.IMREAD_COLOR if data == png(COLOUR) else cv2.IMREAD_GRAYSCALE
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        if expected.ndim == 3:  # whose grey libpng would cut off
            expected = cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY)
        assert np.array_equal(read(data), expected)


def test_heads_that_are_damaged_are_refused():
    whole = png(GREY, GAMMA)
    place = whole.index(b"IDAT") - 4
    for data in (
        whole[:place] + b"\x7f\xff\xff\xff" + whole[place + 4 :], whole[:20], jpeg(GREY)[:30], webp(COLOUR)[:18],
        b"II*\0\x08\0\0\0", tiff(GREY.tobytes(), 8, 1)[:40], b"\xff\xd8" + bytes(9000), b"RIFF\0\0\0\0WEBP",
    ):  # fmt: skip
        with pytest.raises(UserError, match="x: not a whole image"):
            decode(np.frombuffer(data, np.uint8), "x")
