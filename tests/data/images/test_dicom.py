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


GRADIENT = np.arange(0, 4096, 16, dtype=np.uint16).reshape(8, 32)


def near(read, expected):
    assert read.shape == expected.shape
    assert np.abs(read - expected).max() <= 0.51


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -100), (0.1, 7), (-1, 255), (-0.5, 3)])
def test_eight_bits_are_turned_by_a_slope_below_zero(write, slope, intercept):
    values = (GRADIENT // 16).astype(np.uint8)
    expected = values if slope > 0 else 255 - values
    rescaled = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    assert np.array_equal(read_dicom(write(values, **rescaled))[0], expected)
    assert np.array_equal(read_dicom(write(values, "MONOCHROME1", **rescaled))[0], 255 - expected)
    windowed_values = np.clip((values * float(slope) + intercept - 99.5) / 49 + 0.5, 0, 1) * 255
    near(read_dicom(write(values, WindowCenter=100, WindowWidth=50, **rescaled))[0], windowed_values)


def test_eight_bits_go_through_their_modality_table(write):
    values = (GRADIENT // 16).astype(np.uint8)
    for bits, entries in ((8, 200 - np.arange(200)), (16, 4000 - 20 * np.arange(200))):
        lut = Dataset()
        lut.LUTDescriptor, lut.ModalityLUTType = [200, 0, bits], "US"
        lut.LUTData = entries.astype("u1" if bits == 8 else "<u2").tobytes()
        looked = entries[np.minimum(values, 199)]
        expected = looked if bits == 8 else (looked - looked.min()) / (looked.max() - looked.min()) * 255
        near(read_dicom(write(values, ModalityLUTSequence=Sequence([lut])))[0], expected)


def test_a_rescaling_that_leaves_no_picture_is_refused(write):
    with pytest.raises(UserError, match=r"image.dcm: its rescale slope is 0 and its intercept 5, which leave no picture"):
        read_dicom(write(GRADIENT, bits=12, RescaleSlope=0, RescaleIntercept=5))


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    ("kind", "padding", "ends", "coded"),
    [
        (np.uint16, [0], (0, None), "US"),
        (np.uint16, [0, 3, 5], (0, 5), "US"),
        (np.uint16, [0, 3, 5], (5, 0), "US"),
        (np.uint16, [65535], (65535, None), "US"),
        (np.int16, [-2000], (-2000, None), "SS"),
        (np.int16, [-2000], (63536, None), "US"),  # as many scanners code it
        (np.int16, [-2000, -1990], (-2000, -1990), "SS"),
    ],
)
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_padding_is_background_and_counts_for_no_scale(write, photometric, kind, padding, ends, coded, window, syntax):
    if syntax == ImplicitVRLittleEndian and (coded == "US") != (kind == np.uint16):
        pytest.skip("an implicit VR is not written")
    values = (GRADIENT // 4 + 1000).astype(kind)
    values[0, : len(padding)] = padding
    image = values[1:].astype(float)
    made = dataset(values, photometric, syntax=syntax, RescaleSlope=2, RescaleIntercept=-50)
    made.add_new("PixelPaddingValue", coded, ends[0])
    if ends[1] is not None:
        made.add_new("PixelPaddingRangeLimit", coded, ends[1])
    low, high = values[0, len(padding)], image.max()
    if window:
        low, high = 1100, 1900
        made.WindowCenter, made.WindowWidth, made.VOILUTFunction = low + high - 50, 2 * (high - low), "LINEAR_EXACT"
    expected = np.clip((values.astype(float) - low) / (float(high) - low), 0, 1) * 255
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    expected[0, : len(padding)] = 0
    near(read_dicom(write(made))[0], expected)


def test_padding_of_eight_bits_of_floats_and_of_everything(write):
    values = (GRADIENT // 16).astype(np.uint8)
    expected = np.where(values == 200, 0, values)
    assert np.array_equal(read_dicom(write(values, PixelPaddingValue=200))[0], expected)
    assert np.array_equal(read_dicom(write(values, PixelPaddingValue=None))[0], values)
    assert not read_dicom(write(np.full_like(GRADIENT, 9), PixelPaddingValue=9)).any()
    real = GRADIENT.astype(np.float32) / 4080
    expected = np.clip((real - real[0, 4]) / (1 - real[0, 4]), 0, 1) * 255
    for filler in (-999.0, np.nan):
        real[0, :4] = filler
        made = dataset(GRADIENT, FloatPixelPaddingValue=filler, FloatPixelData=real.astype("<f4").tobytes())
        made.BitsAllocated = 32
        for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(made, name)
        near(read_dicom(write(made))[0], expected)
    del made.FloatPixelPaddingValue
    with pytest.raises(UserError, match="its pixels are not all finite numbers, nor named as padding"):
        read_dicom(write(made))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("high", [11, 13, 15])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_bits_beside_those_that_are_stored_are_no_part_of_a_value(write, syntax, high, kind):
    """DICOM PS3.5 8.1.1: of 16 bits 12 are stored, below the high bit; overlays may lie in the rest."""
    others = np.random.default_rng(0).integers(0, 2**16, GRADIENT.shape, dtype=np.uint16)
    mask = np.uint16(0xFFF << (high - 11))
    whole = ((GRADIENT ^ (2048 if kind == np.int16 else 0)) << (high - 11)) & mask | others & ~mask
    made = dataset(whole.astype(np.uint16).view(kind), bits=12)
    made.HighBit = high
    if syntax == RLELossless:
        made.compress(syntax)
    elif syntax == ExplicitVRBigEndian:
        made = dataset(whole.astype(np.uint16).view(kind), bits=12, syntax=syntax)
        made.HighBit = high
    near(read_dicom(write(made))[0], GRADIENT / 4080 * 255)


def test_a_high_bit_that_contradicts_the_values_is_refused(write):
    with pytest.raises(UserError, match=r"its high bit is 15, with 12 bits stored, .* lowest bits\. Set HighBit to 11"):
        read_dicom(write(GRADIENT + np.uint16(3), bits=12, HighBit=15))
    near(read_dicom(write(GRADIENT, bits=12, HighBit=7))[0], GRADIENT / 4080 * 255)


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_eight_bits_in_words_of_either_order(write, syntax):
    values = np.random.default_rng(3).integers(0, 256, (5, 6), dtype=np.uint8)
    made = dataset(values, syntax=syntax)
    made["PixelData"].VR = "OW"
    if syntax == ExplicitVRBigEndian:
        made.PixelData = np.frombuffer(values.tobytes(), "<u2").astype(">u2").tobytes()
    assert np.array_equal(read_dicom(write(made))[0], values)


def test_functions_of_narrow_windows_and_what_is_none(write):
    unit = {"bits": 12, "RescaleSlope": 1 / 4080, "RescaleIntercept": 0, "WindowCenter": 0.5}
    values = GRADIENT / 4080
    exact = np.clip((values - 0.5) / 0.5 + 0.5, 0, 1) * 255
    near(read_dicom(write(GRADIENT, WindowWidth=0.5, VOILUTFunction="LINEAR_EXACT", **unit))[0], exact)
    sigmoid = 255 / (1 + np.exp(-4 * (values - 0.5) / 0.2))
    near(read_dicom(write(GRADIENT, WindowWidth=0.2, VOILUTFunction="SIGMOID", **unit))[0], sigmoid)
    near(read_dicom(write(GRADIENT, bits=12, WindowCenter="", WindowWidth=""))[0], values * 255)
    with pytest.raises(UserError, match="its VOI LUT function is none of LINEAR, LINEAR_EXACT, SIGMOID"):
        read_dicom(write(GRADIENT, bits=12, WindowCenter=9, WindowWidth=9, VOILUTFunction="DOE^JANE"))


def test_frames_have_tables_and_scales_of_their_own(write):
    def groups(sequence, *items):
        made = []
        for elements in items:
            inner = Dataset()
            for name, value in elements.items():
                setattr(inner, name, value)
            made.append(Dataset())
            setattr(made[-1], sequence, Sequence([inner]))
        return Sequence(made)

    luts = []
    for entries in (np.arange(4096), 4095 - np.arange(4096)):
        luts.append(Dataset())
        luts[-1].LUTDescriptor, luts[-1].LUTData = [4096, 0, 12], entries.astype("<u2").tobytes()
    two = np.stack([GRADIENT, GRADIENT])
    own = groups("FrameVOILUTSequence", *({"VOILUTSequence": Sequence([lut])} for lut in luts))
    read = read_dicom(write(two, bits=12, frames=True, PerFrameFunctionalGroupsSequence=own))
    near(read, np.stack([GRADIENT, 4095 - GRADIENT]) / 4095 * 255)
    slopes = groups("PixelValueTransformationSequence", *({"RescaleSlope": k, "RescaleIntercept": 0} for k in (1, 2)))
    for values, bits in ((two, 12), ((two // 16).astype(np.uint8), 8)):
        read = read_dicom(write(values, bits=bits, frames=True, PerFrameFunctionalGroupsSequence=slopes))
        near(read, np.stack([GRADIENT / 2, GRADIENT]) / 4080 * 255)
    windows = groups("FrameVOILUTSequence", *({"WindowCenter": 2048, "WindowWidth": k} for k in (4096, 1024)))
    blank = {"WindowCenter": "", "WindowWidth": "", "PerFrameFunctionalGroupsSequence": windows}
    read = read_dicom(write(two, bits=12, frames=True, **blank))
    near(read, np.stack([np.clip((GRADIENT - 2047.5) / (k - 1) + 0.5, 0, 1) * 255 for k in (4096, 1024)]))


def test_a_frame_goes_by_its_own_group_before_the_shared_one_and_the_file(write):
    def group(window=None, slope=None):
        made = Dataset()
        for sequence, elements in {
            "FrameVOILUTSequence": window and {"WindowCenter": window, "WindowWidth": 1024},
            "PixelValueTransformationSequence": slope and {"RescaleSlope": slope, "RescaleIntercept": ""},
        }.items():
            if elements:
                inner = Dataset()
                for name, value in elements.items():
                    setattr(inner, name, value)
                setattr(made, sequence, Sequence([inner]))
        return made

    of_file, lut = {"WindowCenter": 512, "WindowWidth": 1024, "RescaleSlope": 3, "RescaleIntercept": 0}, Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 12], (4095 - np.arange(4096)).astype("<u2").tobytes()
    groups = [group(2048, 0.5), group(1024), group(), group(1)]
    groups[3].FrameVOILUTSequence[0].WindowCenter = ""  # as good as missing
    made = dataset(np.stack([GRADIENT] * 4), bits=12, frames=True, **of_file, VOILUTSequence=Sequence([lut]))
    made.PerFrameFunctionalGroupsSequence = Sequence(groups)
    made.SharedFunctionalGroupsSequence = Sequence([group(1536, 2)])
    said = ((2048, 0.5), (1024, 2), (1536, 2), (1536, 2))
    expected = [np.clip((GRADIENT * float(slope) - centre + 0.5) / 1023 + 0.5, 0, 1) * 255 for centre, slope in said]
    near(read_dicom(write(made)), np.stack(expected))


def test_a_stream_of_other_bits_than_are_stored_gives_the_stored_values_or_is_refused(write):
    def path(values, bits, signed=True, overlay=None):
        """Of 12 stored bits, in a stream of as many as are given."""
        made = dataset(np.asarray(values).astype(np.uint16), bits=bits)
        made.compress(JPEG2000Lossless)
        made.BitsStored, made.HighBit, made.PixelRepresentation = 12, 11, int(signed)
        if overlay is not None:
            made.add_new(0x60020102, "US", overlay)  # of the second, inside the pixels (DICOM PS3.3 C.9.2)
        return write(made)

    values = np.tile(GRADIENT, (8, 2)).astype(int)
    below, one = values - 2048, np.zeros_like(values)
    one[::2] = 2**13
    for stream in (below & 0xFFFF, below & 0xFFF, below & 0xFFF | one):  # as 16 bits, cut to 12, with an overlay above
        near(read_dicom(path(stream, 16, overlay=13))[0], values / 4080 * 255)
    near(read_dicom(path(values | one, 16, signed=False, overlay=13))[0], values / 4080 * 255)
    for signed, overlay in ((False, None), (True, None), (False, 14), (True, 0)):
        with pytest.raises(UserError, match=r"its values reach .*, where its header says 12 bits"):
            read_dicom(path(values | one, 16, signed, overlay))
    near(read_dicom(path(values // 4, 10, signed=False))[0], values // 4 / 1020 * 255)
    near(read_dicom(path(values // 8, 10))[0], values // 8 / 510 * 255)
    with pytest.raises(UserError, match=r"have 10 bits, where its header says 12 with a sign: which .* is not known"):
        read_dicom(path(values // 4, 10))
