"""NIfTI files as volumes, read with nibabel (the extra ``nifti``).

Axes are brought to the patient's right, front and head (RAS), as ``nibabel.as_closest_canonical`` does, and the axis that
slices are taken along comes first. Slices lie in the order of a DICOM series in the same place, to the left, back and head, and
are shown as it is: rows from the front to the back, or from the head to the feet; columns from the patient's right to the left,
or from the front to the back.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from xraylab.data.images.headers import MAX_PIXELS
from xraylab.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
AXES = ("sagittal", "coronal", "axial")  # the planes across the axes to the right, the front and the head
#: of each plane, where slices, rows and columns come from: an axis of RAS, and whether it runs against it
VIEWS = {
    "axial": ((2, False), (1, True), (0, True)),
    "coronal": ((1, True), (2, True), (0, True)),
    "sagittal": ((0, True), (2, True), (1, True)),
}


def is_nifti(path: Path | str) -> bool:
    return str(path).lower().endswith(SUFFIXES)


def nifti_shape(path: Path, plane: str | None) -> tuple[int, int, int]:
    """(N,H,W) of the slices, from the header alone.

    Args:
        plane: in which slices are taken; None: across the axis of the largest spacing, of several such the last one.

    Raises:
        UserError: it cannot be read.
    """
    image = _opened(path)
    sides = image.shape
    slices, rows, columns = (sides[axes_of(image)[axis]] for axis, _ in VIEWS[plane or plane_of(image)])
    return slices, rows, columns


def read_nifti(path: Path, plane: str | None) -> np.ndarray:
    """The values of a file, rescaled as its header says.

    Args:
        plane: as of :func:`nifti_shape`.

    Returns:
        (N,H,W), uint8 where the file holds such and says no scale, else float32.

    Raises:
        UserError: nibabel is not installed; the file cannot be read, is not of three dimensions, or has values that are no
            finite numbers.
    """
    image = _opened(path)
    data = image.dataobj
    plain = image.get_data_dtype() == np.uint8 and (getattr(data, "slope", 1), getattr(data, "inter", 0)) == (1, 0)
    try:
        values = np.asarray(data) if plain else image.get_fdata(dtype=np.float32, caching="unchanged")
    except MemoryError:
        raise UserError(f"{path}: memory is too small for its values.") from None
    except Exception:  # of as many kinds as there are things to be wrong in a file
        raise UserError(f"{path}: not a whole NIfTI file.") from None
    if not np.isfinite(values).all():
        raise UserError(f"{path}: its values are not all finite numbers.")
    values = oriented(values, image)
    view = VIEWS[plane or plane_of(image)]
    values = values.transpose([axis for axis, _ in view])
    return np.ascontiguousarray(values[tuple(slice(None, None, -1 if back else 1) for _, back in view)])


def axes_of(image: Any) -> list[int]:
    """The axes of a file that run nearest to the right or left, the front or back, the head or feet."""
    from nibabel.orientations import io_orientation

    nearest = io_orientation(image.affine)[:, 0].astype(int).tolist()
    return [nearest.index(axis) for axis in range(3)]


def plane_of(image: Any) -> str:
    """The plane across the axis of the largest spacing, of several such axes the one to the head."""
    zooms = [round(float(image.header.get_zooms()[axis]), 3) for axis in axes_of(image)]
    return AXES[max(range(3), key=lambda axis: (zooms[axis], axis))]


def oriented(values: np.ndarray, image: Any) -> np.ndarray:
    """Values with axes in the order and the direction of RAS, as nibabel says by the header's affine."""
    from nibabel.orientations import apply_orientation, io_orientation

    return np.asarray(apply_orientation(values, io_orientation(image.affine)))


def _opened(path: Path) -> Any:
    """The file, of whose values none is read. Raises UserError."""
    if not find_spec("nibabel"):
        raise UserError(f"{path}: reading NIfTI needs nibabel: pip install 'xraylab[nifti]'.")
    import nibabel

    try:
        image: Any = nibabel.load(path)
        shape = image.shape
        unplaced = not np.isfinite(image.affine).all() or not np.linalg.det(image.affine[:3, :3])
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'not a NIfTI file'}.") from error
    except Exception:  # of as many kinds as there are things to be wrong in a header
        raise UserError(f"{path}: not a whole NIfTI file.") from None
    if len(shape) == 4 and shape[3] == 1:
        image, shape = image.slicer[..., 0], shape[:3]
    if len(shape) != 3:
        raise UserError(
            f"{path}: of {len(shape)} dimensions ({'x'.join(map(str, shape))}), where a volume has three. "
            "Save the volume that is wanted as a file of its own."
        )
    if unplaced:
        raise UserError(f"{path}: its affine places no axes. Mend its header.")
    if min(shape) < 1 or max(np.prod(shape) // side for side in shape) > MAX_PIXELS:
        raise UserError(f"{path}: its header says {'x'.join(map(str, shape))} values, of which slices have 1 to {MAX_PIXELS:,}.")
    return image
