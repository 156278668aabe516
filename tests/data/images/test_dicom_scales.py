"""Scales of DICOM files: slopes, tables, padding, bits beside those that are stored, frames of their own."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)  # fmt: skip
from test_dicom import dataset
from test_dicom import write as write

from xraylab.data.images.dicom import read_dicom
from xraylab.errors import UserError

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
