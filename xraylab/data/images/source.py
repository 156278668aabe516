"""Image sources: files of pictures, arrays of slices, arrays in memory.

A study's images are references, text that its source understands. What one reference holds depends on the source: one
view, or all slices of a volume.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

import cv2
import numpy as np
from PIL import Image

from xraylab.data.images.damage import damage, with_stderr
from xraylab.data.images.decoder_process import apart
from xraylab.data.images.dicom import SUFFIXES as DICOM
from xraylab.data.images.dicom import is_dicom
from xraylab.data.images.headers import MAX_PIXELS, WHITE, Head, plain_png, read_head, turned
from xraylab.data.images.nifti import is_nifti
from xraylab.errors import UserError, listed, refusing

log = logging.getLogger(__name__)
cv2.setNumThreads(0)  # its threads and forked workers do not mix

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".webp")
ARRAY = ".npy"
MISSING = "missing image files"  # a kind of problem
NO_PICTURE = (".csv", ".txt", ".tsv", ".lst", ".md", ".json", ".xml", ".db", ".ini")  # not worth a look for DICOM

THIN = 256  # pixels for each byte of a file: of more, next to nothing is there
SOME = 2**24  # pixels that an image may have whose head is not read
PNG_COLOURS = (2, 3, 6)  # types of colour of a PNG that are not grey
#: what decoders raise: of an unknown format an OSError, of more pixels than are allowed an error of their own
UNREADABLE = (OSError, ValueError, SyntaxError, cv2.error, Image.DecompressionBombError)
#: uint8: slices of a volume (N,H,W[,3]), or a list of views (H,W[,3]), whose sizes may differ
Images: TypeAlias = "np.ndarray | list[np.ndarray]"


class ImageSource(ABC):
    """Base class of the sources, which read the images that references stand for.

    Attributes:
        root: what references are paths relative to; None: they lie in memory.
        colour: whether three channels (RGB) are read, not one.
        bits: how many bits the values of 16-bit files use; None: not known, or of no matter.
    """

    root: Path | None = None
    colour = False
    bits: int | None = None

    @abstractmethod
    def read(self, images: Sequence[str]) -> Images:
        """The images of a study.

        Raises:
            UserError: one cannot be read; the message names it.
        """

    @abstractmethod
    def shape(self, image: str) -> tuple[int, int, int]:
        """(N,H,W) of one reference, from its header alone.

        Raises:
            UserError: the header cannot be read.
        """

    def path(self, image: str) -> Path | None:
        """The file behind a reference; None: it lies in memory."""
        return None if self.root is None else self.root / image

    def files(self, image: str) -> list[Path]:
        """The files behind a reference, in the order in which it needs them; none: it lies in memory."""
        path = self.path(image)
        return [] if path is None else [path]

    def places(self, image: str, count: int) -> list[tuple[str, int | None]]:
        """Of each of a reference's images the file, as references name it, and the number from 1 on in one of several."""
        return [(image, k + 1 if count > 1 else None) for k in range(count)]

    @property
    def recipe(self) -> list[object]:
        """What else decides the pixels that are read, of plain types; nothing, where that is said above."""
        return []

    def costly(self, resized: bool) -> bool:
        """Whether reading decodes or computes, so that a packed cache would be faster."""
        return False


class FileSource(ImageSource):
    """Source of one image a file: PNG, JPEG and whatever else OpenCV decodes, turned as its EXIF says.

    Args:
        root: references are paths relative to it.
        colour: read three channels (RGB), not one.
        bits: how many bits the values of 16-bit files use, 8 to 16; None: such files are refused, for keeping their upper 8
            bits would leave next to nothing of 12-bit values.
    """

    root: Path

    def __init__(self, root: Path, colour: bool = False, bits: int | None = None) -> None:
        self.root, self.colour, self.bits = root, colour, bits

    def costly(self, resized: bool) -> bool:
        return True

    def read(self, images: Sequence[str]) -> Images:
        """A list of uint8 (H,W), or (H,W,3) in colour."""
        return [self._decode(image) for image in images]

    def _decode(self, image: str) -> np.ndarray:
        path = self.root / image
        with refusing(f"{path}: cannot be read", OSError):
            data = np.fromfile(path, np.uint8)
        return decode(data, path, self.colour, self.bits)

    def shape(self, image: str) -> tuple[int, int, int]:
        return header_shape(self.root / image, self.root / image)


def decode(data: np.ndarray, where: object, colour: bool = False, bits: int | None = None) -> np.ndarray:
    """An encoded image, PNG, JPEG or whatever else OpenCV decodes, turned as its EXIF says.

    Values are those that the file holds: no gamma, profile or transparency is applied. Colours become grey by ITU-R 601.

    Args:
        data: uint8 (bytes,), the whole file.
        where: names it in errors.
        colour, bits: see :class:`FileSource`.

    Returns:
        uint8 (H,W), or (H,W,3) in colour.

    Raises:
        UserError: it is not a whole image, is damaged inside, is several, is of a kind that is not read, or has more bits than
            are known.
    """
    encoded = data.tobytes()
    head, decoded, fault, words = None, None, None, ""
    try:
        head = read_head(io.BytesIO(encoded))
        _refuse(head, where)
        pixels = head.height * head.width if head else SOME + 16 * len(encoded)
        if head and head.kind in ("PNG", "JPEG") and pixels < THIN * len(encoded):  # whose decoders end no process
            decoded, fault, words = _judged(encoded, head, colour)
        else:
            decoded, fault, words = apart(where, 3 * pixels, _judged, encoded, head, colour)
    except MemoryError:
        raise UserError(f"{where}: memory is too small for its pixels.") from None
    except UNREADABLE:
        pass
    if decoded is None or decoded.size == 0 or (head and decoded.shape[:2] != head.shape):
        raise UserError(f"{where}: not a whole image ({len(data)} bytes). python -m xraylab.check lists all such files.")
    if fault:
        raise UserError(f"{where}: {fault}. python -m xraylab.check lists all such files.")
    if words:
        log.warning("%s: its decoder says: %s", where, words)
    if decoded.dtype == np.uint8:
        return decoded
    most = int(decoded.max())
    if decoded.dtype != np.uint16 or bits is None or most >= 2**bits:
        given = "dataset.bits is not set" if bits is None else f"dataset.bits={bits}"
        raise UserError(
            f"{where}: {decoded.dtype} values up to {most}, and {given}. Say how many bits the values of 16-bit files use "
            "(dataset.bits=12), or save them with 8."
        )
    decoded = 2**bits - 1 - decoded if head and head.inverted else decoded
    return np.right_shift(decoded, bits - 8).astype(np.uint8)


def of_one_value(images: Images) -> bool:
    """Whether all images, or all slices, of a reference are of one value, or colour, each: nothing can be seen on them."""
    for image in images:
        flat = image.reshape(-1, image.shape[-1]) if image.ndim == 3 else image.reshape(-1, 1)
        if (flat[:: max(len(flat) // 997, 1)] != flat[0]).any() or (flat != flat[0]).any():  # a few tell it of nearly all
            return False
    return True


def _refuse(head: Head | None, where: object) -> None:
    """Raise UserError for what is known from a head not to be read."""
    if head and head.height * head.width > MAX_PIXELS:
        raise UserError(f"{where}: its header says {head.height}x{head.width} pixels, where {MAX_PIXELS:,} are read at most.")
    if head and head.fault:
        raise UserError(f"{where}: {head.fault}")
    if head and head.pages > 1:
        raise UserError(f"{where}: a {head.kind} of {head.pages} pages, where one file is one image. Split it.")


def _judged(encoded: bytes, head: Head | None, colour: bool) -> tuple[np.ndarray | None, str | None, str]:
    """What :func:`_decoded` gives, why it is damaged, if it is, and what else its decoder said."""
    decoded, words = with_stderr(lambda: _decoded(encoded, head, colour))
    return decoded, None if decoded is None else damage(encoded, words), words


def _decoded(encoded: bytes, head: Head | None, colour: bool) -> np.ndarray | None:
    """(H,W), or (H,W,3), of whatever type the file's values are; None: it is not whole."""
    if head and head.by_pil:
        with Image.open(io.BytesIO(encoded)) as opened:  # PIL turns a TIFF itself
            rgb = np.array(opened.convert("RGB"))
        return rgb if colour else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    tiff = head is not None and head.kind == "TIFF"  # which OpenCV turns as libtiff reads its tags
    flag = cv2.IMREAD_ANYDEPTH | (0 if tiff else cv2.IMREAD_IGNORE_ORIENTATION)
    png = head is not None and head.kind == "PNG"
    data = np.frombuffer(plain_png(encoded) if png else encoded, np.uint8)
    if png and not colour and encoded[25] in PNG_COLOURS:  # of which libpng would cut the fractions of grey off
        bgr = cv2.imdecode(data, flag | cv2.IMREAD_COLOR)
        return None if bgr is None or head is None else turned(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), head.orientation)
    decoded = cv2.imdecode(data, flag | (cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_GRAYSCALE)) if len(data) else None
    if decoded is not None and colour and decoded.dtype == np.uint16:  # whose channels OpenCV 5.0 may not write in this order
        bgr = cv2.imdecode(data, flag | cv2.IMREAD_COLOR)
        decoded = None if bgr is None else bgr[..., ::-1]
    if decoded is None:
        return None
    if (white := WHITE.match(encoded)) and decoded.dtype == np.uint8 and 0 < int(white[3]) < 255:
        decoded = np.rint(np.minimum(decoded / int(white[3]), 1) * 255).astype(np.uint8)
    return turned(decoded, head.orientation) if head and not tiff else decoded


def header_shape(file: Path | BinaryIO, where: object) -> tuple[int, int, int]:
    """(1,H,W) of an encoded image as it is when decoded, from its header alone.

    Raises:
        UserError: the header cannot be read; ``where`` names the image.
    """
    try:
        with open(file, "rb", buffering=0) if isinstance(file, Path) else nullcontext(file) as opened:
            if head := read_head(opened):
                _refuse(head, where)
                return 1, *head.shape
            with Image.open(opened) as other:
                return 1, other.height, other.width
    except UNREADABLE as error:
        raise UserError(f"{where}: not a whole image.") from error


def check_bits(bits: int | None) -> int | None:
    """Refuse what is no number of bits.

    Raises:
        UserError: it is neither None nor 8 to 16.
    """
    if bits is not None and (not isinstance(bits, int) or isinstance(bits, bool) or not 8 <= bits <= 16):
        raise UserError(f"dataset.bits={bits}: it is 8 to 16, or null.")
    return bits


def file_fault(path: Path | str) -> str | None:
    """Why an image file cannot hold an image, as a kind of problem; None if it can."""
    try:
        found = os.stat(path)
    except OSError:
        return MISSING
    if not stat.S_ISREG(found.st_mode):
        return "images that are no files, but folders, pipes or the like"
    return None if found.st_size else "empty image files"


def is_picture(file: Path | str) -> bool:
    """Whether a file is of a kind that is read: by its suffix, or of none that is known, by the mark of DICOM in it."""
    suffix = suffix_of(str(file))
    known = suffix in (*SUFFIXES, *DICOM, ARRAY) or is_nifti(file)
    return known or (suffix not in NO_PICTURE and os.path.isfile(file) and is_dicom(Path(file)))  # a pipe would not be read


def stem(name: str) -> str:
    """A path without the suffix of a kind of file that is read."""
    posix = PurePosixPath(name.replace("\\", "/")).as_posix()
    if is_nifti(posix):
        posix = posix[:-3] if posix.lower().endswith(".gz") else posix
        return posix.rpartition(".")[0]
    return posix.rpartition(".")[0] if posix.lower().endswith((*SUFFIXES, ARRAY, *DICOM)) else posix


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


class NpySource(ImageSource):
    """Source of one ``.npy`` of uint8 slices (N,H,W) a reference.

    Args:
        root: references are paths relative to it.
    """

    root: Path

    def __init__(self, root: Path) -> None:
        self.root = root

    def costly(self, resized: bool) -> bool:
        return resized  # as they are, the files are as quick as a cache

    def read(self, images: Sequence[str]) -> np.ndarray:
        """uint8 (N,H,W), the files' slices one after another."""
        # of as many kinds as there are things to be wrong in a header
        with refusing(f"{self.root}: cannot read {listed(images)}", Exception, end=""):
            arrays = [np.load(self.root / name, allow_pickle=False) for name in images]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def shape(self, image: str) -> tuple[int, int, int]:
        try:
            slices, height, width = np.load(self.root / image, mmap_mode="r", allow_pickle=False).shape
        except Exception as error:  # of as many kinds as there are things to be wrong in a header; an archive has none
            raise UserError(f"{self.root / image}: not a whole array of slices.") from error
        return slices, height, width


class ArraySource(ImageSource):
    """Source of arrays in memory; a reference is ``<array>:<index>``.

    Args:
        arrays: uint8 (items,H,W[,3]), or (items,N,H,W) where an item is a volume.
        volume: whether it is.
    """

    def __init__(self, arrays: dict[str, np.ndarray], volume: bool) -> None:
        self.arrays, self.volume = arrays, volume

    def _item(self, image: str) -> np.ndarray:
        name, _, index = image.partition(":")
        item = self.arrays[name][int(index)]
        return item if self.volume else item[None]

    def read(self, images: Sequence[str]) -> np.ndarray:
        """uint8 (N,H,W) or (N,H,W,3)."""
        stack = [self._item(image) for image in images]
        return stack[0] if len(stack) == 1 else np.concatenate(stack)

    def shape(self, image: str) -> tuple[int, int, int]:
        count, height, width = self._item(image).shape[:3]
        return count, height, width
