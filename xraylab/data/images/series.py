"""Series of slices in DICOM files: which files are one volume, in which order, and which volumes of a study are taken.

A series (SeriesInstanceUID) is cut into stacks of one orientation and size. A stack's slices lie in the order of their places
along its normal (Image Position and Orientation, DICOM PS3.3 C.7.6.2.1.1; of enhanced files Plane Position and Orientation,
C.7.6.16.2.3 and C.7.6.16.2.4), which is turned to the left, the back or the head of the patient. Names of files decide nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xraylab.data.images.dicom import CROSS_SECTIONS, discreet, require_pydicom

if TYPE_CHECKING:
    from pydicom import Dataset

PLANES = ("sagittal", "coronal", "axial")  # by the axis that the normal is nearest to: left, back, head
FEW = 3  # images of an orientation that, beside others in its series, are a scout
ALIKE = 0.01  # of direction cosines, and of places in mm: as far as two that are the same may differ
UNEVEN = 1.5  # times the usual distance, from which on slices are missing
TAGS = (
    "Rows", "Columns", "SamplesPerPixel", "Modality", "ImageType", "NumberOfFrames", "StudyInstanceUID", "SeriesInstanceUID",
    "SOPInstanceUID", "InstanceNumber", "SeriesNumber", "SeriesDescription", "ImagePositionPatient", "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
NO_HEADER = "DICOM files whose header cannot be read"
NO_SLICE = "DICOM files that are no slices"
LOCALISERS = "localisers and scouts"


class Slice(NamedTuple):
    """An image of a series, by its header."""

    file: str
    frame: int
    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID
    uid: str  # SOPInstanceUID
    number: int | None  # InstanceNumber
    shape: tuple[int, int]
    orientation: tuple[float, ...] | None  # six cosines, along a row and along a column
    position: tuple[float, ...] | None  # mm, of the first pixel
    localiser: bool
    modality: str
    of_series: tuple[int, str]  # SeriesNumber and SeriesDescription

    @property
    def key(self) -> tuple[Any, ...]:
        """What puts slices in an order that no file's name decides."""
        return self.uid, self.frame, self.number or 0, self.position or ()


class Volume(NamedTuple):
    """Slices of one stack, in order.

    Attributes:
        slices: file and frame of each.
        shape: (N,H,W).
        plane: axial, coronal or sagittal; blank where the orientation is not known.
        modality: CT, MR, PT or another.
        said: what has to be said of it: words.
    """

    slices: tuple[tuple[str, int], ...]
    shape: tuple[int, int, int]
    plane: str
    modality: str
    number: int
    description: str
    uid: str
    said: tuple[str, ...] = ()

    @classmethod
    def of_file(cls, file: str, shape: tuple[int, int, int]) -> Volume:
        """The frames of one file, as they come."""
        return cls(tuple((file, k) for k in range(shape[0])), shape, "", "", 0, "", "")

    @property
    def rank(self) -> tuple[Any, ...]:
        """The least is the largest volume; of those of one size the first series."""
        return -len(self.slices), self.number, self.uid, self.plane


def slices_of(path: Path, file: str) -> list[Slice] | str:
    """The slices in a DICOM file, by its header; or what the file is instead, in words for several.

    Raises:
        UserError: pydicom is not installed.
    """
    require_pydicom(path)
    from pydicom import dcmread

    tags: Any = list(TAGS)
    try:
        with discreet(path):
            dataset = dcmread(path, specific_tags=tags, stop_before_pixels=True, force=True)
            if not hasattr(dataset, "SOPInstanceUID") and "Rows" not in dataset:
                return NO_HEADER
            return _slices(dataset, file)
    except Exception:  # of as many kinds as there are things to be wrong in a header
        return NO_HEADER


def _slices(dataset: Dataset, file: str) -> list[Slice] | str:
    if "Rows" not in dataset or "Columns" not in dataset or int(dataset.get("SamplesPerPixel") or 1) != 1:
        return NO_SLICE
    count, modality = int(dataset.get("NumberOfFrames") or 1), str(dataset.get("Modality") or "")
    frames = list(_frames(dataset)) if count > 1 or "PerFrameFunctionalGroupsSequence" in dataset else []
    places = frames or [(_numbers(dataset, "ImagePositionPatient"), _numbers(dataset, "ImageOrientationPatient"))]
    if (frames and any(position is None for position, _ in frames)) or (count > 1 and len(frames) != count):
        return NO_SLICE
    if places[0][0] is None and modality not in CROSS_SECTIONS:
        return NO_SLICE
    about = (
        str(dataset.get("StudyInstanceUID") or ""), str(dataset.get("SeriesInstanceUID") or ""),
        str(dataset.get("SOPInstanceUID") or ""), _integer(dataset, "InstanceNumber"), (int(dataset.Rows), int(dataset.Columns)),
    )  # fmt: skip
    scout = "LOCALIZER" in [str(word).upper() for word in dataset.get("ImageType") or ()]
    number = _integer(dataset, "SeriesNumber")
    series = (2**31 if number is None else number, str(dataset.get("SeriesDescription") or ""))
    return [
        Slice(file, k, *about, orientation if orientation and len(orientation) == 6 else None, position, scout, modality, series)
        for k, (position, orientation) in enumerate(places)
    ]


def _frames(dataset: Dataset) -> Iterator[tuple[tuple[float, ...] | None, tuple[float, ...] | None]]:
    """Place and orientation of each frame of an enhanced file."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    for group in dataset.get("PerFrameFunctionalGroupsSequence") or ():
        found = []
        for sequence, keyword in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ):
            items = [of[sequence].value for of in (group, shared) if of is not None and sequence in of]
            found.append(_numbers(items[0][0], keyword) if items and len(items[0]) else None)
        yield found[0], found[1]


def _numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Three or six finite numbers, or None."""
    found = tuple(float(value) for value in dataset.get(keyword) or ())
    return found if len(found) in (3, 6) and np.isfinite(found).all() else None


def _integer(dataset: Dataset, keyword: str) -> int | None:
    value = dataset.get(keyword)
    return None if value is None or value == "" else int(value)


def volumes_in(slices: Sequence[Slice], pixels: Callable[[str, int], bytes]) -> tuple[list[Volume], Counter[str]]:
    """The volumes that slices of a study make, and how many slices, by why, are in none.

    Args:
        pixels: what two files of one place are compared by: file and frame to their bytes.
    """
    left: Counter[str] = Counter()
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for one in sorted(slices, key=lambda s: s.key):
        if one.localiser:
            left[LOCALISERS] += 1
        else:
            by_series[one.series].append(one)
    volumes: list[Volume] = []
    for of_series in by_series.values():
        stacks = _stacks(of_series)
        if len(stacks) > 1:
            small = [stack for stack in stacks if len(stack) <= FEW]
            left[LOCALISERS] += sum(map(len, small))
            stacks = [stack for stack in stacks if len(stack) > FEW]
        if len(stacks) > 1:
            left["slices in series of mixed orientations or sizes"] += sum(map(len, stacks))
            continue
        for stack in stacks:
            if isinstance(found := _volume(stack, pixels, left), str):
                left[found] += len(stack)
            else:
                volumes.append(found)
    return sorted(volumes, key=lambda v: v.rank), +left


def _stacks(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices of one orientation and size each."""
    stacks: list[list[Slice]] = []
    for one in slices:
        for stack in stacks:
            first = stack[0]
            if one.shape == first.shape and _parallel(one.orientation, first.orientation):
                stack.append(one)
                break
        else:
            stacks.append([one])
    return stacks


def _parallel(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.abs(np.subtract(one, other)).max() < ALIKE)


def normal_of(orientation: tuple[float, ...]) -> np.ndarray:
    """The unit normal of a plane, float64 (3,), turned so that its largest component is positive."""
    normal = np.cross(orientation[:3], orientation[3:])
    normal = normal / max(float(np.linalg.norm(normal)), 1e-9)
    return normal * (1 if normal[np.argmax(np.abs(normal))] >= 0 else -1)


def _volume(stack: list[Slice], pixels: Callable[[str, int], bytes], left: Counter[str]) -> Volume | str:
    """The slices of a stack in order; copies are counted in ``left``. Or why there is no order, in words."""
    said: list[str] = []
    plane, first = "", stack[0]
    kept: list[Slice] = []
    if first.orientation is None or any(one.position is None for one in stack):
        placed = {one: float(one.number) for one in stack if one.number is not None}
        if len(placed) < len(stack):
            return "slices in series with neither places nor InstanceNumbers"
        said.append("of whose slices places are missing, in the order of InstanceNumber")
    else:
        normal = normal_of(first.orientation)
        plane = PLANES[int(np.argmax(np.abs(normal)))]
        placed = {one: float(np.dot(normal, one.position)) for one in stack if one.position is not None}
    copies = 0
    for one in sorted(stack, key=lambda s: (placed[s], s.key)):
        if kept and placed[one] - placed[kept[-1]] < ALIKE:
            before = kept[-1]
            if pixels(one.file, one.frame) != pixels(before.file, before.frame):
                return "slices in series with several images at one place, as echoes and phases are"
            copies += 1
        else:
            kept.append(one)
    if copies:
        left["slices that are there twice"] += copies
    gaps = np.array([placed[b] - placed[a] for a, b in pairwise(kept)])
    if plane and len(gaps) > 1 and (gaps > UNEVEN * np.median(gaps)).any():
        said.append("with gaps, their slices not evenly spaced")
    slices = tuple((one.file, one.frame) for one in kept)
    return Volume(slices, (len(kept), *first.shape), plane, first.modality, *first.of_series, first.series, tuple(said))


def pixel_digest(path: Path, frame: int) -> bytes:
    """A checksum of the pixels of a file, as they are stored, by which copies are told. Blank where they cannot be read."""
    from pydicom import dcmread

    keywords: Any = ["PixelData", "NumberOfFrames"]
    try:
        with discreet(path):
            dataset = dcmread(path, specific_tags=keywords, force=True)
            return hashlib.sha256(dataset.PixelData).digest() + bytes(str(frame), "ascii") * (
                int(dataset.get("NumberOfFrames") or 1) > 1
            )
    except Exception:  # of as many kinds as there are files; whoever reads its pixels says why
        return bytes(str(path), "utf-8")
