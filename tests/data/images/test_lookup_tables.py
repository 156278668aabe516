"""Lookup tables as the standard's words have them, written by hand: descriptors against entries, signs, words and their order."""

from __future__ import annotations

import numpy as np
import pytest
from test_dicom import dataset, write  # noqa: F401

from xraylab.data.images.dicom import read_dicom
from xraylab.errors import UserError

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian  # noqa: E402

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(8, 32)
ENTRIES = np.arange(4096)


def table(first, bits, entries, said=None, kind="US", packed=False, syntax=ExplicitVRLittleEndian):
    """An item of a sequence of tables; packed: two entries of 8 bits in a word."""
    item = Dataset()
    item.add_new("LUTDescriptor", kind, [(len(entries) if said is None else said) % 2**16, first, bits])
    item.add_new("LUTData", "OW", words(entries, packed, syntax))
    item.ModalityLUTType = "US"
    return item


def words(entries, packed=False, syntax=ExplicitVRLittleEndian):
    data = np.asarray(entries).astype("u1" if packed else "<u2").tobytes()
    data += b"\0" * (len(data) % 2)
    return np.frombuffer(data, "<u2").astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()


def near(read, expected):
    assert read.shape == expected.shape
    assert np.abs(read - expected).max() <= 0.51


@pytest.mark.parametrize("largest", [255, 1023, 4095, 16383, 65535])
def test_entries_have_the_depth_that_their_values_need(write, largest):  # noqa: F811
    entries = np.rint(ENTRIES / 4095 * largest).astype(int)
    expected = entries[RAMP] / largest * 255
    for bits in {16, largest.bit_length()}:  # 16 is what many write for whatever lies in 16 bits
        near(read_dicom(write(RAMP, bits=12, VOILUTSequence=Sequence([table(0, bits, entries)])))[0], expected)
    half = table(0, 12, entries // 2) if largest == 4095 else None
    if half:  # but 12 are meant
        near(read_dicom(write(RAMP, bits=12, VOILUTSequence=Sequence([half])))[0], (entries // 2)[RAMP] / largest * 255)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_length_of_the_data_tells_whether_entries_are_packed(write, syntax):  # noqa: F811
    eight = ENTRIES // 16
    for bits, packed in ((8, True), (16, True), (8, False), (16, False)):
        made = dataset(RAMP, bits=12, syntax=syntax)
        made.VOILUTSequence = Sequence([table(0, bits, eight, packed=packed, syntax=syntax)])
        near(read_dicom(write(made))[0], eight[RAMP])
        made = dataset(RAMP // 16, bits=8, syntax=syntax)
        made.ModalityLUTSequence = Sequence(
            [table(1, bits, 255 - eight[16:4080:16], packed=packed, syntax=syntax)]
        )  # 254 entries
        index = np.clip(RAMP // 16, 1, 254)
        near(read_dicom(write(made))[0], (254 - index) / 253 * 255)
        made.ModalityLUTSequence = Sequence([table(1, bits, 255 - eight[16:4064:16], packed=packed, syntax=syntax)])  # odd: 253
        near(read_dicom(write(made))[0], (253 - np.clip(RAMP // 16, 1, 253)) / 252 * 255)


def test_a_descriptor_of_other_entries_than_are_there(write):  # noqa: F811
    def read(*arguments, **options):
        return read_dicom(write(RAMP, bits=12, VOILUTSequence=Sequence([table(*arguments, **options)])))[0]

    near(read(0, 12, ENTRIES, said=0), RAMP / 4095 * 255)  # 65536
    near(read(0, 12, ENTRIES, said=8192), RAMP / 4095 * 255)
    near(read(0, 12, ENTRIES, said=1000), np.minimum(RAMP, 999) / 4095 * 255)
    with pytest.raises(UserError, match="a lookup table of 4096 entries, of which 100 are there, and its pixels need more"):
        read(0, 12, ENTRIES[:100], said=4096)
    with pytest.raises(UserError, match="a lookup table of 256 entries of 8 bits in 8192 bytes"):
        read(0, 8, ENTRIES, said=256)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_sign_of_the_first_value_follows_the_values_that_are_mapped(write, syntax):  # noqa: F811
    """DICOM PS3.3 C.11.1.1: by the pixel representation; C.11.2.1.1: by what the modality transform gives."""
    signed = RAMP.astype(np.int16) - 2048
    expected = RAMP / 4095 * 255
    kinds = ("SS",) if syntax == ImplicitVRLittleEndian else ("SS", "US")  # of an implicit VR it is not written
    for kind in kinds:
        first = -2048 if kind == "SS" else 63488
        options = {"kind": kind, "syntax": syntax}
        made = dataset(signed, bits=12, syntax=syntax)
        made.VOILUTSequence = Sequence([table(first, 12, ENTRIES, **options)])
        near(read_dicom(write(made))[0], expected)
        made = dataset(signed, bits=12, syntax=syntax)
        made.ModalityLUTSequence = Sequence([table(first, 16, 4095 - ENTRIES, **options)])
        near(read_dicom(write(made))[0], 255 - RAMP / 4080 * 255)
        made = dataset(RAMP, bits=12, syntax=syntax, RescaleSlope=1, RescaleIntercept=-2048)
        made.VOILUTSequence = Sequence([table(first, 12, ENTRIES, **options)])
        near(read_dicom(write(made))[0], expected)
    wide = (RAMP.astype(np.int32) * 16 - 32768).astype(np.int16)
    made = dataset(wide, syntax=syntax, RescaleSlope=1, RescaleIntercept=32768)  # signed pixels, values from 0 on
    made.VOILUTSequence = Sequence([table(40000, 16, np.arange(1000) * 65, kind="US", syntax=syntax)])
    near(read_dicom(write(made))[0], np.clip(RAMP.astype(int) * 16 - 40000, 0, 999) * 65 / 65535 * 255)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16])
def test_palettes_of_every_depth_sign_and_order_of_bytes(write, syntax, kind):  # noqa: F811
    index = np.arange(256).reshape(16, 16)
    colours = np.random.default_rng(0).integers(0, 256, (256, 3))
    first = -128 if kind == np.int8 else 0

    def read(entries, bits, packed):
        made = dataset((index + first).astype(kind), "PALETTE COLOR", bits=8 * np.dtype(kind).itemsize, syntax=syntax)
        if syntax == ExplicitVRBigEndian and made.BitsAllocated == 8:
            made["PixelData"].VR = "OW"
            made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
        for k, name in enumerate(("Red", "Green", "Blue")):
            made.add_new(f"{name}PaletteColorLookupTableDescriptor", "SS" if first else "US", [256, first, bits])
            made.add_new(f"{name}PaletteColorLookupTableData", "OW", words(entries[:, k], packed, syntax))
        return read_dicom(write(made), colour=True)[0]

    assert np.array_equal(read(colours, 8, packed=True), colours[index])
    assert np.array_equal(read(colours, 8, packed=False), colours[index])
    assert np.array_equal(read(colours, 16, packed=False), colours[index])
    assert np.array_equal(read(colours, 16, packed=True), colours[index])
    fine = colours * 256 + 7
    assert np.array_equal(read(fine, 16, packed=False), colours[index])
    assert np.array_equal(read(fine, 8, packed=False), colours[index])


def test_values_beyond_a_palette_have_the_colours_of_its_ends(write):  # noqa: F811
    colours = np.random.default_rng(0).integers(0, 256, (156, 3))
    made = dataset(RAMP, "PALETTE COLOR", bits=12)
    for k, name in enumerate(("Red", "Green", "Blue")):
        made.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [156, 100, 8])
        made.add_new(f"{name}PaletteColorLookupTableData", "OW", words(colours[:, k], packed=True))
    assert np.array_equal(read_dicom(write(made), colour=True)[0], colours[np.clip(RAMP.astype(int) - 100, 0, 155)])
    for name in ("Red", "Green", "Blue"):  # entries 0 and 10, then 254 on a line to 255: PS3.3 C.7.9.2
        del made[f"{name}PaletteColorLookupTableData"]
        made[f"{name}PaletteColorLookupTableDescriptor"].value = [256, 0, 8]
        made.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", bytes([0, 2, 0, 10, 1, 254, 255, 0]))
    line = np.concatenate([[0, 10], np.rint(10 + 245 * np.arange(1, 255) / 254)])[np.minimum(RAMP, 255)]
    assert np.array_equal(read_dicom(write(made), colour=True)[0], np.repeat(line[..., None], 3, axis=2))
