"""A phantom whose slices say their number, written as hospitals write volumes: DICOM series, enhanced files, disks and NIfTI."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

OF_PLANE = {
    "axial": (1, 0, 0, 0, 1, 0), "coronal": (1, 0, 0, 0, 0, -1), "sagittal": (0, 1, 0, 0, 0, -1),
}  # fmt: skip
SLICE, ENHANCED = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"  # MR, enhanced MR
DATED = {"StudyDate": "20260131", "StudyTime": "1200", "StudyID": "1", "SeriesNumber": 1}  # which a DICOMDIR needs
PATIENT = {"PatientName": "DOE^JANE", "PatientID": "PID-314159"}


def bars(n, height=24, width=20, dtype=np.uint8, base=0):
    """(n,H,W): slice k says k by a column of bits, and by a grey block; 0 and the type's 255 stand in each."""
    volume = np.full((n, height, width), base, dtype)
    for k in range(n):
        volume[k, :8, 0] = [255 if k >> bit & 1 else base for bit in range(8)]
        volume[k, 10:16, 4:10] = 40 + 5 * k
        volume[k, -1, -2:] = base, 255
    return volume


def numbers(volume):
    """The number that each slice of :func:`bars` says."""
    return [int(sum(1 << bit for bit in range(8) if image[bit, 0] > 128)) for image in volume]


def normal(orientation):
    return np.cross(orientation[:3], orientation[3:])


def header(pixels, sop, series="1.2.3", study="1.2", modality="MR", sop_class=SLICE, **elements):
    """A grey file of these pixels, (H,W) or, of several frames, (N,H,W)."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = sop
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.Modality = series, study, modality
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    for keyword, value in {**DATED, **PATIENT, **elements}.items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def write_series(
    folder, volume, orientation=OF_PLANE["axial"], series="1.2.3", spacing=3.0, names=None, order=None, places=None, **elements
):
    """A file a slice, in ``folder``; returns the paths in the order of the slices.

    Args:
        volume: (N,H,W); slice k lies k spacings along the normal, which :func:`normal` of ``orientation`` points along.
        names: of the slices' files; None: of a shuffle, whose order is not theirs.
        order: InstanceNumbers; None: shuffled too.
        places: mm along the normal of each; None: evenly spaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n, rng = len(volume), np.random.default_rng(len(volume))
    names = [f"IM{k:04d}" for k in rng.permutation(n)] if names is None else names
    order = rng.permutation(n) if order is None else order
    places = spacing * np.arange(n) if places is None else places
    paths = []
    for k in range(n):
        at = {} if orientation is None else {
            "ImagePositionPatient": [round(float(x), 6) for x in normal(orientation) * places[k] + 5],
            "ImageOrientationPatient": list(orientation),
        }  # fmt: skip
        ds = header(volume[k], f"{series}.{int(order[k]) + 1}", series, InstanceNumber=int(order[k]), **{**at, **elements})
        ds.save_as(folder / names[k], enforce_file_format=True)
        paths.append(folder / names[k])
    return paths


def write_enhanced(path, volume, orientation=OF_PLANE["axial"], order=None, series="1.2.3", spacing=3.0, **elements):
    """One file of all slices, whose frames are in another order: ``order`` of them, or a shuffle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(1).permutation(len(volume)) if order is None else order
    groups = []
    for k in order:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = [round(float(x), 6) for x in normal(orientation) * k * spacing]
        group.PlanePositionSequence = Sequence([place])
        groups.append(group)
    shared, plane = Dataset(), Dataset()
    plane.ImageOrientationPatient = list(orientation)
    shared.PlaneOrientationSequence = Sequence([plane])
    ds = header(
        np.ascontiguousarray(volume[order]), f"{series}.1", series, sop_class=ENHANCED, NumberOfFrames=len(volume),
        SharedFunctionalGroupsSequence=Sequence([shared]), PerFrameFunctionalGroupsSequence=Sequence(groups), **elements,
    )  # fmt: skip
    ds.save_as(path, enforce_file_format=True)
    return path
