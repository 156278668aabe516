"""One window or range a volume, against the formulas of the standard and of numpy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydicom")
from data.images.phantom import bars, write_series
from pydicom.pixels import apply_voi_lut

from xraylab.data.images.any_file import AnyFileSource
from xraylab.data.images.intensity import WINDOWS, check_window, to_grey
from xraylab.data.images.volumes import VolumeRule, studies_of_series
from xraylab.errors import UserError

RNG = np.random.default_rng(0)


def read(folder, colour=False, **rule):
    made = VolumeRule(**rule)
    studies = studies_of_series(folder, {"s": sorted(p.name for p in folder.iterdir())}, made)
    return AnyFileSource(colour, root=folder, rule=made, series=studies.volumes).read(studies.images["s"])


def linear(values, centre, width):
    """DICOM PS3.3 C.11.2.1.2.1."""
    scaled = ((values - (centre - 0.5)) / (width - 1) + 0.5) * 255
    return np.clip(scaled, 0, 255).round()


def test_a_named_window_is_that_of_the_standard_in_hounsfield_units(tmp_path):
    stored = RNG.integers(0, 4096, (5, 24, 20)).astype(np.uint16)
    write_series(tmp_path, stored, modality="CT", RescaleIntercept=-1024, RescaleSlope=1, WindowCenter=0, WindowWidth=10)
    hounsfield = stored.astype(float) - 1024
    for name, (centre, width) in WINDOWS.items():
        assert np.array_equal(read(tmp_path, window=(name,)), linear(hounsfield, centre, width))
    three = read(tmp_path, colour=True, window=("lung", "bone", "brain"))
    assert three.shape == (5, 24, 20, 3)
    for k, name in enumerate(("lung", "bone", "brain")):
        assert np.array_equal(three[..., k], linear(hounsfield, *WINDOWS[name]))
    assert len(np.unique(read(tmp_path))) > 2  # without a name, the window that every file says
    from pydicom import dcmread

    ds = dcmread(next(tmp_path.iterdir()))
    ds.WindowCenter, ds.WindowWidth = WINDOWS["bone"]
    theirs = apply_voi_lut(ds.pixel_array.astype(float) - 1024, ds)
    ours = to_grey(ds.pixel_array[None].astype(float) - 1024, None, "bone")[0]
    low, high = theirs.min(), theirs.max()
    assert np.abs(ours - (theirs - low) / (high - low) * 255).max() <= 0.51


def test_percentiles_are_of_the_volume_and_not_of_a_slice(tmp_path):
    stored = (RNG.random((6, 24, 20)) * 200 * np.arange(1, 7)[:, None, None]).astype(np.uint16)
    write_series(tmp_path, stored)
    low, high = np.percentile(stored, (0.5, 99.5))
    expected = np.clip((stored - low) / (high - low) * 255, 0, 255).round()
    for window in ((), ("percentiles",)):
        assert np.array_equal(read(tmp_path, window=window), expected)
    assert expected[0].max() < 60 < expected[5].max()


def test_windows_that_slices_do_not_share_are_not_used(tmp_path):
    """As scanners write them for MR, each by its own slice: the volume has one scale all the same."""
    stored = RNG.integers(0, 1000, (4, 24, 20)).astype(np.uint16)
    write_series(tmp_path / "one", stored, WindowCenter=500, WindowWidth=400)
    assert np.array_equal(read(tmp_path / "one"), linear(stored, 500, 400))
    for k, image in enumerate(stored):
        at = {"places": [3 * k], "order": [k], "names": [f"{k}"]}
        write_series(tmp_path / "own", image[None], **at, WindowCenter=500, WindowWidth=400 + k)
    low, high = np.percentile(stored, (0.5, 99.5))
    assert np.array_equal(read(tmp_path / "own"), np.clip((stored - low) / (high - low) * 255, 0, 255).round())


def test_padding_counts_for_no_scale_and_is_black(tmp_path):
    stored = RNG.integers(0, 1000, (4, 24, 20)).astype(np.int16)
    stored[:, :6] = -2000
    write_series(tmp_path, stored, PixelPaddingValue=-2000)
    low, high = np.percentile(stored[:, 6:], (0.5, 99.5))
    found = read(tmp_path)
    assert not found[:, :6].any()
    assert np.array_equal(found[:, 6:], np.clip((stored[:, 6:] - low) / (high - low) * 255, 0, 255).round())


def test_eight_bits_stay_as_they_are_and_are_inverted_where_they_say_so(tmp_path):
    write_series(tmp_path / "a", bars(4))
    write_series(tmp_path / "b", bars(4), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(tmp_path / "a"), bars(4))
    assert np.array_equal(read(tmp_path / "b"), 255 - bars(4))
    assert np.array_equal(read(tmp_path / "a", colour=True), np.repeat(bars(4)[..., None], 3, axis=-1))


def test_windows_of_hounsfield_units_are_refused_of_what_has_none(tmp_path):
    write_series(tmp_path, bars(4), modality="MR")
    with pytest.raises(UserError, match=r"dataset\.window=lung is in Hounsfield units, and this is MR.*percentiles"):
        read(tmp_path, window=("lung",))


def test_windows_that_are_none_are_refused():
    assert check_window(None) == ()
    assert check_window("lung") == ("lung",)
    with pytest.raises(UserError, match=r"dataset\.window=lungs: it is one of lung, .* Did you mean lung\?"):
        check_window("lungs")
    with pytest.raises(UserError, match=r"\[lung,bone\]: it is one window, or three"):
        check_window(["lung", "bone"])
