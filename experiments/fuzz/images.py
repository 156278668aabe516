"""Damage files of every kind that is read, by script, and read them: ``python experiments/fuzz/images.py [--files 1000]``.

  python experiments/fuzz/images.py                       # 1,000 files of each of 20 kinds, about ten CPU minutes
  python experiments/fuzz/images.py --files 20 --seed 1   # a few hundred

Of each kind a few sound files are written, and each is damaged anew for every file: bytes and words are changed anywhere or near
the head, bytes are cut out, the end is cut off, and a DICOM header says other sides, frames, samples, bits or a photometric
interpretation. Each file is read as predict and training read it (:class:`xraylab.inference.inputs.AnyFileSource`), in a process
that reports file by file, and must be read or named, by a ``UserError`` that starts with its path. Where damage leaves the pixels
defined, what is read is compared: a file whose end is cut off is named, or read as the sound one; a DICOM header that says
another shape is named, or of uncompressed values read as numpy does; a grey picture that PIL decodes is as PIL decodes it.

It prints a line a kind: files, those read, those named, among these those that ended a decoder in its child, then those that were
read wrongly (``wrong``), raised something else (``traceback``), ended the process (``died``) or took longer than two minutes
(``hung``), and the slowest in seconds. Exits with 1 where one of the last four is not 0.
"""

from __future__ import annotations

import argparse
import base64
import collections
import io
import itertools
import os
import random
import select
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

HUNG = 120.0  # seconds
SHOWN = 5  # faults of a kind
BAD = ("wrong", "traceback", "died", "hung")
#: High-throughput JPEG 2000, for which no encoder is installed: uint8 (16,16), 5 * row + 10 * column, by OpenJPH 0.26.3
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABBwEB/1AACAACAAAAAv9SAAwAAgABAAUEBEAB/1wAEyBIUFBQUFBQUFBQUFBQSEhI"
    "/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAGgAAf+TwCX1AId0AADAEsASgLYBB3QA2gCHdADAE0ATAJr2AIJ0ACz7AANUAMAVEAVAjDH2qnAC"
    "dQCUiP7Byey1AMArIBWAIiIiIufAp6enwngACAAA/v2Se/ZJ7LgA/9k="
)
#: JPEG of 12 bits, for which none is installed either: uint16 (16,16), 50 * row + 100 * column, within 2, by libjpeg-turbo 3
JPEG_12 = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYUGBIUFRT/"
    "wQALDAAQABABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAADAv/xAAcEAAABgMAAAAAAAAAAAAAAAAACQomN0NTYXH/2gAIAQEAAD8AARIcCN4/b+CnmghVQ4Eb"
    "x+38FPNCeohwI3j9v4KeaCFZDgRvH7fwU80P/9k="
)
PICTURES = {
    "png": ("PNG", ({},)),
    "jpg": ("JPEG", ({}, {"progressive": True})),
    "tif": ("TIFF", tuple({"compression": c} for c in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))),
    "webp": ("WEBP", ({}, {"lossless": True})),
    "bmp": ("BMP", ({},)),
    "pgm": ("PPM", ({},)),
}
GDCM = {
    "jpeg_lossless_dcm": ("JPEGLosslessProcess14_1", "1.2.840.10008.1.2.4.70"),
    "jpeg_ls_dcm": ("JPEGLSLossless", "1.2.840.10008.1.2.4.80"),
    "jpeg_ls_near_dcm": ("JPEGLSNearLossless", "1.2.840.10008.1.2.4.81"),
    "jpeg_2000_dcm": ("JPEG2000Lossless", "1.2.840.10008.1.2.4.90"),
    "jpeg_2000_lossy_dcm": ("JPEG2000", "1.2.840.10008.1.2.4.91"),
}
NATIVE = {
    "implicit_dcm": "1.2.840.10008.1.2", "explicit_dcm": "1.2.840.10008.1.2.1", "deflated_dcm": "1.2.840.10008.1.2.1.99",
    "big_endian_dcm": "1.2.840.10008.1.2.2",
}  # fmt: skip
KINDS = (*PICTURES, "npy", *NATIVE, "rle_dcm", "jpeg_dcm", "jpeg_12_dcm", *GDCM, "htj2k_dcm")
SHAPE = ("Rows", "Columns", "NumberOfFrames")
HEADER = {
    "Rows": (0, 1, 23, 47, 49, 96, 4096, 60000, 65535), "Columns": (0, 1, 31, 63, 65, 128, 4096, 60000, 65535),
    "NumberOfFrames": (0, 1, 2, 3, 1000, 2**31 - 1, -1), "SamplesPerPixel": (0, 1, 2, 3, 4, 65535),
    "BitsAllocated": (0, 1, 7, 8, 12, 16, 32, 64, 65535), "BitsStored": (0, 1, 6, 7, 8, 10, 12, 16, 65535),
    "HighBit": (0, 6, 7, 11, 15, 65535), "PixelRepresentation": (0, 1, 2), "PlanarConfiguration": (0, 1, 2),
    "PhotometricInterpretation": ("MONOCHROME1", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "PALETTE COLOR", "CMYK", "X"),
}  # fmt: skip


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (48,64) and (48,64,3), smooth with some noise."""
    y, x = np.mgrid[:48, :64]
    noise = np.random.default_rng(0).normal(0, 12, (48, 64))
    grey = (128 + 80 * np.sin(x / 7) * np.cos(y / 5) + noise).clip(0, 255).astype(np.uint8)
    return grey, np.dstack([grey, 255 - grey, grey // 2])


def sound(kind: str) -> list[bytes]:
    """Sound files of a kind."""
    grey, rgb = pictures()
    deep = grey.astype(np.uint16) << 4
    if kind == "npy":
        return [_npy(grey), _npy(np.stack([grey, grey]))]
    if kind in PICTURES:
        form, ways = PICTURES[kind]
        arrays = (grey, rgb, deep) if kind in ("png", "tif") else (grey, rgb)
        return [_picture(array, form, way) for way in ways for array in arrays]
    if kind in NATIVE:
        arrays = [grey, rgb, deep, np.stack([grey, 255 - grey]), deep.astype(np.int16) - 1000]
        return [_written(dataset(array, NATIVE[kind])) for array in arrays]
    if kind in ("htj2k_dcm", "jpeg_12_dcm"):
        ramp = np.add.outer(np.arange(16) * 5, np.arange(16) * 10)
        if kind == "htj2k_dcm":
            return [_written(encapsulated(ramp.astype(np.uint8), "1.2.840.10008.1.2.4.201", [HTJ2K]))]
        return [_written(encapsulated((ramp * 10).astype(np.uint16), "1.2.840.10008.1.2.4.51", [JPEG_12]))]
    if kind == "jpeg_dcm":
        coded = [cv2.imencode(".jpg", frame)[1].tobytes() for frame in (grey, 255 - grey)]
        one, two = encapsulated(grey, "1.2.840.10008.1.2.4.50", coded[:1]), encapsulated(np.stack([grey] * 2), "", coded)
        two.file_meta.TransferSyntaxUID = one.file_meta.TransferSyntaxUID
        return [_written(one), _written(two)]
    arrays = [grey, deep, np.stack([grey, 255 - grey])]
    if kind == "rle_dcm":
        made = [dataset(array, NATIVE["explicit_dcm"]) for array in (*arrays, rgb)]
        for one in made:
            one.compress("1.2.840.10008.1.2.5")
        return [_written(one) for one in made]
    return [_by_gdcm(array, *GDCM[kind]) for array in arrays]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _picture(array: np.ndarray, form: str, way: dict) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **way)
    return file.getvalue()


def dataset(array: np.ndarray, syntax: str):  # noqa: ANN201  pydicom is optional
    """A DICOM file of (H,W), (H,W,3) or (N,H,W), uncompressed."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    made, colour = Dataset(), array.ndim == 3 and array.shape[-1] == 3
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.PatientName, made.PatientID = "NOBODY", "0"
    made.Rows, made.Columns = array.shape[:2] if colour or array.ndim == 2 else array.shape[1:]
    if array.ndim == 3 and not colour:
        made.NumberOfFrames = len(array)
    made.SamplesPerPixel, made.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * array.itemsize
    if array.dtype == np.uint16:
        made.BitsStored = 12
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(array.dtype.kind == "i")
    made.PixelData = array.astype(array.dtype.newbyteorder(">" if syntax == NATIVE["big_endian_dcm"] else "<")).tobytes()
    made["PixelData"].VR = "OW" if array.itemsize > 1 else "OB"
    return made


def encapsulated(array: np.ndarray, syntax: str, frames: list[bytes]):  # noqa: ANN201
    """The same, of frames that are compressed already."""
    from pydicom.encaps import encapsulate

    made = dataset(array, syntax)
    made.PixelData = encapsulate(frames)
    made["PixelData"].is_undefined_length = True
    return made


def _written(made) -> bytes:  # noqa: ANN001
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _by_gdcm(array: np.ndarray, name: str, syntax: str) -> bytes:
    """A DICOM file compressed by python-gdcm."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder, "plain.dcm"), Path(folder, "packed.dcm")
        plain.write_bytes(_written(dataset(array, NATIVE["explicit_dcm"])))
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change(), name
        writer.SetFile(reader.GetFile())
        writer.SetFileName(str(packed))
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return packed.read_bytes()


class Damaged(NamedTuple):
    """A file, and what is known of it."""

    data: bytes
    of: bytes  # the sound file
    how: str  # "cut", "bytes" or a keyword of the header


def damaged(kind: str, sounds: list[bytes], seed: int, number: int) -> Damaged:
    """The damaged file of a number."""
    draw = random.Random(f"{kind} {seed} {number}")
    of = draw.choice(sounds)
    how = draw.choice(("cut", "header", "header", "head", "any", "any", "flip", "words"))
    if how == "cut":
        return Damaged(of[: draw.randrange(len(of))], of, "cut")
    if how == "header" and kind.endswith("dcm"):
        return _headed(of, draw)
    data = bytearray(of)
    end = len(of) if how in ("any", "flip") else min(len(of), 1000 if kind.endswith("dcm") else 128)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(end)
        if how == "flip":
            data[at] ^= 1 << draw.randrange(8)
        elif how == "words":
            size = draw.choice((2, 4, 8))
            words = (
                b"\xff" * size,
                b"\0" * size,
                b"\xff\xff\xff\x7f"[-size:],
                b"\x7f" + b"\xff" * (size - 1),
                draw.randbytes(size),
            )
            data[at : at + size] = draw.choice(words)
        else:
            data[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    if draw.random() < 0.1:
        at = draw.randrange(len(data))
        del data[at : at + draw.randrange(1, 64)]
    return Damaged(bytes(data), of, "bytes")


def _headed(of: bytes, draw: random.Random) -> Damaged:
    from pydicom import dcmread

    made, keyword = dcmread(io.BytesIO(of)), draw.choice(list(HEADER))
    if draw.random() < 0.1:
        made.pop(keyword, None)
    else:
        setattr(made, keyword, draw.choice(HEADER[keyword]))
    try:
        return Damaged(_written(made), of, keyword)
    except Exception:  # pydicom writes no such value
        return Damaged(of[:-1], of, "cut")


def wanted(kind: str, file: Damaged) -> list[np.ndarray] | None:
    """Pictures that a grey file may be read as, (N,H,W) each; None: whatever is read."""
    if file.how == "bytes":
        return _by_pil(file.data) if kind in PICTURES else None
    if not kind.endswith("dcm"):
        return _by_pil(file.of) if kind in PICTURES else None
    if file.how == "cut" or (file.how in SHAPE and kind not in NATIVE):
        return [_read(file.of)]
    return [_read(file.of), *_by_numpy(file.data)] if file.how in SHAPE else None


def _by_pil(data: bytes) -> list[np.ndarray] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            picture = Image.open(io.BytesIO(data))
            if picture.mode != "L" or picture.getexif().get(0x0112, 1) != 1 or picture.format == "TIFF":
                return None
            return [np.asarray(picture)[None]]
    except Exception:
        return None


def _by_numpy(data: bytes) -> list[np.ndarray]:
    """Uncompressed grey values, stretched by the product's rules: 8 bits stay, others go from their least to their largest."""
    from pydicom import dcmread

    made = dcmread(io.BytesIO(data))
    shape = int(made.get("NumberOfFrames") or 1), made.Rows, made.Columns
    if made.SamplesPerPixel != 1 or min(shape) < 1 or np.prod(shape) * made.BitsAllocated // 8 > len(made.PixelData):
        return []
    order = ">" if made.file_meta.TransferSyntaxUID == NATIVE["big_endian_dcm"] else "<"
    code = f"{order}{'ui'[made.PixelRepresentation]}{made.BitsAllocated // 8}"
    values = np.frombuffer(made.PixelData, code, int(np.prod(shape))).reshape(shape)
    if made.BitsAllocated == 8:
        return [values.astype(np.uint8)]
    values = values.astype(float) - values.min()
    return [np.rint(values / max(values.max(), 1e-9) * 255).astype(np.uint8)]


def _read(data: bytes) -> np.ndarray:
    from xraylab.data.images.dicom import read_dicom

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound.dcm")
        path.write_bytes(data)
        return read_dicom(path)


def outcome(kind: str, file: Damaged, path: Path, colour: bool) -> str:
    """What became of reading a file: ``read``, ``named``, ``ended``, ``wrong`` or ``traceback``."""
    from xraylab.data.images.any_file import AnyFileSource
    from xraylab.errors import UserError

    path.write_bytes(file.data)
    source = AnyFileSource(colour, bits=16)
    for step in ("shape", "read"):  # the header alone, as a cache does
        try:
            found = source.shape(str(path)) if step == "shape" else source.read([str(path)])
        except UserError as error:
            if not str(error).startswith(str(path)) or "\n" in str(error):
                return f"traceback, for it is not named: {error}"
            if step == "read":
                return "ended" if "its decoder" in str(error) else "named"
        except Exception:
            return "traceback " + traceback.format_exc(limit=-3).replace("\n", "; ")
    images = [found] if isinstance(found, np.ndarray) else [image[None] for image in found]
    if any(i.dtype != np.uint8 or i.ndim != 3 + colour or not i.size for i in images):
        return f"wrong: {[(i.dtype, i.shape) for i in images]}"
    allowed = None if colour else wanted(kind, file)
    if allowed is None:
        return "read"
    got = np.concatenate(images) if len({i.shape[1:] for i in images}) == 1 else images[0]
    near = 3 if kind in ("jpg", "webp") else 1
    if any(got.shape == a.shape and np.abs(got.astype(int) - a).max() <= near for a in allowed):
        return "read"
    return f"wrong: {file.how}, {got.shape} for {[a.shape for a in allowed]}"


def work(kinds: list[str], seed: int, files: int, first: int) -> None:
    """Read the files from this one on, with a line for each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, len(kinds) * files):
            kind = kinds[number // files]
            if number == first or not number % files:
                sounds, path = sound(kind), Path(folder, f"file.{kind.rpartition('_')[2]}")
                for data in sounds:
                    if (said := outcome(kind, Damaged(data, data, "bytes"), path, False)) != "read":
                        raise SystemExit(f"a sound file of {kind} is {said}")
            start = time.monotonic()
            said = outcome(kind, damaged(kind, sounds, seed, number % files), path, number % 4 == 3)
            answers.write(f"{time.monotonic() - start:.2f}\t{said}\n")


def run(kinds: list[str], seed: int, files: int) -> Iterator[tuple[float, str]]:
    """Seconds and outcome of every file of every kind, by a process that is started again where it dies or hangs."""
    number = 0
    while number < len(kinds) * files:
        command = [sys.executable, __file__, "--seed", str(seed), "--files", str(files), "--work", str(number), "--kinds", *kinds]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        while number < len(kinds) * files:
            ready = select.select([process.stdout], [], [], HUNG)[0]
            line = process.stdout.readline().decode() if ready else ""
            number += 1
            if not line:
                if not ready:
                    process.kill()
                code = process.wait()
                if code == 1:
                    raise SystemExit(f"the process that reads cannot: {shlex.join(command)}")
                yield 0.0, f"died with {code}" if ready else "hung"
                break
            seconds, said = line.rstrip("\n").split("\t", 1)
            yield float(seconds), said
        process.stdout.close()
        process.wait()


def main() -> int:
    """Print a line a kind; 1 where a file was not read rightly or named, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work is not None:
        work(list(asked.kinds), asked.seed, asked.files, asked.work)
        return 0
    columns = ("files", "read", "named", "ended", *BAD)
    print(f"{'kind':20}" + "".join(f"{c:>10}" for c in (*columns, "slowest")), flush=True)
    results, total = run(list(asked.kinds), asked.seed, asked.files), collections.Counter[str]()
    for kind in asked.kinds:
        counts, slowest = collections.Counter[str](files=asked.files), 0.0
        for number, (seconds, said) in enumerate(itertools.islice(results, asked.files)):
            outcome, slowest = said.split()[0].strip(":,"), max(slowest, seconds)
            counts.update([outcome] + ["named"] * (outcome == "ended"))
            if outcome in BAD and sum(counts[c] for c in BAD) <= SHOWN:
                print(f"{kind} {number}: {said}", flush=True)
        total.update(counts)
        print(f"{kind:20}" + "".join(f"{counts[c]:10}" for c in columns) + f"{slowest:10.2f}", flush=True)
    print(f"{'all':20}" + "".join(f"{total[c]:10}" for c in columns))
    return int(any(total[c] for c in BAD))


if __name__ == "__main__":
    sys.exit(main())
