"""Files of every kind that is read, pictures, arrays, DICOM and NIfTI, and series of slices: the source of one's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from xraylab.data.images.dicom import dicom_shape, is_dicom, read_dicom
from xraylab.data.images.nifti import is_nifti, nifti_shape
from xraylab.data.images.series import Volume
from xraylab.data.images.source import ARRAY, SUFFIXES, FileSource, Images, header_shape, suffix_of
from xraylab.data.images.volumes import VolumeRule, read_nifti_volume, read_volume
from xraylab.errors import UserError


class AnyFileSource(FileSource):
    """Source of files of every kind that is read, each of one image or, of arrays, DICOM and NIfTI, of a volume; and of series.

    Args:
        colour: read three channels, not one.
        bits: of 16-bit PNG and TIFF files, see :class:`FileSource`; DICOM files say theirs.
        volumes: images of a study are slices of one volume, as long as their sizes agree.
        root: references are paths relative to it; None: paths as given, of no dataset.
        rule: how values become grey, and how NIfTI volumes are sliced.
        series: references that stand for series of slices, and their slices.
    """

    def __init__(
        self, colour: bool = False, bits: int | None = None, volumes: bool = False, root: Path | None = None,
        rule: VolumeRule | None = None, series: Mapping[str, Volume] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(root or Path(), colour, bits)
        self.volumes, self.of_dataset = volumes, root is not None
        self.rule, self.series = rule or VolumeRule(), dict(series or {})

    def files(self, image: str) -> list[Path]:
        """The file behind a reference; of a series, those of its slices, in order."""
        if image not in self.series:
            return super().files(image)
        return [self.root / file for file in dict.fromkeys(file for file, _ in self.series[image].slices)]

    def places(self, image: str, count: int) -> list[tuple[str, int | None]]:
        """Of a series the file and, where that has several, the frame of each slice."""
        if image not in self.series:
            return super().places(image, count)
        slices = self.series[image].slices
        several = len({file for file, _ in slices}) < len(slices)
        return [(file, frame + 1 if several else None) for file, frame in slices]

    @property
    def recipe(self) -> list[object]:
        """The rule, where it is not the usual one or there are series, which it chose."""
        return [self.rule.saved()] if self.series or self.rule != VolumeRule() else []

    def read(self, images: Sequence[str]) -> Images:
        """uint8 (N,H,W[,3]) where all is one volume, else a list of (H,W[,3])."""
        stacks = [self._stack(image) for image in images]
        if len(stacks) == 1 and (len(stacks[0]) > 1 or images[0] in self.series or is_nifti(images[0])):
            return stacks[0]
        if self.volumes and len({stack.shape[1:] for stack in stacks}) == 1:
            return np.concatenate(stacks)
        return [image for stack in stacks for image in stack]

    def _stack(self, image: str) -> np.ndarray:
        """uint8 (N,H,W[,3])."""
        path, suffix = self.root / image, suffix_of(image)
        try:
            if image in self.series:
                return read_volume(self.root, self.series[image], self.rule, self.colour)
            if is_nifti(image):
                return read_nifti_volume(path, self.rule, self.colour)
            if suffix not in (*SUFFIXES, ARRAY) and is_dicom(path):
                return self._dicom(path)
            if self.rule.window:
                raise UserError(
                    f"{path}: dataset.window={','.join(self.rule.window)} is of DICOM and NIfTI, whose values it needs."
                )
            return _array(path, self.colour) if suffix == ARRAY else self._decode(image)[None]
        except UserError as error:
            if self.of_dataset:
                raise
            raise UserError(str(error).replace("dataset.bits", "bits")) from error.__cause__

    def _dicom(self, path: Path) -> np.ndarray:
        """A file as it says itself that it is shown, or by the rule's window."""
        if not self.rule.window:
            return read_dicom(path, self.colour)
        shape = dicom_shape(path)
        return read_volume(Path(), Volume.of_file(str(path), shape), self.rule, self.colour)

    def shape(self, image: str) -> tuple[int, int, int]:
        path, suffix = self.root / image, suffix_of(image)
        if image in self.series:
            return self.series[image].shape
        if is_nifti(image):
            return nifti_shape(path, self.rule.slices)
        if suffix == ARRAY:
            count, height, width = _array(path, self.colour).shape[:3]
            return count, height, width
        return dicom_shape(path) if suffix not in SUFFIXES and is_dicom(path) else header_shape(path, path)


def _array(path: Path, colour: bool) -> np.ndarray:
    """uint8 (N,H,W), or (N,H,W,3), of one image or a volume of slices."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'not a whole array'}.") from error
    except Exception:  # of as many kinds as there are things to be wrong in a header
        raise UserError(f"{path}: not a whole array.") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (2, 3, 4) or array.size == 0:
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path}: {what}, where uint8 (slices,height,width) on the scale 0-255 is wanted.")
    wanted = "(slices,height,width,3)" if colour else "(slices,height,width)"
    if array.ndim == 2 or (array.ndim == 3 and colour and array.shape[-1] == 3):
        array = array[None]
    elif array.ndim == 3 and array.shape[-1] < 5:  # channels, not slices that are so narrow
        raise UserError(f"{path}: uint8 {array.shape}, which seems to be {array.shape[-1]} channels, where {wanted} is wanted.")
    if array.ndim == 3:
        return np.repeat(array[..., None], 3, axis=-1) if colour else array
    if not colour or array.shape[-1] != 3:
        raise UserError(f"{path}: uint8 {array.shape}, where {wanted} is wanted.")
    return array
