"""NIfTI volumes: whatever way their axes lie in the file, slices are those that a DICOM series of the place has."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel")
from data.images.phantom import bars, numbers  # noqa: E402

from xraylab.data.images.any_file import AnyFileSource  # noqa: E402
from xraylab.data.images.intensity import WINDOWS  # noqa: E402
from xraylab.data.images.nifti import nifti_shape, read_nifti  # noqa: E402
from xraylab.data.images.source import is_picture, stem  # noqa: E402
from xraylab.data.images.volumes import VolumeRule  # noqa: E402
from xraylab.errors import UserError  # noqa: E402


def ras(volume):
    """Axial slices as they are shown (slice, row to the back, column to the left), as an array to the right, front and head."""
    return np.ascontiguousarray(volume[:, ::-1, ::-1].transpose(2, 1, 0))


def save(path, values, zooms=(1, 1, 3), order=(0, 1, 2), flips=(False, False, False), **scale):
    """Write an array of RAS with its axes in another order and direction, and an affine that says so."""
    affine = np.diag([*zooms, 1.0])
    stored, columns = values.transpose(order), affine[:, [*order, 3]]
    for axis, flip in enumerate(flips):
        if flip:
            columns[:, 3] += columns[:, axis] * (stored.shape[axis] - 1)
            columns[:, axis] *= -1
            stored = np.flip(stored, axis)
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored), columns)
    if scale:
        image.header.set_slope_inter(scale["slope"], scale["inter"])
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_flipped_and_permuted_axes_make_no_difference(tmp_path, order):
    volume = bars(7)
    for k, flips in enumerate(product((False, True), repeat=3)):
        path = save(tmp_path / f"{k}.nii{'.gz' if k % 2 else ''}", ras(volume), order=order, flips=flips)
        assert np.array_equal(read_nifti(path, None), volume)
        assert nifti_shape(path, None) == volume.shape


def test_the_plane_is_asked_for_or_lies_across_the_largest_spacing(tmp_path):
    """Of an array whose values tell where they lie, each plane is shown as its DICOM series is."""
    x, y, z = np.meshgrid(np.arange(5), np.arange(6), np.arange(7), indexing="ij")  # to the right, the front and the head
    values = (100 * x + 10 * y + z).astype(np.int16)
    path = save(tmp_path / "a.nii", values, zooms=(4, 1, 1))
    sagittal = np.array([[[100 * i + 10 * j + k for j in range(6)[::-1]] for k in range(7)[::-1]] for i in range(5)[::-1]])
    coronal = np.array([[[100 * i + 10 * j + k for i in range(5)[::-1]] for k in range(7)[::-1]] for j in range(6)[::-1]])
    axial = np.array([[[100 * i + 10 * j + k for i in range(5)[::-1]] for j in range(6)[::-1]] for k in range(7)])
    assert np.array_equal(read_nifti(path, None), sagittal)
    for plane, expected in (("sagittal", sagittal), ("coronal", coronal), ("axial", axial)):
        assert np.array_equal(read_nifti(path, plane), expected)
        assert nifti_shape(path, plane) == expected.shape
    assert np.array_equal(read_nifti(save(tmp_path / "b.nii", values, zooms=(1, 1, 1)), None), axial)


def test_ct_is_windowed_and_bytes_stay_as_they_are(tmp_path):
    stored = np.random.default_rng(0).integers(0, 4000, (5, 24, 20)).astype(np.int16)
    path = save(tmp_path / "ct.nii.gz", ras(stored), slope=1.0, inter=-1024.0)
    hounsfield = stored.astype(float) - 1024
    for window in ("lung", "bone"):
        centre, width = WINDOWS[window]
        found = AnyFileSource(root=tmp_path, rule=VolumeRule(window=(window,))).read([path.name])
        expected = np.clip(((hounsfield - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255).round()
        assert np.array_equal(found, expected)
    both = AnyFileSource(True, root=tmp_path, rule=VolumeRule(window=("lung", "bone", "bone"))).read([path.name])
    assert np.array_equal(both[..., 1], found)
    low, high = np.percentile(hounsfield, (0.5, 99.5))
    plain = AnyFileSource(root=tmp_path).read([path.name])
    assert np.abs(plain - np.clip((hounsfield - low) / (high - low) * 255, 0, 255)).max() <= 0.51
    save(tmp_path / "eight.nii", ras(bars(6)))
    eight = AnyFileSource(root=tmp_path).read(["eight.nii"])
    assert eight.dtype == np.uint8
    assert numbers(eight) == list(range(6))


def test_what_cannot_be_read_says_why(tmp_path):
    four = np.zeros((4, 4, 4, 3), np.int16)
    nibabel.save(nibabel.Nifti1Image(four, np.eye(4)), tmp_path / "f.nii")
    with pytest.raises(UserError, match=r"f\.nii: of 4 dimensions \(4x4x4x3\), where a volume has three\. Save"):
        read_nifti(tmp_path / "f.nii", None)
    nibabel.save(nibabel.Nifti1Image(four[..., :1], np.eye(4)), tmp_path / "one.nii")
    assert read_nifti(tmp_path / "one.nii", None).shape == (4, 4, 4)
    whole = save(tmp_path / "w.nii", ras(bars(3))).read_bytes()
    for name, data in (("torn.nii", whole[:-90]), ("none.nii.gz", b"nothing"), ("empty.nii", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}: (not a whole NIfTI file|cannot be read)"):
            read_nifti(tmp_path / name, None)
    values = np.full((3, 4, 5), np.nan, np.float32)
    with pytest.raises(UserError, match="not all finite"):
        read_nifti(save(tmp_path / "nan.nii", values), None)


def test_a_study_is_called_as_its_file_without_both_suffixes(tmp_path):
    assert stem("a/b.1.nii.gz") == "a/b.1"
    assert stem("a/b.NII") == "a/b"
    assert is_picture("x.nii.gz")
