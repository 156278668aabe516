"""Slices in order, and series by rule, of phantoms whose slices say their number; whatever files are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")
from data.images.phantom import OF_PLANE, bars, header, normal, numbers, write_enhanced, write_series

from xraylab.data.images.any_file import AnyFileSource
from xraylab.data.images.series import LOCALISERS, NO_HEADER, NO_SLICE, normal_of, slices_of
from xraylab.data.images.volumes import VolumeRule, headers_of, studies_of_series
from xraylab.errors import UserError


def oblique():
    row = np.array([1, 0.3, 0.1]) / np.linalg.norm([1, 0.3, 0.1])
    column = np.cross([0.2, -0.1, 1], row)
    return tuple(float(x) for x in (*row, *(column / np.linalg.norm(column))))


def found(folder, series="largest", **options):
    """The one study of a folder: references and slices as they are read, or what is wrong with it."""
    rule = VolumeRule(series, **options)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "DICOMDIR")
    studies = studies_of_series(folder, {"s": files}, rule)
    if studies.faults:
        return next(iter(studies.faults))
    source = AnyFileSource(root=folder, rule=rule, series=studies.volumes)
    return {image: source.read([image]) for image in studies.images["s"]}


@pytest.mark.parametrize("names", ["shuffled", "backwards"])
@pytest.mark.parametrize(("orientation", "plane"), [*((o, p) for p, o in OF_PLANE.items()), (oblique(), "axial")])
def test_places_decide_the_order_and_no_name_or_number_does(tmp_path, names, orientation, plane):
    """To the left, the back and the head of the patient, which coronal planes of this orientation run to, and others do too."""
    volume = bars(9)
    backwards = [f"{k:03d}.dcm" for k in range(9)][::-1]
    write_series(tmp_path, volume, orientation, names=backwards if names == "backwards" else None, order=range(9)[::-1])
    along = float(normal_of(orientation) @ normal(orientation))
    assert along == pytest.approx(-1 if plane == "sagittal" else 1)  # whose normal, as here, runs to the right
    expected = volume if along > 0 else volume[::-1]
    ((image, pixels),) = found(tmp_path).items()
    assert image == f"s#{plane}"
    assert np.array_equal(pixels, expected)
    assert numbers(pixels) == list(range(9))[:: round(along)]


def test_a_reversed_normal_changes_no_order(tmp_path):
    """Rows that run the other way turn the normal; the first slice is still the one at the feet."""
    volume = bars(6)
    write_series(tmp_path, volume, (1, 0, 0, 0, -1, 0))  # slice k lies k spacings towards the feet
    ((_, pixels),) = found(tmp_path).items()
    assert numbers(pixels) == [5, 4, 3, 2, 1, 0]


def test_without_places_the_instance_number_decides_and_that_is_said(tmp_path, caplog):
    write_series(tmp_path, bars(5), None, order=[3, 4, 5, 6, 7])
    ((image, pixels),) = found(tmp_path).items()
    assert (image, numbers(pixels)) == ("s#series", [0, 1, 2, 3, 4])
    assert "1 volumes of whose slices places are missing, in the order of InstanceNumber" in caplog.text


def test_neither_places_nor_numbers_are_refused(tmp_path):
    for k, image in enumerate(bars(5)):
        header(image, f"1.2.3.{k}").save_as(tmp_path / f"{k}", enforce_file_format=True)
    assert "neither places nor InstanceNumbers" in found(tmp_path)


def test_a_slice_that_is_there_twice_counts_once(tmp_path, caplog):
    volume = bars(6)
    paths = write_series(tmp_path, volume)
    (tmp_path / "copy").write_bytes(paths[2].read_bytes())
    ds = header(volume[4], "1.9.9.9", ImagePositionPatient=[5, 5, 17], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    ds.save_as(tmp_path / "again", enforce_file_format=True)  # sent again under another UID
    ((_, pixels),) = found(tmp_path).items()
    assert numbers(pixels) == list(range(6))
    assert "2 slices that are there twice" in caplog.text


def test_several_images_at_one_place_are_refused(tmp_path):
    write_series(tmp_path / "a", bars(4))
    write_series(tmp_path / "b", bars(4) // 2, order=range(10, 14))
    assert "several images at one place" in found(tmp_path)


def test_a_gap_is_said(tmp_path, caplog):
    write_series(tmp_path, bars(6), places=[0, 3, 6, 12, 15, 18])
    ((_, pixels),) = found(tmp_path).items()
    assert numbers(pixels) == list(range(6))
    assert "1 volumes with gaps, their slices not evenly spaced" in caplog.text


def test_localisers_and_scouts_are_left_out_with_counts(tmp_path, caplog):
    volume = bars(6)
    write_series(tmp_path / "0", volume[:3] // 2, series="1.7", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "1", volume)
    for k, plane in enumerate(("coronal", "sagittal")):  # of the series itself, without a word
        write_series(tmp_path / plane, volume[:2] // 3, OF_PLANE[plane], order=[20 + k, 30 + k])
    ((_, pixels),) = found(tmp_path).items()
    assert np.array_equal(pixels, volume)
    assert f"7 {LOCALISERS}" in caplog.text


def test_a_series_of_mixed_orientations_is_refused(tmp_path):
    for plane, orientation in OF_PLANE.items():
        write_series(tmp_path / plane, bars(5), orientation, order=range(5) if plane == "axial" else range(9, 14))
    assert "mixed orientations" in found(tmp_path)


def test_series_are_chosen_by_size_plane_or_description(tmp_path, caplog):
    caplog.set_level("INFO")
    axial, coronal, other = bars(7), bars(5) + 1, bars(6) // 2
    write_series(tmp_path / "a", axial, series="1.5", SeriesDescription="t1 tse tra", SeriesNumber=3)
    write_series(tmp_path / "b", coronal, OF_PLANE["coronal"], series="1.6", SeriesDescription="PD fs cor", SeriesNumber=2)
    write_series(tmp_path / "c", other, series="1.4", SeriesDescription="T2 tra", SeriesNumber=1)
    assert np.array_equal(found(tmp_path)["s#axial"], axial)
    assert "series: of 1 studies, by dataset.series=largest: 1 axial MR" in caplog.text
    assert "2 series that are not chosen" in caplog.text
    assert np.array_equal(found(tmp_path, "coronal")["s#coronal"], coronal)
    assert np.array_equal(found(tmp_path, "^t2")["s#axial"], other)
    assert np.array_equal(found(tmp_path, "fs")["s#coronal"], coronal)
    assert found(tmp_path, "sagittal") == "studies without a series that dataset.series=sagittal chooses"
    assert found(tmp_path, "planes") == "studies without a series that is sagittal (dataset.series=planes)"
    write_series(tmp_path / "d", bars(3), OF_PLANE["sagittal"], series="1.8")
    assert [*found(tmp_path, "planes")] == ["s#axial", "s#coronal", "s#sagittal"]


def test_of_series_of_one_size_the_first_is_taken_whatever_it_is_called(tmp_path):
    for top, names in ((tmp_path / "one", ("a", "b")), (tmp_path / "two", ("b", "a"))):
        write_series(top / names[0], bars(5), series="1.9", SeriesNumber=4)
        write_series(top / names[1], bars(5) // 2, series="1.1", SeriesNumber=7)
        assert np.array_equal(found(top)["s#axial"], bars(5))


def test_frames_of_an_enhanced_file_are_put_in_order(tmp_path):
    volume = bars(8)
    write_enhanced(tmp_path / "one", volume, order=[5, 2, 7, 0, 1, 3, 6, 4])
    ((_, pixels),) = found(tmp_path).items()
    assert np.array_equal(pixels, volume)


def test_what_is_no_slice_is_counted_and_what_is_broken_is_a_fault(tmp_path, caplog):
    write_series(tmp_path, bars(4))
    colour = header(np.zeros((4, 4), np.uint8), "1.8", SamplesPerPixel=3)
    colour.save_as(tmp_path / "dose", enforce_file_format=True)
    assert numbers(found(tmp_path)["s#axial"]) == [0, 1, 2, 3]
    assert f"1 {NO_SLICE}" in caplog.text
    (tmp_path / "torn.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    assert found(tmp_path) == f"studies with {NO_HEADER}"


def test_two_studies_in_a_folder_are_refused(tmp_path):
    write_series(tmp_path / "a", bars(4), study="1.2")
    write_series(tmp_path / "b", bars(4), series="1.3", study="1.4")
    assert "several DICOM studies" in found(tmp_path)


def test_headers_of_a_volume_are_those_that_were_written(tmp_path):
    paths = write_series(tmp_path, bars(3), SeriesDescription="t1", SeriesNumber=2)
    (one,) = slices_of(paths[1], "f")
    assert (one.shape, one.modality, one.of_series, one.position) == ((24, 20), "MR", (2, "t1"), (5, 5, 8))
    assert headers_of(tmp_path, [p.name for p in paths])[paths[1].name] == [one._replace(file=paths[1].name)]


def test_pydicoms_own_disk_is_read():
    """Head CT of five slices from the top down, with two scouts; views from all round, of which none is a volume."""
    from pydicom.data import get_testdata_file

    disk = Path(get_testdata_file("DICOMDIR", download=False)).parent

    def of(folder):
        return {folder: sorted(p.relative_to(disk).as_posix() for p in (disk / folder).rglob("*") if p.is_file())}

    studies = studies_of_series(disk, of("98892001"), VolumeRule())
    (volume,) = studies.volumes.values()
    assert [file.rpartition("/")[2] for file, _ in volume.slices] == ["3353", "3023", "2693", "2392", "2062"]
    assert (volume.shape, volume.plane, volume.modality, volume.said) == ((5, 16, 16), "axial", "CT", ())
    assert not studies_of_series(disk, of("98892003/MR700"), VolumeRule()).volumes
    assert list(studies_of_series(disk, of("98892003"), VolumeRule()).faults.values()) == [["98892003"]]


@pytest.mark.parametrize("series", ["(", "[a"])
def test_a_rule_that_is_none_is_refused(series):
    with pytest.raises(UserError, match=r"dataset\.series="):
        VolumeRule(series)
    with pytest.raises(UserError, match=r"dataset\.slices=oblique: it is axial"):
        VolumeRule(slices="oblique")
