"""DICOM to grey: every photometric interpretation, rescaling, windows, frames and compression; and nothing of the patient."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from xraylab.data.images.dicom import dicom_shape, is_dicom, read_dicom, windowed
from xraylab.data.images.lookup_tables import looked_up
from xraylab.errors import UserError

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate, generate_frames  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)  # fmt: skip

SECRETS = ("DOE^JANE", "PID-314159", "19470101", "DR-WHO", "Hospital of Nowhere")
RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def dataset(pixels, photometric="MONOCHROME2", bits=None, frames=False, syntax=ExplicitVRLittleEndian, **elements):
    """A file with a patient and these pixels, (H,W), (N,H,W) with ``frames``, or with three samples (H,W,3)."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4.5"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.ReferringPhysicianName, ds.InstitutionName = SECRETS
    if frames:
        ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    ds.SamplesPerPixel = 3 if photometric in ("RGB", "YBR_FULL") else 1
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    big = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<"))
    ds.PixelData = big.tobytes() + b"\0" * (big.nbytes % 2)
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


@pytest.fixture
def write(tmp_path):
    """Write such a file; returns its path."""

    def write(*arguments, name="image.dcm", **options):
        made = arguments[0] if isinstance(arguments[0], Dataset) else dataset(*arguments, **options)
        made.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return write


def test_eight_bits_stay_as_they_are_and_monochrome1_is_inverted(write):
    assert np.array_equal(read_dicom(write(RAMP)), RAMP[None])
    assert np.array_equal(read_dicom(write(RAMP, "MONOCHROME1")), 255 - RAMP[None])
    colour = read_dicom(write(RAMP), colour=True)
    assert colour.shape == (1, 3, 4, 3)
    assert np.array_equal(colour[..., 1], RAMP[None])


def test_colours_become_grey_as_in_other_pictures(write):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(read_dicom(write(rgb, "RGB"))[0], grey)
    assert np.array_equal(read_dicom(write(rgb, "RGB"), colour=True)[0], rgb)
    planar = dataset(rgb, "RGB", PlanarConfiguration=1, PixelData=np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes())
    assert np.array_equal(read_dicom(write(planar))[0], grey)
    ybr = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    assert np.abs(read_dicom(write(ybr, "YBR_FULL"))[0].astype(int) - grey).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_are_looked_up(write, bits):
    index = np.array([[0, 1], [2, 3]], np.uint8)
    entries = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], np.uint16)
    kind = np.uint8 if bits == 8 else np.uint16
    tables = {
        f"{name}PaletteColorLookupTable{part}": value
        for i, name in enumerate(("Red", "Green", "Blue"))
        for part, value in (("Descriptor", [4, 0, bits]), ("Data", (entries[:, i] << (bits - 8)).astype(kind).tobytes()))
    }
    path = write(index, "PALETTE COLOR", **tables)
    assert np.array_equal(read_dicom(path, colour=True)[0].reshape(4, 3), entries)
    assert np.array_equal(read_dicom(path)[0], cv2.cvtColor(entries.astype(np.uint8).reshape(2, 2, 3), cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_without_a_window_the_least_value_is_black_and_the_largest_white(write, kind, bits):
    low = -(2 ** (bits - 2)) if kind == np.int16 else 3
    values = np.linspace(low, 2 ** (bits - 1) - 1, 12).round().astype(kind).reshape(3, 4)
    grey = read_dicom(write(values, bits=bits))[0].astype(float)
    expected = (values.astype(float) - values.min()) / (int(values.max()) - int(values.min())) * 255
    assert np.abs(grey - expected).max() <= 0.5
    inverted = read_dicom(write(values, "MONOCHROME1", bits=bits))[0]
    assert np.array_equal(inverted, 255 - grey)
    constant = read_dicom(write(np.full((3, 4), 7, kind), bits=bits))
    assert constant.max() == 0


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_is_applied_to_rescaled_values_as_pydicom_does(write, function):
    values = np.arange(-200, 1000, 100, dtype=np.int16).reshape(3, 4)
    elements = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [40, 9000], "WindowWidth": [400, 1]}
    if function:
        elements["VOILUTFunction"] = function
    ds = dataset(values, bits=12, **elements)
    reference = pydicom.pixels.apply_windowing(values * 2.0 - 1000, ds, index=0)
    low, high = 2.0 * -2048 - 1000, 2.0 * 2047 - 1000  # the range that pydicom scales to
    grey = read_dicom(write(ds))[0]
    assert np.abs(grey - (reference - low) / (high - low) * 255).max() <= 0.51
    assert 0 in grey
    assert 255 in grey or function == "SIGMOID"


def test_a_window_of_width_one_is_a_step():
    assert windowed(np.array([9.4, 9.6]), 10, 1).tolist() == [0, 1]
    assert windowed(np.array([0.0, 5, 10]), 5, 10, "LINEAR_EXACT").tolist() == [0, 0.5, 1]


def test_lookup_tables_are_used_before_windows_and_hold_at_their_ends(write):
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4, 10, 12], np.array([0, 4095, 1000, 2000], "<u2").tobytes()
    values = np.array([[0, 10, 11], [12, 13, 60000]], np.uint16)
    assert looked_up(values, lut)[0].tolist() == [[0, 0, 4095], [1000, 2000, 2000]]
    grey = read_dicom(write(values, VOILUTSequence=Sequence([lut]), WindowCenter=5, WindowWidth=2))[0]
    assert grey.tolist() == [[0, 0, 255], [62, 125, 125]]
    modality = Dataset()
    modality.LUTDescriptor, modality.ModalityLUTType = [3, 0, 16], "US"
    modality.LUTData = np.array([100, 0, 50], "<u2").tobytes()
    grey = read_dicom(write(np.array([[0, 1, 2]], np.uint16), ModalityLUTSequence=Sequence([modality])))[0]
    assert grey.tolist() == [[255, 0, 128]]


def test_frames_are_slices_and_share_one_scale(write):
    volume = np.arange(24, dtype=np.uint16).reshape(2, 3, 4) * 100
    path = write(volume, bits=12, frames=True)
    read = read_dicom(path)
    assert read.shape == dicom_shape(path) == (2, 3, 4)
    assert np.abs(read - volume / volume.max() * 255).max() <= 0.5
    assert read_dicom(write(volume[:1], bits=12, frames=True)).shape == (1, 3, 4)


def test_frames_have_rescaling_and_windows_of_their_own(write):
    def group(**sequences):
        item = Dataset()
        for keyword, elements in sequences.items():
            inner = Dataset()
            for name, value in elements.items():
                setattr(inner, name, value)
            setattr(item, keyword, Sequence([inner]))
        return item

    volume = np.stack([np.array([[0, 50, 100]], np.uint16)] * 2)
    shared = group(FrameVOILUTSequence={"WindowCenter": 50, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"})
    own = [
        group(PixelValueTransformationSequence={"RescaleSlope": slope, "RescaleIntercept": 0, "RescaleType": "US"})
        for slope in (1, 2)
    ]
    path = write(
        volume, frames=True, SharedFunctionalGroupsSequence=Sequence([shared]), PerFrameFunctionalGroupsSequence=Sequence(own)
    )
    assert read_dicom(path)[:, 0].tolist() == [[0, 128, 255], [0, 255, 255]]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless])
def test_syntaxes_without_loss_give_the_same_pixels(write, syntax):
    values = np.random.default_rng(1).integers(0, 4096, (2, 64, 72), dtype=np.uint16)
    expected = read_dicom(write(values, bits=12, frames=True, name="plain.dcm"))
    if syntax.is_compressed:
        made = dataset(values, bits=12, frames=True)
        made.compress(syntax)
    else:
        made = dataset(values, bits=12, frames=True, syntax=syntax)
    assert np.array_equal(read_dicom(write(made)), expected)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless])
def test_lossless_jpeg_gives_the_same_pixels(write, tmp_path, syntax):
    values = np.random.default_rng(1).integers(0, 4096, (16, 20), dtype=np.uint16)
    plain = write(values, bits=12, name="plain.dcm")
    assert lossless(plain, tmp_path / "packed.dcm", syntax).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read_dicom(tmp_path / "packed.dcm"), read_dicom(plain))


def lossless(plain, path, syntax):
    """A file compressed anew by gdcm, as pydicom reads it."""
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    kind = {JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1, JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless}
    change.SetTransferSyntax(gdcm.TransferSyntax(kind[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetFileName(str(path))
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return pydicom.dcmread(path)


def test_a_jpeg_inside_is_read(write):
    smooth = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (32, 40), dtype=np.uint8), (9, 9), 3)
    coded = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    made = dataset(smooth)
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.PixelData = encapsulate([coded])
    made["PixelData"].is_undefined_length = True
    assert np.abs(read_dicom(write(made))[0].astype(int) - smooth).max() < 12


@pytest.mark.parametrize("kind", ["baseline", "lossless"])
def test_a_jpeg_that_is_damaged_inside_is_refused_as_it_is_on_its_own(write, tmp_path, kind):
    rng, (y, x) = np.random.default_rng(3), np.mgrid[:128, :128]
    picture = np.clip(127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 13) + rng.normal(0, 4, x.shape), 0, 255).astype(np.uint8)
    if kind == "baseline":
        coded, syntax = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes(), JPEGBaseline8Bit
    else:
        packed = lossless(write(picture, name="plain.dcm"), tmp_path / "packed.dcm", JPEGLosslessSV1)
        coded, syntax = next(generate_frames(packed.PixelData, number_of_frames=1)), JPEGLosslessSV1

    def made(stream):
        file = dataset(picture)
        file.file_meta.TransferSyntaxUID = syntax
        file.PixelData = encapsulate([stream])
        file["PixelData"].is_undefined_length = True
        return write(file)

    assert np.abs(read_dicom(made(coded))[0].astype(int) - picture).max() < 25
    for at in range(len(coded) // 3, len(coded) - 800, len(coded) // 9):
        for torn in (coded[:at] + bytes(64) + coded[at + 64 :], coded[:at] + b"\xff\xd9"):
            with pytest.raises(UserError, match=r"image\.dcm: damaged inside \(Corrupt JPEG data"):
                read_dicom(made(torn))


def test_files_are_told_by_suffix_or_mark_and_old_ones_without_a_preamble_are_read(write, tmp_path):
    plain = write(RAMP, name="IM0001")
    assert is_dicom(plain)
    assert not is_dicom(plain.rename(tmp_path / "DICOMDIR"))
    made = dataset(RAMP, syntax=ImplicitVRLittleEndian)
    del made.file_meta
    with (tmp_path / "old.dcm").open("wb") as file:
        pydicom.dcmwrite(file, made, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert np.array_equal(read_dicom(tmp_path / "old.dcm"), RAMP[None])


def test_what_cannot_be_read_says_why_and_quotes_no_patient(write, tmp_path, recwarn, caplog):
    (tmp_path / "text.dcm").write_text(f"not DICOM at all, of {SECRETS[0]}")
    (tmp_path / "empty.dcm").write_bytes(b"")
    whole = write(RAMP, name="short.dcm").read_bytes()
    (tmp_path / "short.dcm").write_bytes(whole[:-6])
    report = dataset(RAMP)
    del report.PixelData
    write(report, name="report.dcm")
    film = dataset(RAMP)
    film.file_meta.TransferSyntaxUID = MPEG2MPML
    film.PixelData = encapsulate([b"\0\0\1\xb3"])
    film["PixelData"].is_undefined_length = True
    write(film, name="film.dcm")
    coded = dataset(RAMP)
    coded.file_meta.TransferSyntaxUID = JPEG2000Lossless
    coded.PixelData = encapsulate([SECRETS[0].encode() * 4])
    coded["PixelData"].is_undefined_length = True
    write(coded, name="coded.dcm")
    lossy = dataset(RAMP.astype(np.uint16), bits=12)
    lossy.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    lossy.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    lossy["PixelData"].is_undefined_length = True
    write(lossy, name="lossy.dcm")
    strange = write(RAMP, name="strange.dcm")
    strange.write_bytes(strange.read_bytes().replace(b"MONOCHROME2 ", b"DOE^JANE    "))
    for name, said in {
        "text.dcm": "no(t a whole DICOM file| pixels)",
        "empty.dcm": "no(t a whole DICOM file| pixels)",
        "short.dcm": "its pixels are cut short: 6 bytes of 12",
        "report.dcm": "it has no pixels",
        "film.dcm": r"compressed as MPEG2 Main Profile / Main Level \(1\.2\.840\.10008\.1\.2\.4\.100\), for which",
        "lossy.dcm": "its pixels cannot be decoded: they do not start as a stream",
        "coded.dcm": "its pixels cannot be decoded: they do not start as a stream",
        "strange.dcm": "photometric interpretation is none",
        "missing.dcm": "No such file",
    }.items():
        with pytest.raises(UserError, match=said) as refused:
            read_dicom(tmp_path / name)
        assert str(refused.value).startswith(str(tmp_path / name)), name
        assert not [s for s in SECRETS if s in str(refused.value)], name
    assert not [w for w in recwarn if any(s in str(w.message) for s in SECRETS)]
    assert not any(s in caplog.text for s in SECRETS)


def test_without_pydicom_it_says_what_to_install(write, monkeypatch):
    path = write(RAMP)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'xraylab\[dicom\]'"):
        read_dicom(path)
