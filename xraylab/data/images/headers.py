"""Headers of encoded images, read without a decoder: sides, orientation, and what OpenCV reads wrongly.

EXIF is read here, since OpenCV and PIL differ over it (a prefix in PNG and WebP, a chunk behind the pixels, orientations in
XMP), so that a header tells the shape that decoding gives. Broken metadata says nothing, and does not cost the picture.
Sources: PNG (third edition), JPEG (ITU-T T.81), WebP (RFC 9649), TIFF 6.0, EXIF 2.32.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np

MAX_PIXELS = 2**28  # of an image or a frame: 16,384 x 16,384
ORIENTATION = 0x0112
#: of TIFF: sides, bits, compression, photometric, orientation, samples, planar, tile width, extra samples, sample format
TAGS = {256, 257, 258, 259, 262, ORIENTATION, 277, 284, 322, 338, 339}
COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)  # those that OpenCV has
BARE, NO_FRAME = (0x01, *range(0xD0, 0xD9)), (0xC4, 0xC8, 0xCC)  # markers without a segment; of C0-CF those of no frame
PROCESSES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # of JPEG that it has: by DCT, neither lossless nor in a hierarchy
NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of TIFF's types
WHITE = re.compile(rb"P[2356]" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3 + rb"\s")  # of a PGM or PPM: width, height, the largest value


class Head(NamedTuple):
    """The header of an encoded image."""

    kind: str  # PNG, JPEG, WebP or TIFF
    height: int  # as it is stored
    width: int
    orientation: int = 1  # EXIF's, 1 to 8
    pages: int = 1  # of a TIFF, or frames of a WebP
    inverted: bool = False  # zero is white, which OpenCV leaves so
    by_pil: bool = False  # PIL gives the values that the file holds, and OpenCV does not
    fault: str = ""  # why neither does

    @property
    def shape(self) -> tuple[int, int]:
        """(H,W) once it is turned."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_head(file: BinaryIO) -> Head | None:
    """The head of a PNG, JPEG, WebP or TIFF; None: it is none of them.

    Raises:
        ValueError: it is not whole.
    """
    mark = _at(file, 0, 12)
    kinds = {b"\x89PNG": _png, b"\xff\xd8": _jpeg, b"II*\0": _tiff, b"MM\0*": _tiff, b"II+\0": _tiff, b"MM\0+": _tiff}
    kind = _webp if mark[:4] + mark[8:] == b"RIFFWEBP" else kinds.get(mark[:4], kinds.get(mark[:2]))
    if kind is None:
        return None
    try:
        head = kind(file)
    except (struct.error, IndexError, KeyError, StopIteration) as error:
        raise ValueError("not a whole head") from error
    if not head.height * head.width:
        raise ValueError("a side of no pixels")
    return head


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image (H,W[,3]) turned as an EXIF orientation, 1 to 8, says."""
    image = image.swapaxes(0, 1) if orientation >= 5 else image
    rows, columns = ((1, 1), (1, -1), (-1, -1), (-1, 1))[(orientation - 1) % 4]
    return np.ascontiguousarray(image[::rows, ::columns])


def plain_png(data: bytes) -> bytes:
    """A PNG without metadata. By gAMA, sRGB, cHRM and iCCP libpng changes the grey that it makes of colours, where values are
    wanted as they are stored; and an animation would be shown, not the picture.

    Raises:
        ValueError: it is cut short.
    """
    plain, behind = [], 0
    for kind, start, size in _chunks(io.BytesIO(data)):
        end = start + 12 + size
        if end > len(data):  # for which OpenCV 5.0 would take memory
            raise ValueError("a chunk is cut short")
        if kind[0] & 0x20 and kind != b"tRNS":
            plain.append(data[behind:start])
            behind = end
    return b"".join((*plain, data[behind:])) if plain else data


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _orientation(exif: bytes) -> int:
    """Of a block of EXIF, with or without its prefix; 1 where it says none, or is broken."""
    file = io.BytesIO(exif.removeprefix(b"Exif\0\0"))
    try:
        found = next(_directories(file, {ORIENTATION})).get(ORIENTATION, (1,))
    except (struct.error, StopIteration, KeyError):
        return 1
    return found[0] if len(found) == 1 and 1 <= found[0] <= 8 else 1


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Of a PNG: kind, first byte, and bytes of its data."""
    start = 8
    while len(head := _at(file, start, 8)) == 8 and head[4:] != b"IEND":
        size = int.from_bytes(head[:4], "big")
        yield head[4:], start, size
        start += 12 + size


def _png(file: BinaryIO) -> Head:
    width, height = struct.unpack(">II", _at(file, 16, 8))
    exif = next((_at(file, start + 8, size) for kind, start, size in _chunks(file) if kind == b"eXIf"), b"")
    return Head("PNG", height, width, _orientation(exif))


def _jpeg(file: BinaryIO) -> Head:
    start, fillers, exif, sides, process = 2, 0, b"", (0, 0, 0), 0xC0
    while fillers < 2**12:
        mark, kind, size = struct.unpack(">BBH", _at(file, start, 4))
        if mark != 0xFF or kind in (0, 0xFF):  # which decoders step over
            start, fillers = start + 1, fillers + 1
        elif kind in BARE:
            start += 2
        elif kind == 0xDA:  # the pixels
            break
        else:
            if 0xC0 <= kind <= 0xCF and kind not in NO_FRAME:
                sides, process = struct.unpack(">BHH", _at(file, start + 4, 5)), kind
            elif kind == 0xE1 and not exif and _at(file, start + 4, 6) == b"Exif\0\0":
                exif = _at(file, start + 4, size - 2)
            start += 2 + size
    bits, height, width = sides
    fault = f"a JPEG of {bits} bits, where 8 are read. Save it as a PNG." if bits > 8 else ""
    if process not in PROCESSES:
        fault = f"a JPEG whose compression (SOF{process - 0xC0}) is not read. Save it as a baseline JPEG or as a PNG."
    return Head("JPEG", height, width, _orientation(exif), fault=fault)


def _webp(file: BinaryIO) -> Head:
    start, frames, flags, sides, exif = 12, 0, 0, None, b""
    while len(head := _at(file, start, 18)) >= 8:
        kind, size, body = head[:4], int.from_bytes(head[4:8], "little"), head[8:]
        if kind == b"VP8X":
            flags = body[0]
            sides = tuple(1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
        elif kind == b"VP8 " and sides is None:
            sides = tuple(n & 0x3FFF for n in struct.unpack("<HH", body[6:10]))
        elif kind == b"VP8L" and sides is None:
            packed = int.from_bytes(body[1:5], "little")
            sides = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF" and flags & 8:
            exif = exif or _at(file, start + 8, size)
        start += 8 + size + size % 2
    if sides is None:
        raise ValueError("no picture in it")
    return Head("WebP", sides[1], sides[0], _orientation(exif), max(frames, 1))


def _directories(file: BinaryIO, wanted: set[int]) -> Iterator[dict[int, tuple[int, ...]]]:
    """Of each page of a TIFF, or of EXIF: the whole numbers of the wanted tags, the first 16 of each."""
    order = {b"II": "<", b"MM": ">"}[_at(file, 0, 2)]
    big = struct.unpack(order + "H", _at(file, 2, 2))[0] == 43
    word, pointer, count = (8, order + "Q", order + "Q") if big else (4, order + "I", order + "H")
    wide, seen = 4 + 2 * word, set[int]()
    (start,) = struct.unpack(pointer, _at(file, word, word))
    while start and start not in seen:
        seen.add(start)
        (entries,) = struct.unpack(count, _at(file, start, struct.calcsize(count)))
        start += struct.calcsize(count)
        block, tags = _at(file, start, wide * min(entries, 2**16)), {}
        for at in range(0, len(block) - wide + 1, wide):
            tag, kind, several = struct.unpack_from(order + "HH" + pointer[1], block, at)
            if tag in wanted and kind in NUMBERS and several:
                code = f"{order}{min(several, 16)}{NUMBERS[kind]}"
                held = block[at + wide - word : at + wide]
                if struct.calcsize(f"{order}{NUMBERS[kind]}") * several > word:
                    held = _at(file, struct.unpack(pointer, held)[0], struct.calcsize(code))
                tags[tag] = struct.unpack_from(code, held)
        yield tags
        (start,) = struct.unpack(pointer, _at(file, start + wide * entries, word))


def _tiff(file: BinaryIO) -> Head:
    pages = _directories(file, TAGS)
    tags, count = next(pages), 1
    with suppress(struct.error):  # of a page behind the first, which is whole
        for count, _ in enumerate(islice(pages, 999), start=2):  # noqa: B007
            pass
    (width,), (height,), (turn,) = tags[256], tags[257], tags.get(ORIENTATION, (1,))
    bits, kinds, extra = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(338, (0,))
    (samples,), (compression,), (planar,) = (tags.get(tag, (1,)) for tag in (277, 259, 284))
    (photometric,) = tags.get(262, (1 if samples < 3 else 2,))
    depth, grey, plain = bits[0], photometric in (0, 1) and samples == 1, {*bits} == {bits[0]} and {*kinds} == {1}
    by_pil = fault = False
    if plain and depth == 8:
        loose = photometric == 2 and (samples > 4 or (samples == 4 and extra[0] == 2))  # OpenCV multiplies by this alpha
        tiles = compression == 1 and 322 in tags  # nor does it read such
        by_pil = loose or tiles
        fault = photometric not in (0, 1, 2, 3, 5, 6) or (tiles and samples not in (1, 3))
    elif plain and depth == 16:
        fault = not grey and (photometric != 2 or planar != 1 or samples > 4)
    else:
        by_pil = grey and depth in (2, 4)
        fault = not plain or depth > 4 or (not grey and photometric != 3)
    fault = fault or compression not in COMPRESSIONS
    said = (
        f"a TIFF of {_words(bits)} bits (sample format {_words(kinds)}, {samples} samples, compression {compression}, "
        f"photometric interpretation {photometric}, planar configuration {planar}), which is not read. "
        "Save it with 8 or 16 unsigned bits as grey or RGB, compressed by LZW or not at all."
    )
    turn = turn if 1 <= turn <= 8 else 1
    return Head("TIFF", height, width, turn, count, photometric == 0 and depth == 16, by_pil, said if fault else "")


def _words(numbers: tuple[int, ...]) -> str:
    return " and ".join(str(n) for n in dict.fromkeys(numbers))
