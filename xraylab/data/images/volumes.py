"""Volumes of studies: which series of a study is taken, and how volumes are read; the same in training and in prediction."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xraylab.data.images.dicom import LOOKED_AT, read_measured
from xraylab.data.images.intensity import PERCENTILES, WINDOWS, check_window, to_grey
from xraylab.data.images.nifti import read_nifti
from xraylab.data.images.series import NO_HEADER, PLANES, Slice, Volume, pixel_digest, slices_of, volumes_in
from xraylab.errors import UserError, did_you_mean, refusing

log = logging.getLogger(__name__)

LARGEST, ALL_PLANES = "largest", "planes"
PARTS = ("axial", "coronal", "sagittal")  # of ``planes``, in the order of their pools
DICOMDIR = "DICOMDIR"


@dataclass(frozen=True)
class VolumeRule:
    """How volumes become images.

    Args:
        series: of a study's series ``largest``, the one of most slices; a plane, its largest; ``planes``, the largest of
            each plane, all parts of one study; else a regular expression, searched in descriptions in small and capital letters.
        window: one or three of :data:`xraylab.data.images.intensity.WINDOWS`, or ``percentiles``; none: values as files of
            8 bits hold them, the window that all slices of a volume agree on, or else percentiles.
        slices: the plane in which NIfTI volumes are sliced; None: across the axis of the largest spacing.

    Raises:
        UserError: one of them is something else.
    """

    series: str = LARGEST
    window: tuple[str, ...] = ()
    slices: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", check_window(self.window))
        object.__setattr__(self, "series", str(self.series))
        with refusing(f"dataset.series={self.series}: it is no plane, nor a regular expression", re.error):
            re.compile(self.series)
        if self.slices is not None and self.slices not in PLANES:
            hint = did_you_mean(str(self.slices), PLANES)
            raise UserError(f"dataset.slices={self.slices}: it is {', '.join(PARTS)} or null.{hint}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Of which volumes a study consists, if of several."""
        return PARTS if self.series == ALL_PLANES else ()

    @property
    def colour(self) -> bool:
        """Whether the windows are three channels."""
        return len(self.window) > 1

    def saved(self) -> dict[str, Any]:
        """As :class:`VolumeRule` takes it, of plain types, for checkpoints."""
        return {**asdict(self), "window": list(self.window)}

    def choose(self, volumes: Sequence[Volume]) -> dict[str, Volume] | str:
        """Of a study's volumes, which are in order, those that are taken by part (blank: the only one); or what it lacks."""
        if self.parts:
            found = {part: next((v for v in volumes if v.plane == part), None) for part in self.parts}
            lacking = [part for part, volume in found.items() if volume is None]
            if lacking:
                return f"studies without a series that is {' or '.join(lacking)} (dataset.series={self.series})"
            return {part: volume for part, volume in found.items() if volume is not None}
        if self.series in PARTS:
            fitting = [v for v in volumes if v.plane == self.series]
        elif self.series == LARGEST:
            fitting = list(volumes)
        else:
            fitting = [v for v in volumes if re.search(self.series, v.description, re.IGNORECASE)]
        return {"": fitting[0]} if fitting else f"studies without a series that dataset.series={self.series} chooses"


@dataclass(frozen=True)
class Studies:
    """Volumes of studies.

    Attributes:
        volumes: reference -> volume, whose files are as they were given.
        images: study -> its references.
        faults: kind of problem -> studies.
    """

    volumes: dict[str, Volume]
    images: dict[str, tuple[str, ...]]
    faults: dict[str, list[str]]


def headers_of(root: Path, files: Iterable[str]) -> dict[str, list[Slice] | str]:
    """The slices in each DICOM file, or what the file is instead."""
    files = list(files)
    with ThreadPoolExecutor(LOOKED_AT) as pool:  # over a network, one by one takes minutes
        return dict(zip(files, pool.map(lambda file: slices_of(root / file, file), files), strict=True))


def studies_of_series(
    root: Path, studies: Mapping[str, Sequence[str]], rule: VolumeRule, headers: Mapping[str, list[Slice] | str] | None = None
) -> Studies:
    """The volumes that are taken of studies; what is left out of them is logged with counts.

    Args:
        studies: id, and DICOM files of each, relative to ``root``.
        headers: of all files, where they are read already.
    """
    headers = headers_of(root, [f for files in studies.values() for f in files]) if headers is None else headers
    volumes: dict[str, Volume] = {}
    images: dict[str, tuple[str, ...]] = {}
    faults: dict[str, list[str]] = defaultdict(list)
    left, chosen, said = Counter[str](), Counter[str](), Counter[str]()
    for study, files in studies.items():
        found = [headers[file] for file in files]
        slices = [one for of in found if not isinstance(of, str) for one in of]
        if NO_HEADER in found:
            faults[f"studies with {NO_HEADER}"].append(study)
            continue
        if len({one.study for one in slices}) > 1:
            faults["folders with images of several DICOM studies (StudyInstanceUID): make a folder of each"].append(study)
            continue
        of_study, aside = volumes_in(slices, lambda file, frame: pixel_digest(root / file, frame))
        left += aside + Counter(of for of in found if isinstance(of, str))
        if not of_study:
            why = f" ({', '.join(aside)})" if aside else ""
            faults[f"studies without a series of slices that can be put in order{why}"].append(study)
            continue
        taken = rule.choose(of_study)
        if isinstance(taken, str):
            faults[taken].append(study)
            continue
        left["series that are not chosen"] += len(of_study) - len(taken)
        references = {f"{study}#{volume.plane or 'series'}": volume for volume in taken.values()}
        volumes |= references
        images[study] = tuple(references)
        chosen.update(f"{volume.plane or 'unplaced'} {volume.modality}".strip() for volume in taken.values())
        said.update(words for volume in taken.values() for words in volume.said)
    _say(rule, images, left, chosen, said)
    return Studies(volumes, images, dict(faults))


def _say(
    rule: VolumeRule, images: Mapping[str, tuple[str, ...]], left: Counter[str], chosen: Counter[str], said: Counter[str]
) -> None:
    if chosen:
        log.info(
            "series: of %d studies, by dataset.series=%s: %s", len(images), rule.series,
            ", ".join(f"{n} {what}" for what, n in sorted(chosen.items())),
        )  # fmt: skip
    if left := +left:
        log.warning("series: left out: %s", ", ".join(f"{n} {what}" for what, n in sorted(left.items())))
    for words, n in sorted(said.items()):
        log.warning("series: %d volumes %s", n, words)


def read_volume(path: Path, volume: Volume, rule: VolumeRule, colour: bool) -> np.ndarray:
    """A volume, by one scale for all its slices.

    Args:
        path: names it in errors; the volume's files are relative to its root.

    Returns:
        uint8 (N,H,W), or (N,H,W,3) in colour or by three windows.

    Raises:
        UserError: a slice cannot be read, or a window of Hounsfield units is asked for of values that are none.
    """
    shape = volume.shape
    values: np.ndarray = np.empty(shape, np.float32)
    padded: np.ndarray | None = None
    windows: set[tuple[float, float, str] | None] = set()
    eight, inverted = True, set()
    files: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, (file, frame) in enumerate(volume.slices):
        files[file].append((place, frame))
    for file, places in files.items():
        measured = read_measured(path / file)
        _require_units(path / file, measured.modality, rule)
        of = measured.rescaled
        for place, frame in places:
            if frame >= len(of.frames) or of.frames[frame].shape != shape[1:]:
                raise UserError(f"{path / file}: its pixels are not what its header says.")
            values[place] = of.frames[frame]
            windows.add(measured.windows[frame])
            eight &= of.frames[frame].dtype == np.uint8
            if of.padded is not None and of.padded[frame].any():
                padded = np.zeros(shape, bool) if padded is None else padded
                padded[place] = of.padded[frame]
        inverted.add(measured.inverted)
    if len(inverted) > 1:
        raise UserError(f"{path / volume.slices[0][0]}: of its series some slices are inverted (MONOCHROME1), and some are not.")
    only = next(iter(windows)) if len(windows) == 1 else None
    names: tuple[str | tuple[float, float, str], ...] = rule.window or (() if eight and only is None else (only or PERCENTILES,))
    return scaled(values, padded, names, colour, inverted.pop())


def scaled(
    values: np.ndarray, padded: np.ndarray | None, windows: Sequence[str | tuple[float, float, str]], colour: bool,
    inverted: bool = False,
) -> np.ndarray:  # fmt: skip
    """uint8 (N,H,W), or (N,H,W,3), of a volume's values: a channel for each window; without one, values of 8 bits as they are."""
    if windows:
        made = [to_grey(values, padded, window) for window in windows]
    else:
        made = [values.astype(np.uint8)]
        if padded is not None:
            made[0][padded] = 0 if not inverted else 255
    if inverted:
        made = [255 - grey for grey in made]
        for grey in made:
            if padded is not None:
                grey[padded] = 0
    if len(made) > 1 or colour:
        return np.stack(made if len(made) > 1 else made * 3, axis=-1)
    return made[0]


def _require_units(path: Path, modality: str, rule: VolumeRule) -> None:
    """Refuse windows of Hounsfield units where values have others. Raises UserError."""
    named = [name for name in rule.window if name in WINDOWS]
    if named and modality and modality != "CT":
        raise UserError(
            f"{path}: dataset.window={named[0]} is in Hounsfield units, and this is {modality}, not CT. "
            f"dataset.window={PERCENTILES} is for values without a unit."
        )


def read_nifti_volume(path: Path, rule: VolumeRule, colour: bool) -> np.ndarray:
    """A NIfTI file, uint8 (N,H,W[,3]), as :func:`read_volume` gives a series. Raises UserError: it cannot be read."""
    values = read_nifti(path, rule.slices)
    windows = rule.window or (() if values.dtype == np.uint8 else (PERCENTILES,))
    return scaled(values, None, windows, colour)
