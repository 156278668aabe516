"""Lookup tables of DICOM files: modality, VOI and palette (DICOM PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5, C.7.6.3.1.6, C.7.9).

Writers differ in how they describe them, so a descriptor is held against the entries that are there. Not by pydicom 3.0,
whose indices of 8-bit tables overflow, and which takes tables of big endian files for little endian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xraylab.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset


PALETTE = tuple(f"{name}PaletteColorLookupTable" for name in ("Red", "Green", "Blue"))


class Table(NamedTuple):
    """A lookup table."""

    entries: np.ndarray  # uint16, those that are there
    said: int  # how many the descriptor says
    first: int  # the value that the first entry is of
    depth: int  # bits of an entry, as the descriptor says; 8 where two lie in a word
    where: object  # names the file in errors

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """uint16, the values' entries; beyond the table's ends those at its ends.

        Raises:
            UserError: an entry that the descriptor says is not there.
        """
        index = np.clip(np.floor(values).astype(np.int64) - self.first, 0, self.said - 1)
        if index.max() >= len(self.entries):
            raise UserError(
                f"{self.where}: a lookup table of {self.said} entries, of which {len(self.entries)} are there, and its pixels "
                "need more. Write it anew, or without the table."
            )
        return self.entries[index]


def looked_up(values: np.ndarray, lut: Dataset, signed: bool = False, where: object = "LUT") -> tuple[np.ndarray, int]:
    """Values through a modality or a VOI lookup table; and the bits of an entry.

    A table that says 16 bits, as are allocated, may hold fewer, which its largest entry tells.

    Args:
        signed: values may be below zero, so that the first value mapped is signed; it is read so in many files that do not
            code it so.
        where: names the file in errors.

    Raises:
        UserError: the descriptor is not of these entries.
    """
    table = _table(lut, "LUTDescriptor", "LUTData", signed, where)
    used = max(int(table.entries.max(initial=0)).bit_length(), 8)
    return table(values), table.depth if used <= table.depth < 16 else used


def coloured(index: np.ndarray, dataset: Dataset, where: object) -> np.ndarray:
    """uint8 (...,3), the colours of a palette.

    Raises:
        UserError: a descriptor is not of its entries.
    """
    from pydicom.pixels import apply_color_lut

    signed = index.dtype.kind == "i"
    if f"Segmented{PALETTE[0]}Data" in dataset and f"{PALETTE[0]}Data" not in dataset:
        count, first, depth = _descriptor(dataset, f"{PALETTE[0]}Descriptor", signed)
        colours = apply_color_lut(np.clip(index, first, first + count - 1), dataset)[..., :3]
    else:
        tables = [_table(dataset, f"{name}Descriptor", f"{name}Data", signed, where) for name in PALETTE]
        colours = np.stack([table(index) for table in tables], axis=-1)
        depth, most = tables[0].depth, max(int(table.entries.max(initial=0)) for table in tables)
        depth = 16 if most >= 2 ** min(depth, 16) else 8 if most < 256 else depth
    return np.right_shift(colours, max(depth - 8, 0)).astype(np.uint8)


def _descriptor(dataset: Dataset, keyword: str, signed: bool) -> tuple[int, int, int]:
    """Entries, the first value mapped, and bits. The first two are of 16 bits, and coded as signed or not by chance."""
    entries, first, depth = (int(n) for n in dataset[keyword].value)
    signed = signed or (first < 0 and dataset.original_encoding[0] is not True)  # of an implicit VR the sign is a reader's guess
    first %= 2**16
    return entries % 2**16 or 2**16, first - 2**16 if signed and first >= 2**15 else first, depth


def _table(dataset: Dataset, descriptor: str, keyword: str, signed: bool, where: object) -> Table:
    said, first, depth = _descriptor(dataset, descriptor, signed)
    element = dataset[keyword]
    if isinstance(element.value, bytes):
        swapped = dataset.original_encoding[1] is False and element.VR != "OB"
        whole = element.value[: len(element.value) // 2 * 2]
        data = np.frombuffer(whole, ">u2").astype("<u2").tobytes() if swapped else element.value
    else:
        data = np.atleast_1d(element.value).astype("<u2").tobytes()
    size = len(data)  # which tells whether two entries lie in a word, whatever the descriptor says
    if depth <= 8 and size not in (said, said + 1) and size > 2 * said:
        said_of_it = f"a lookup table of {said} entries of {depth} bits in {size} bytes"
        raise UserError(f"{where}: {said_of_it}. Write it anew, or without the table.")
    packed = size != 2 * said and not 8 < depth < 16 and (size in (said, said + 1) or (depth <= 8 and size < 2 * said))
    entries = np.frombuffer(data if packed else data[: size // 2 * 2], "u1" if packed else "<u2")[:said]
    return Table(entries.astype(np.uint16), said, first, 8 if packed else depth, where)
