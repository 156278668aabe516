"""Stored values of a DICOM file: its header is checked against what is there, before it is decoded and after.

Compressed frames are decoded in a child (:mod:`xraylab.data.images.decoder_process`), for their decoders trust what a header and
a stream say, and end the process where that is wrong; values that are not compressed, and RLE, here. What streams say of
themselves is coded as in ITU-T T.81 B (JPEG), T.87 C (JPEG-LS) and T.800 A (JPEG 2000).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xraylab.data.images.damage import damage, with_stderr
from xraylab.data.images.decoder_process import apart
from xraylab.data.images.headers import BARE, MAX_PIXELS, NO_FRAME
from xraylab.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
GREY = ("MONOCHROME1", "MONOCHROME2")
OVERLAYS = tuple(0x60000102 + (k << 17) for k in range(16))  # tags of the bit in which an overlay lies
SAMPLES = {**dict.fromkeys((*GREY, "PALETTE COLOR"), 1), **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422"), 3)}
OF_JPEG_2000 = dict.fromkeys(("YBR_ICT", "YBR_RCT"), 3)
LEAST = 32  # bytes of a compressed frame
MUCH = 2**28  # bytes, for which it is asked whether they are free
MEMORY = 20  # bytes that a value takes on its way to grey
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")  # of JPEG and JPEG-LS, of JPEG 2000, of it in its boxes


def stored_shape(path: Path, dataset: Dataset) -> tuple[int, int, int]:
    """(N,H,W) as the header says. Raises UserError: none that is read, or more than a file of this length holds."""
    count, rows, columns = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    syntax, length = dataset.file_meta.TransferSyntaxUID, path.stat().st_size
    said = f"its header says {count} frames of {rows}x{columns} pixels"
    if min(count, rows, columns) < 1 or rows * columns > MAX_PIXELS:
        raise UserError(f"{path}: {said}, where a frame has 1 to {MAX_PIXELS:,}.")
    least = LEAST if syntax.is_compressed else rows * columns * int(dataset.get("BitsAllocated") or 8) // 8
    if count > 1 and count * least > length and not syntax.is_deflated:
        raise UserError(f"{path}: cut short: {said}, and it has {length} bytes.")
    return count, rows, columns


def stored_values(path: Path, dataset: Dataset, raw: bool) -> np.ndarray:
    """Stored values, (N,H,W) or (N,H,W,3).

    Args:
        raw: leave colours as they are stored.

    Raises:
        UserError: there is no decoder, or the header does not describe what is there.
        MemoryError: it is too small.
    """
    from pydicom.pixels import pixel_array

    header, syntax = _header(path, dataset), dataset.file_meta.TransferSyntaxUID
    shape = (*stored_shape(path, dataset), *([3] if header["samples_per_pixel"] == 3 else []))
    if (needed := MEMORY * int(np.prod(shape, dtype=np.int64))) > MUCH and needed > _free_memory():
        raise MemoryError
    if not syntax.is_transfer_syntax or syntax.is_compressed:
        _require_decoder(path, syntax, header)
    if syntax.is_encapsulated:
        values = _all_decoded(path, dataset, header, shape, raw)
    else:
        _require_length(path, dataset, shape[0])
        values = pixel_array(dataset, raw=raw, allow_excess_frames=False).reshape(shape)
    return values


def _free_memory() -> int:
    """Bytes that the machine can give; where it does not say, all."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 2**63


def _header(path: Path, dataset: Dataset) -> dict[str, Any]:
    """What decoders need to know of a frame. Raises UserError: the header contradicts itself, or lacks some of it."""
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    jpeg_2000 = "JPEG 2000" in dataset.file_meta.TransferSyntaxUID.name
    wanted = (SAMPLES | OF_JPEG_2000 if jpeg_2000 else SAMPLES).get(photometric)
    if wanted is None:
        raise UserError(f"{path}: its photometric interpretation is none of those that are read.")
    header = {
        "rows": int(dataset.Rows), "columns": int(dataset.Columns), "samples_per_pixel": dataset.get("SamplesPerPixel"),
        "bits_allocated": dataset.get("BitsAllocated"), "photometric_interpretation": photometric, "number_of_frames": 1,
    }  # fmt: skip
    if "PixelData" in dataset:
        header |= {"bits_stored": dataset.get("BitsStored"), "pixel_representation": dataset.get("PixelRepresentation")}
    if wanted == 3:
        header["planar_configuration"] = dataset.get("PlanarConfiguration", 0)
    if lacking := [name for name, value in header.items() if not isinstance(value, int | str)]:
        raise UserError(f"{path}: its header does not say {lacking[0].replace('_', ' ')}.")
    if header["samples_per_pixel"] != wanted:
        raise UserError(
            f"{path}: its header says {header['samples_per_pixel']} samples a pixel, where {photometric} has {wanted}."
        )
    allocated, stored = header["bits_allocated"], header.get("bits_stored", 1)
    if allocated not in (1, 8, 16, 32, 64) or not 1 <= stored <= allocated:
        raise UserError(f"{path}: its header says {stored} bits stored of {allocated}, which no values have.")
    return header


def _require_decoder(path: Path, syntax: Any, header: dict[str, Any]) -> None:
    """Refuse a syntax for which nothing is installed. Raises UserError."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGLSTransferSyntaxes

    name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
    try:
        decoder = get_decoder(_decoded_as(syntax, header))
    except NotImplementedError:
        raise UserError(f"{path}: compressed as {name} ({syntax}), for which there is no decoder: it is not read.") from None
    if not decoder.is_available:
        raise UserError(f"{path}: compressed as {name} ({syntax}), for which a decoder is missing: pip install 'xraylab[dicom]'.")
    if syntax in JPEGLSTransferSyntaxes and header["bits_stored"] in (6, 7) and not find_spec("jpeg_ls"):
        raise UserError(
            f"{path}: compressed as {name} with {header['bits_stored']} bits, which python-gdcm does not decode. "
            "pyjpegls does: pip install pyjpegls."
        )


def _decoded_as(syntax: Any, header: dict[str, Any]) -> Any:
    """The syntax by whose name a decoder is asked for: pydicom withholds JPEG of 12 bits from gdcm, which decodes it."""
    from pydicom.uid import JPEGExtended12Bit, JPEGLossless

    return JPEGLossless if syntax == JPEGExtended12Bit and header["bits_stored"] > 8 else syntax


def _require_length(path: Path, dataset: Dataset, count: int) -> None:
    """Refuse values that are fewer or more than the header says, whose rows would not lie below each other. Raises UserError."""
    from pydicom.pixels.utils import get_expected_length

    data, wanted = next(dataset[name].value for name in PIXELS if name in dataset), get_expected_length(dataset)
    if len(data) < wanted:
        raise UserError(f"{path}: its pixels are cut short: {len(data)} bytes of {wanted}.")
    behind = data[wanted:]
    if len(behind) >= max(wanted // count, 2) or (len(behind) > 1 and any(behind)):  # zeros are padding
        raise UserError(f"{path}: its pixels are {len(data)} bytes, where its header says {wanted}, in {count} frames.")


def _all_decoded(path: Path, dataset: Dataset, header: dict[str, Any], shape: tuple[int, ...], raw: bool) -> np.ndarray:
    """Compressed frames, decoded and checked one by one. Raises UserError: one cannot be, or is not what the header says."""
    from pydicom.uid import RLELossless

    syntax, overlays = dataset.file_meta.TransferSyntaxUID, _overlays(dataset, header)
    values = np.zeros(0)
    for number, frame in enumerate(_frames(path, dataset, shape[0])):
        where = f"{path}: frame {number + 1}" if shape[0] > 1 else f"{path}"
        stream = None if syntax == RLELossless else _stream(where, frame, header)
        try:
            if stream is None:
                decoded = _decoded_runs(where, frame, header, raw)
            else:
                told = header | {"bits_stored": max(stream.bits, header["bits_stored"])}  # else some would cut values off
                arguments = (str(_decoded_as(syntax, header)), frame, told, raw)
                decoded, fault = apart(where, int(np.prod(shape[1:])), decode_frame, *arguments)
                if fault:
                    raise UserError(f"{where}: {fault}.")
        except (UserError, MemoryError):
            raise
        except Exception:  # of as many kinds as there are decoders
            raise UserError(f"{where}: its pixels cannot be decoded ({syntax.name}): they are damaged.") from None
        if decoded.shape != shape[1:] or decoded.dtype.kind not in "iu" or (number and decoded.dtype != values.dtype):
            raise UserError(f"{where}: its pixels are {decoded.dtype} {decoded.shape}, where its header says {shape[1:]}.")
        if not number:
            values = np.empty(shape, decoded.dtype)
        values[number] = decoded if stream is None else _of_bits(where, decoded, stream, header, overlays)
    return values


def _frames(path: Path, dataset: Dataset, count: int) -> Iterator[bytes]:
    """Compressed frames. Raises UserError: there are others than are said."""
    from pydicom.encaps import generate_fragmented_frames

    tables = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = tuple(tables) if all(tables) else None
    try:
        frames = list(generate_fragmented_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets))
    except Exception:  # of tables of offsets that lead nowhere
        raise UserError(f"{path}: its pixels cannot be cut into the {count} frames that its header says.") from None
    starts = [sum(part.startswith(STARTS) for part in parts[1:]) for parts in frames]
    if len(frames) + sum(starts) != count:
        raise UserError(f"{path}: it holds {len(frames) + sum(starts)} frames, where its header says {count}.")
    return (b"".join(parts) for parts in frames)


def _stream(where: str, frame: bytes, header: dict[str, Any]) -> Stream:
    """What a frame says of itself. Raises UserError: that is another one than the header says, or it is cut short."""
    stream = read_stream(frame)
    if stream is None:
        raise UserError(f"{where}: its pixels cannot be decoded: they do not start as a stream of their kind does.")
    said = Stream(header["rows"], header["columns"], header["samples_per_pixel"], header["bits_stored"], True)
    if stream[:3] != said[:3] or stream.bits > header["bits_allocated"]:
        raise UserError(
            f"{where}: its compressed pixels are {stream.words()}, where its header says {said.words(header['bits_allocated'])}."
        )
    if not stream.whole:
        raise UserError(f"{where}: its pixels are cut short: their stream has no end.")
    return stream


def _overlays(dataset: Dataset, header: dict[str, Any]) -> int:
    """The bits above the stored ones in which the header says that overlays lie (DICOM PS3.3 C.9.2), as a number."""
    places = {dataset[tag].value for tag in OVERLAYS if tag in dataset}
    return sum(1 << n for n in places if isinstance(n, int) and header["bits_stored"] <= n < header["bits_allocated"])


def _of_bits(where: str, values: np.ndarray, stream: Stream, header: dict[str, Any], overlays: int) -> np.ndarray:
    """A frame's values as the bits that the header names say, where its stream has others.

    In a deeper stream values below zero may be cut to the stored bits, or not. In one of fewer bits, without a sign, neither
    the header nor the stream says which values are below zero.

    Raises:
        UserError: there are more bits in use, or it is not known which values are below zero.
    """
    bits, signed = header["bits_stored"], header["pixel_representation"]
    if stream.bits > bits:
        for kept in (values, values & np.array(~overlays).astype(values.dtype)):
            low, high, half = int(kept.min()), int(kept.max()), 2 ** (bits - 1)
            if 0 <= low <= high < 2 * half or (signed and -half <= low <= high < half):
                above = 8 * kept.dtype.itemsize - bits
                return kept << above >> above
        low, high, words = int(values.min()), int(values.max()), "with" if signed else "without"
        raise UserError(f"{where}: its values reach from {low} to {high}, where its header says {bits} bits {words} a sign.")
    if signed and stream.bits < bits and not stream.signed and not 0 <= values.min() <= values.max() < 2 ** (stream.bits - 1):
        raise UserError(
            f"{where}: its compressed pixels have {stream.bits} bits, where its header says {bits} with a sign: "
            "which of them are below zero is not known."
        )
    return values


class Stream(NamedTuple):
    """The header of a compressed frame."""

    rows: int
    columns: int
    samples: int
    bits: int
    whole: bool  # whether it goes on to its end
    signed: bool = False  # which JPEG and JPEG-LS cannot say

    def words(self, bits: int | None = None) -> str:
        return f"{self.rows}x{self.columns} with {self.samples} samples of {bits or self.bits} bits"


def read_stream(data: bytes) -> Stream | None:
    """What a compressed frame says of itself; None where it is no such stream, or its header is damaged."""
    try:
        if data.startswith(STARTS[2]):
            data = data[data.index(b"jp2c") + 4 :]
        return _jpeg_2000(data) if data.startswith(STARTS[1]) else _jpeg(data)
    except (struct.error, ValueError, IndexError):
        return None


def _jpeg(data: bytes) -> Stream | None:
    at = 2
    while data.startswith(STARTS[0]) and data[at] == 0xFF:
        code = data[at + 1]
        if code == 0xFF or code in BARE:  # bytes that fill
            at += 1 if code == 0xFF else 2
        elif (0xC0 <= code <= 0xCF and code not in NO_FRAME) or code == 0xF7:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", data, at + 4)
            return Stream(rows, columns, samples, bits, data.rfind(b"\xff\xd9") > at)
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _jpeg_2000(data: bytes) -> Stream | None:
    length, _, *sizes, samples = struct.unpack_from(">HH8IH", data, 4)
    components = [struct.unpack_from("BBB", data, 42 + 3 * k) for k in range(samples)]
    if len({*components}) != 1 or components[0][1:] != (1, 1):  # of several depths, or some of them smaller
        return None
    at = 4 + length
    while data[at : at + 2] != b"\xff\x90":
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    while data[at : at + 2] == b"\xff\x90":  # parts of tiles, each with its length; 0: it goes on to the end
        part = struct.unpack_from(">I", data, at + 6)[0]
        at = at + part if part else len(data)
    whole = at == len(data) or data[at : at + 2] == b"\xff\xd9"
    depth = components[0][0]
    return Stream(sizes[1] - sizes[3], sizes[0] - sizes[2], samples, (depth & 0x7F) + 1, whole, depth > 0x7F)


def _decoded_runs(where: str, frame: bytes, header: dict[str, Any], raw: bool) -> np.ndarray:
    """A frame of RLE (DICOM PS3.5 G), (H,W) or (H,W,3); pydicom cuts one that is longer than it should be. Raises UserError."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRLittleEndian

    count, *offsets = struct.unpack_from("<16I", frame)
    size, pixels = header["bits_allocated"] // 8, header["rows"] * header["columns"]
    if count != size * header["samples_per_pixel"]:
        raise UserError(
            f"{where}: its compressed pixels have {count} bytes, where its header says {header['bits_allocated']} bits."
        )
    values = np.empty((header["samples_per_pixel"], pixels, size), np.uint8)  # a plane of each sample, the low byte first
    for k, (start, end) in enumerate(zip(offsets[:count], (*offsets[1:count], len(frame)), strict=True)):
        plane = _unrolled(frame[start:end])
        if not pixels <= len(plane) <= pixels + 1:  # an odd one may be padded
            raise UserError(f"{where}: its compressed pixels are {len(plane)}, where its header says {pixels}.")
        values[k // size, :, size - 1 - k % size] = np.frombuffer(plane, np.uint8, pixels)
    planes = header | {"pixel_keyword": "PixelData"} | ({"planar_configuration": 1} if header["samples_per_pixel"] == 3 else {})
    planes["photometric_interpretation"] = planes["photometric_interpretation"].removesuffix("_422")  # of values that are halved
    return get_decoder(ExplicitVRLittleEndian).as_array(values.tobytes(), raw=raw, **planes)[0]


def _unrolled(runs: bytes) -> bytearray:
    plane, at = bytearray(), 0
    while at < len(runs):
        code = runs[at] + 1
        if code > 129:
            plane += runs[at + 1 : at + 2] * (258 - code)
            at += 2
        else:  # 129 stands for nothing
            plane += runs[at + 1 : at + 1 + code] if code < 129 else b""
            at += 1 + (code if code < 129 else 0)
    return plane


def decode_frame(syntax: str, frame: bytes, header: dict[str, Any], raw: bool) -> tuple[np.ndarray, str | None]:
    """A compressed frame, (H,W) or (H,W,3), decoded by whatever is installed, and why it is damaged, where its decoder says so.

    It is called in a child where that may end the process. Of JPEG its decoder says what it had to make up; JPEG 2000, JPEG-LS
    and RLE have nothing by which bytes that were changed could be told, where they can still be decoded.

    Args:
        header: as pydicom's decoders take it.
        raw: leave colours as they are stored.
    """
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    decoder, encoded = get_decoder(syntax), encapsulate([frame], has_bot=False)
    decoded, words = with_stderr(lambda: decoder.as_array(encoded, raw=raw, index=0, **header)[0])
    return decoded, damage(frame, words)
