"""Files that a visitor sends, decoded in another process: a study of arrays in a private folder, and what was refused.

What is sent is never decoded, unpacked or trusted here: a child process does that, with limits of time and memory, and what
comes back are plain arrays. Names are the visitor's and stay in the answer; on disk files are numbers.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from xraylab.data.images.any_file import AnyFileSource
from xraylab.data.images.decoder_process import apart
from xraylab.data.images.dicom import SUFFIXES as DICOM
from xraylab.data.images.dicom import is_dicom
from xraylab.data.images.series import slices_of
from xraylab.data.images.source import ARRAY, SUFFIXES, is_picture, of_one_value, stem
from xraylab.data.images.volumes import VolumeRule
from xraylab.errors import UserError, listed
from xraylab.system.paths import LEAVINGS

MEGABYTE = 10**6
BLOCK = 2**20
PROJECTIONS = ("CR", "DX", "RG", "DR", "XR", "PX", "MG", "RF", "XA", "IO")  # DICOM's modalities of X-rays that are one picture


class Refusal(Exception):
    """A study that is not predicted: what is said, and a word for programs."""

    def __init__(self, reason: str, message: str, status: int = 422, more: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.status, self.more = reason, message, status, dict(more or {})


@dataclass(frozen=True)
class Limits:
    """What a request may be; ``limits`` of ``conf/serve.yaml`` explains each."""

    megabytes: float = 256
    files: int = 400
    unpacked_megabytes: float = 1024
    megapixels: float = 200
    smallest: int = 16
    upload_seconds: float = 60
    decode_seconds: float = 60
    waiting: int = 16


class Upload(NamedTuple):
    """A file as it was sent: its name as the visitor has it, and where it lies."""

    name: str
    path: Path


class Unread(NamedTuple):
    """A file that is not predicted from, and why."""

    file: str
    reason: str


class Facts(NamedTuple):
    """What a DICOM header says of how an image was made, empty where it says nothing; nothing of the patient.

    Attributes:
        modality, part, view: its words, in capitals.
        plane: axial, coronal or sagittal, of its orientation.
        study: a digest of the study's number, which tells two studies apart and nothing else.
    """

    modality: str = ""
    part: str = ""
    view: str = ""
    plane: str = ""
    study: str = ""


class Decoded(NamedTuple):
    """A file's images as an array of its own, uint8 (N,H,W) or (N,H,W,3)."""

    name: str
    path: Path
    slices: int
    facts: Facts


@dataclass(frozen=True)
class Study:
    """What was sent, decoded.

    Attributes:
        id: the name that the files share: of their folder or archive, or of the only file.
        files: in the order of their names.
        unread: what is left out.
    """

    id: str
    files: list[Decoded]
    unread: list[Unread] = field(default_factory=list)


def decoded_study(
    uploads: Sequence[Upload], folder: Path, limits: Limits, colour: bool = False, bits: int | None = None,
    rule: Mapping[str, Any] | None = None,
) -> Study:  # fmt: skip
    """Unpack and decode what was sent.

    Args:
        uploads: at least one.
        folder: private and empty but for the uploads; arrays are written there.
        colour, bits: as of :class:`xraylab.data.images.source.FileSource`.
        rule: of volumes, as :meth:`xraylab.data.images.volumes.VolumeRule.saved` gives it.

    Raises:
        Refusal: nothing in it can be read, it goes beyond a limit, or is of several studies.
    """
    files, unread = _unpacked(uploads, folder, limits)
    if not files:
        raise Refusal("unreadable", f"there is no image in what was sent{_said(unread)}")
    found: list[Decoded] = []
    left = limits.megapixels * MEGABYTE
    files.sort(key=lambda upload: _natural(upload.name))
    for number, upload in enumerate(files):
        target = folder / f"{number:05d}{ARRAY}"
        arguments = (str(upload.path), str(target), colour, bits, int(left), limits.smallest, rule)
        try:
            shape, facts = apart(upload.name, int(left), decode_to, *arguments, limit=limits.decode_seconds)
        except TooLarge as error:
            raise Refusal("too_large", f"{upload.name}: {error}", 413) from None
        except UserError as error:
            unread.append(Unread(upload.name, _reason(error, upload)))
        except MemoryError:
            unread.append(Unread(upload.name, "memory is too small for its pixels"))
        except ValueError:
            unread.append(Unread(upload.name, "it cannot be decoded"))
        else:
            left -= shape[0] * shape[1] * shape[2]
            found.append(Decoded(upload.name, target, shape[0], Facts(*facts)))
        upload.path.unlink(missing_ok=True)
    if not found:
        raise Refusal("unreadable", f"not one file of {len(files)} could be read{_said(unread)}")
    if len({of.facts.study for of in found if of.facts.study}) > 1:
        raise Refusal("several_studies", "the files are of several studies; send one study at a time.")
    return Study(_common(uploads, found), found, unread)


def _unpacked(uploads: Sequence[Upload], folder: Path, limits: Limits) -> tuple[list[Upload], list[Unread]]:
    """The files that were sent, those of archives too, without what no image is."""
    files: list[Upload] = []
    unread: list[Unread] = []
    for number, upload in enumerate(uploads):
        if not zipfile.is_zipfile(upload.path):
            files.append(upload)
            continue
        inside = folder / f"archive{number}"
        inside.mkdir()
        most = (limits.files, int(limits.unpacked_megabytes * MEGABYTE))
        try:
            names = apart(upload.name, 10 * most[1], unpack, str(upload.path), str(inside), *most, limit=limits.decode_seconds)
        except TooLarge as error:
            raise Refusal("too_large", f"{upload.name}: {error}", 413) from None
        except (UserError, MemoryError, ValueError) as error:
            reason = _reason(error, upload) if isinstance(error, UserError) else "not a whole archive"
            raise Refusal("unreadable", f"{upload.name}: {reason}") from None
        upload.path.unlink(missing_ok=True)
        top = stem(PurePosixPath(upload.name).name).removesuffix(".zip")
        files += [Upload(f"{top}/{name}", inside / path) for name, path in names]
    if len(files) > limits.files:
        raise Refusal("too_many", f"{len(files)} files were sent, where {limits.files} are read at most.", 413)
    kept = []
    for upload in files:
        if any(LEAVINGS.match(part) for part in PurePosixPath(upload.name).parts):
            continue
        if upload.path.stat().st_size == 0:
            unread.append(Unread(upload.name, "it is empty"))
        elif is_picture(upload.path):
            kept.append(upload)
        else:
            unread.append(Unread(upload.name, "it is no image: PNG, JPEG, TIFF, .npy and DICOM are read"))
    return kept, unread


class TooLarge(UserError):
    """More than a limit allows."""


def unpack(archive: str, folder: str, most: int, size: int) -> list[tuple[str, str]]:
    """Unpack a zip file, in a child process.

    Args:
        archive, folder: paths.
        most: files at most.
        size: bytes at most, counted while they are unpacked.

    Returns:
        Of each file the name that the archive says, and that in the folder.

    Raises:
        TooLarge: there is more.
        UserError: a name leaves the folder, it is a link, or encrypted, or damaged.
    """
    out: list[tuple[str, str]] = []
    try:
        with zipfile.ZipFile(archive) as unzipped:
            entries = [entry for entry in unzipped.infolist() if not entry.is_dir()]
            if len(entries) > most:
                raise TooLarge(f"it holds {len(entries):,} files, where {most:,} are read at most.")
            for number, entry in enumerate(entries):
                name = entry.filename.replace("\\", "/")
                parts = PurePosixPath(name).parts
                if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
                    raise UserError("a name in it leads out of its folder")
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise UserError("it holds a link")
                if entry.flag_bits & 1:
                    raise UserError("it is encrypted")
                target = Path(folder) / f"{number:05d}{suffix_of(name)}"
                with unzipped.open(entry) as source, target.open("wb") as file:
                    while block := source.read(BLOCK):
                        size -= len(block)
                        if size < 0:
                            raise TooLarge("unpacked it is larger than the limit.")
                        file.write(block)
                out.append((name, target.name))
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError("not a whole archive, or of a kind that is not read") from error
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError("not a whole archive") from error  # zlib and others have errors of their own
    return out


def decode_to(
    path: str, target: str, colour: bool, bits: int | None, most: int, smallest: int, rule: Mapping[str, Any] | None = None
) -> tuple[tuple[int, ...], tuple[str, ...]]:  # fmt: skip
    """Decode a file and write its images as ``.npy``, in a child process.

    Args:
        path, target: of the file and of the array.
        colour, bits: see :class:`xraylab.data.images.source.FileSource`.
        most: pixels at most.
        smallest: pixels of a side at least.
        rule: see :func:`decoded_study`.

    Returns:
        The array's shape, and the :class:`Facts`.

    Raises:
        TooLarge: there are more pixels.
        UserError: it cannot be read, or there is nothing to see on it.
    """
    source = AnyFileSource(colour, bits, rule=None if rule is None else VolumeRule(**rule))
    if rule is not None and is_dicom(Path(path)) and not isinstance(slices_of(Path(path), path), str):
        raise UserError("a slice of a series, whose order and scale only python -m xraylab.predict finds")
    slices, height, width = source.shape(path)
    if slices * height * width > most:
        raise TooLarge(f"{slices}x{height}x{width} pixels are more than are left of the limit.")
    if min(height, width) < smallest:
        raise UserError(f"{height}x{width} pixels, where a side of {smallest} at least is wanted")
    images = source.read([path])
    array = np.stack(images) if isinstance(images, list) else images
    if of_one_value(array):
        raise UserError("it is blank: every pixel has one value")
    np.save(target, array, allow_pickle=False)
    facts = (
        facts_of(Path(path)) if os.path.splitext(path)[1].lower() not in (*SUFFIXES, ARRAY) and is_dicom(Path(path)) else Facts()
    )
    return array.shape, tuple(facts)


def facts_of(path: Path) -> Facts:
    """What a DICOM file's header says of how it was made."""
    from pydicom import dcmread

    keywords: Any = ["Modality", "BodyPartExamined", "ViewPosition", "ImageOrientationPatient", "StudyInstanceUID"]
    try:
        header = dcmread(path, specific_tags=keywords, stop_before_pixels=True)
        modality, part, view = (str(header.get(keyword) or "").strip().upper() for keyword in keywords[:3])
        uid = str(header.get("StudyInstanceUID") or "")
        digest = hashlib.sha256(uid.encode()).hexdigest()[:12] if uid else ""
        return Facts(modality, part, view, plane_of(header.get("ImageOrientationPatient")), digest)
    except Exception:  # of as many kinds as there are things to be wrong in a header, whose pixels were read
        return Facts()


def plane_of(orientation: Sequence[float] | None) -> str:
    """The plane of a slice, of the six numbers of its orientation (DICOM PS3.3 C.7.6.2.1.1); empty where there are none.

    >>> plane_of([1, 0, 0, 0, 1, 0]), plane_of([0, 1, 0, 0, 0, -1]), plane_of(None)
    ('axial', 'sagittal', '')
    """
    if orientation is None or len(orientation) != 6:
        return ""
    row, column = np.asarray(orientation, np.float64).reshape(2, 3)
    normal = np.abs(np.cross(row, column))
    if not np.isfinite(normal).all() or normal.max() < 0.5:
        return ""
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def suffix_of(name: str) -> str:
    """The suffix of a name, of a kind that is read; else empty.

    >>> suffix_of("a/Front.PNG"), suffix_of("IM0001"), suffix_of("../x.sh")
    ('.png', '', '')
    """
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in (*SUFFIXES, *DICOM, ARRAY, ".zip") else ""


def _reason(error: UserError, upload: Upload) -> str:
    """An error without the path on this machine, and without advice for who has a dataset."""
    text = str(error).splitlines()[0].replace(str(upload.path), upload.name).removeprefix(f"{upload.name}: ")
    return text.partition(". python -m")[0].rstrip(".")


def _said(unread: Sequence[Unread]) -> str:
    return f": {listed(f'{of.file} ({of.reason})' for of in unread)}." if unread else "."


def _natural(name: str) -> list[Any]:
    """By which names are sorted as people do, slice 2 before slice 10."""
    parts = enumerate(re.split(r"(\d+)", name))  # digits are every second
    return [(1, len(digits := part.lstrip("0")), digits) if k % 2 else (0, 0, part.casefold()) for k, part in parts]


def _common(uploads: Sequence[Upload], found: Sequence[Decoded]) -> str:
    """What the files are called together."""
    if len(found) == 1 and "/" not in found[0].name:
        return stem(found[0].name)
    tops = {PurePosixPath(of.name).parts[0] for of in found if "/" in of.name}
    if len(tops) == 1 and all("/" in of.name for of in found):
        return tops.pop()
    return stem(PurePosixPath(uploads[0].name).name) if len(uploads) == 1 else f"{len(found)} files"
