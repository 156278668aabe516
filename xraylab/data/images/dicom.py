"""DICOM files as images, read with pydicom (the extra ``dicom``).

From stored values to grey, in the order of the standard (DICOM PS3.3 C.11, C.7.6.3): decode; rescale slope and intercept, or
the modality LUT; the first VOI LUT or window, else the least and the largest value of the file become black and white (unsigned
values of 8 bits, allocated and stored, stay as they are, but turned by a slope below zero); MONOCHROME1 is inverted; pixels of
padding (C.7.5.1.1.2) count for no scale and are black; RGB, YBR and palette colours become grey by ITU-R 601. Frames are slices
of a volume, each with its own rescaling, window or VOI LUT where it has them. Files of a series are scaled one by one.

Compressed syntaxes need a decoder: RLE is pydicom's own; JPEG (also lossless, and of 12 bits), JPEG-LS and JPEG 2000 are
python-gdcm's, HTJ2K is pylibjpeg-openjpeg's. JPEG-LS of 6 or 7 bits is pyjpegls's alone, which highdicom brings.

Only what describes pixels is read from a file here. Nothing that names a patient reaches a result, a log or an error: those
speak of the file's name; whose it is, is read where results go back to the patient's study alone
(:mod:`xraylab.data.images.dicom_headers`). A name or folder that names a patient is the user's to change.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from xraylab.data.images.dicom_pixels import GREY, OVERLAYS, PIXELS, stored_shape, stored_values
from xraylab.data.images.lookup_tables import PALETTE, coloured, looked_up
from xraylab.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom", ".ima")
CROSS_SECTIONS = ("CT", "MR", "PT")  # modalities whose files of one frame are slices
LOOKED_AT = 8  # headers that are read together
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
WANTED = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "Modality",
    *(f"{kind}PixelPadding{end}" for kind in ("", "Float", "DoubleFloat") for end in ("Value", "RangeLimit")),
    *(f"{name}{end}" for name in PALETTE for end in ("Descriptor", "Data")), *(f"Segmented{name}Data" for name in PALETTE),
    *PIXELS, *OVERLAYS,
)  # fmt: skip


def is_dicom(path: Path) -> bool:
    """Whether a file is one of DICOM: by its suffix, or by the mark behind its preamble."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except OSError:
        return False


def read_dicom(path: Path, colour: bool = False) -> np.ndarray:
    """The frames of a file.

    Args:
        colour: three channels (RGB), not one.

    Returns:
        uint8 (N,H,W), or (N,H,W,3) in colour; N is 1 where the file has one frame.

    Raises:
        UserError: pydicom is not installed; the file cannot be read, has no pixels, or is compressed in a way for which there
            is no decoder.
    """
    with discreet(path):
        dataset = _read(path)
        photometric = str(dataset.get("PhotometricInterpretation", ""))
        if photometric in GREY:
            grey = np.stack(list(_grey(path, dataset, _values(path, dataset, raw=True))))
            return np.repeat(grey[..., None], 3, axis=-1) if colour else grey
        frames = _rgb(path, dataset, photometric)
        return frames if colour else np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def dicom_shape(path: Path) -> tuple[int, int, int]:
    """(N,H,W) from the header alone.

    Raises:
        UserError: it cannot be read.
    """
    with discreet(path):
        return stored_shape(path, _read(path, pixels=False))


def dicom_layouts(paths: Sequence[Path]) -> list[tuple[int, bool]]:
    """Of every file how many frames it has, and whether it looks like a slice of a series: of one frame, and placed in space.

    (1, False) stands for one whose header cannot be read: whoever reads its pixels says why.

    Raises:
        UserError: pydicom is not installed.
    """
    require_pydicom(f"{paths[0]}{f' and {len(paths) - 1:,} more' if len(paths) > 1 else ''}")
    from pydicom import dcmread

    wanted: Any = ["Modality", "ImagePositionPatient", "NumberOfFrames"]

    def layout(path: Path) -> tuple[int, bool]:
        try:
            dataset = dcmread(path, specific_tags=wanted, stop_before_pixels=True)
            frames = int(dataset.get("NumberOfFrames") or 1)
        except Exception:  # of as many kinds as there are things to be wrong in a header
            return 1, False
        return frames, frames == 1 and (bool(dataset.get("ImagePositionPatient")) or dataset.get("Modality") in CROSS_SECTIONS)

    with discreet(paths[0]), ThreadPoolExecutor(LOOKED_AT) as pool:  # over a network, one by one takes minutes
        return list(pool.map(layout, paths))


@contextmanager
def discreet(path: object, wrong: str = "a DICOM file whose header does not describe its pixels") -> Iterator[None]:
    """Without the words of pydicom's warnings and errors, which quote what a file says of its patient.

    Args:
        wrong: what is said instead.

    Raises:
        UserError: in place of an error of whatever kind.
    """
    logs = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path}: memory is too small for its pixels.") from None
    except Exception:  # of as many kinds as there are things to be wrong in a header
        raise UserError(f"{path}: {wrong}.") from None
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def require_pydicom(where: object) -> None:
    if not find_spec("pydicom"):
        raise UserError(f"{where}: reading DICOM needs pydicom: pip install 'xraylab[dicom]'.")


def _read(path: Path, pixels: bool = True) -> Dataset:
    require_pydicom(path)
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import ImplicitVRLittleEndian

    wanted: Any = list(WANTED)
    try:
        try:
            dataset = dcmread(path, specific_tags=wanted, stop_before_pixels=not pixels)
        except InvalidDicomError:  # files of before the preamble
            dataset = dcmread(path, specific_tags=wanted, stop_before_pixels=not pixels, force=True)
            if not hasattr(dataset.file_meta, "TransferSyntaxUID"):
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        sides = [name for name in ("Rows", "Columns") if name in dataset]
        there = sides and (not pixels or any(name in dataset for name in PIXELS))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'not a DICOM file'}.") from error
    except Exception:  # pydicom raises many kinds, whose words may quote the file
        raise UserError(f"{path}: not a whole DICOM file.") from None
    if not there:
        raise UserError(f"{path}: not a DICOM file of images: it has no pixels.")
    if len(sides) < 2:
        raise UserError(f"{path}: its header says its {sides[0]} and not the other side.")
    return dataset


def _values(path: Path, dataset: Dataset, raw: bool) -> np.ndarray:
    """Stored values, (N,H,W) or (N,H,W,3), from the bits that the header names: above them may lie overlays, and below them
    (of old files, whose high bit is not the last that is stored) nothing or overlays."""
    from pydicom.uid import RLELossless

    bits, high, syntax = dataset.get("BitsStored"), dataset.get("HighBit"), dataset.file_meta.TransferSyntaxUID
    below = high + 1 - bits if isinstance(bits, int) and isinstance(high, int) and high < dataset.get("BitsAllocated", 0) else 0
    if below <= 0 or (syntax.is_compressed and syntax != RLELossless):  # of a stream it is the last
        return stored_values(path, dataset, raw)
    dataset.BitsStored = high + 1
    values = stored_values(path, dataset, raw)
    dataset.BitsStored = bits
    if values.min() >= 0 and 2**below <= values.max() < 2**bits and (values % 2**below).any():
        raise UserError(
            f"{path}: its high bit is {high}, with {bits} bits stored, and its values lie in the lowest bits. "
            f"Set HighBit to {bits - 1}."
        )
    return values >> below


class Rescaled(NamedTuple):
    """Frames whose stored values have become those that windows are about, Hounsfield units of CT.

    Attributes:
        frames: N of (H,W), float64; uint8 where values of 8 bits stay as they are.
        spans: N of the least and the largest value that can be stored.
        padded: bool (N,H,W), pixels of padding; None: there are none.
        eight: values are unsigned, of 8 bits, allocated and stored.
    """

    frames: list[np.ndarray]
    spans: list[np.ndarray]
    padded: np.ndarray | None
    eight: bool


class Measured(NamedTuple):
    """What a file holds before it becomes grey, for volumes, whose slices share one scale.

    Attributes:
        rescaled: its frames.
        windows: of each frame the window that the file says, as centre, width and function; None: none, or a lookup table.
        inverted: large values are dark (MONOCHROME1).
        modality: CT, MR and so on; blank where the file does not say.
    """

    rescaled: Rescaled
    windows: list[tuple[float, float, str] | None]
    inverted: bool
    modality: str


def read_measured(path: Path) -> Measured:
    """The frames of a grey file as values.

    Raises:
        UserError: as of :func:`read_dicom`; or the file is in colour.
    """
    with discreet(path):
        dataset = _read(path)
        if (photometric := str(dataset.get("PhotometricInterpretation", ""))) not in GREY:
            raise UserError(f"{path}: in colour, where slices of a volume are grey.")
        rescaled = _rescaled(path, dataset, _values(path, dataset, raw=True))
        windows = [_window(path, dataset, number)[1] for number in range(len(rescaled.frames))]
        return Measured(rescaled, windows, photometric == "MONOCHROME1", str(dataset.get("Modality") or ""))


def _rescaled(path: Path, dataset: Dataset, stored: np.ndarray) -> Rescaled:
    """Each frame by its own rescaling, or modality LUT (DICOM PS3.3 C.11.1)."""
    bits = int(dataset.get("BitsStored") or 8 * stored.dtype.itemsize)
    eight, signed = bits == 8 and stored.dtype == np.uint8, stored.dtype.kind != "u"
    ends = np.array([0.0, 2.0**bits - 1]) - (2.0 ** (bits - 1) if signed else 0)  # the least and the largest that can be stored
    padded = _padded(dataset, stored)
    if stored.dtype.kind == "f" and not np.isfinite(stored if padded is None else stored[~padded]).all():
        raise UserError(f"{path}: its pixels are not all finite numbers, nor named as padding.")
    rescaled, spans = [], []
    for number, frame in enumerate(stored):
        rescale = _of_frame(dataset, number, "PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept")
        if modality := rescale.get("ModalityLUTSequence"):
            table, depth = looked_up(frame, modality[0], signed, path)
            values, span, eight = table.astype(np.float64), np.array([0.0, 2.0**depth - 1]), eight and depth == 8
        else:
            slope, intercept = _number(rescale, "RescaleSlope", 1.0), _number(rescale, "RescaleIntercept", 0.0)
            if not slope or not np.isfinite(slope * intercept):
                raise UserError(
                    f"{path}: its rescale slope is {slope:g} and its intercept {intercept:g}, which leave no picture."
                )
            as_it_is = eight and (slope, intercept) == (1, 0)  # which most are: floating point takes longer than decoding
            values = frame if as_it_is else frame.astype(np.float64) * slope + intercept
            span = ends * slope + intercept
        rescaled.append(values)
        spans.append(span)
    return Rescaled(rescaled, spans, padded, eight)


def _window(path: Path, dataset: Dataset, number: int) -> tuple[Dataset, tuple[float, float, str] | None]:
    """Where a frame's window or VOI LUT is; and the window, as centre, width and function, if it is one that can be used."""
    window = _of_frame(dataset, number, "FrameVOILUTSequence", "VOILUTSequence", "WindowCenter")
    width, function = _number(window, "WindowWidth", 0.0), str(window.get("VOILUTFunction") or "LINEAR")
    if window.get("VOILUTSequence") or _blank(window.get("WindowCenter")):
        return window, None
    if not (width >= 1 or (width > 0 and function != "LINEAR")):
        return window, None
    if function not in FUNCTIONS:
        raise UserError(f"{path}: its VOI LUT function is none of {', '.join(FUNCTIONS)}.")
    return window, (_number(window, "WindowCenter", 0.0), width, function)


def _grey(path: Path, dataset: Dataset, stored: np.ndarray) -> Iterator[np.ndarray]:
    """Each frame as uint8 (H,W), as it is shown."""
    rescaled, spans, padded, eight = _rescaled(path, dataset, stored)
    shown = spans if eight else rescaled
    if padded is not None and not eight:
        shown = [values[~border] for values, border in zip(rescaled, padded, strict=True)]
    low, high = min(v.min(initial=np.inf) for v in shown), max(v.max(initial=-np.inf) for v in shown)
    for number, values in enumerate(rescaled):
        of, window = _window(path, dataset, number)
        if voi := of.get("VOILUTSequence"):
            table, depth = looked_up(values, voi[0], bool(np.min(spans) < 0), path)
            grey = table / (2**depth - 1)
        elif window is not None:
            grey = windowed(values, *window)
        elif values.dtype == np.uint8 and (low, high) == (0, 255):
            grey = values
        else:
            grey = (values - low) / max(high - low, 1e-9)
        if grey is not values:
            grey = np.clip(grey * 255, 0, 255).round().astype(np.uint8)
        grey = 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey
        yield grey if padded is None else np.where(padded[number], 0, grey).astype(np.uint8)


def _padded(dataset: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """bool (N,H,W): pixels that hold the padding value, or lie between it and its limit (DICOM PS3.3 C.7.5.1.1.2); or None."""
    kind = next((kind for kind in ("DoubleFloat", "Float") if f"{kind}PixelData" in dataset), "")
    value, limit = (dataset.get(f"{kind}PixelPadding{end}") for end in ("Value", "RangeLimit"))
    if _blank(value):
        return None
    ends = np.array([value, value if _blank(limit) else limit], np.float64)
    if not kind:  # coded with a sign or without by chance
        ends = ends % 2**16
        ends = np.where((ends >= 2**15) & (stored.dtype.kind == "i"), ends - 2**16, ends)
    return np.isnan(stored) if np.isnan(ends).any() else (stored >= ends.min()) & (stored <= ends.max())


def windowed(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """A VOI window: 0 below it, 1 above it (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: of any shape, rescaled.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.

    Returns:
        float64 in [0, 1].
    """
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.asarray(np.clip((values - centre) / width + 0.5, 0, 1))
    if width == 1:  # a step
        return (values > centre - 0.5).astype(np.float64)
    return np.asarray(np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1))


def _of_frame(dataset: Dataset, number: int, sequence: str, *keywords: str) -> Dataset:
    """What holds any of some keywords for a frame: its own functional group, else the shared one, else the file itself."""
    of_frames, shared = (dataset.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("PerFrame", "Shared"))
    for group in (*of_frames[number : number + 1], *shared[:1]):
        for item in (group.get(sequence) or [])[:1]:
            if not all(_blank(item.get(keyword)) for keyword in keywords):
                return item
    return dataset


def _number(dataset: Dataset, keyword: str, otherwise: float) -> float:
    """A number, the first of several; ``otherwise`` where it is missing or blank."""
    value = dataset.get(keyword)
    if _blank(value):
        return otherwise
    return float(value if isinstance(value, int | float | str) else value[0])


def _blank(value: Any) -> bool:
    """Whether an element is missing, or there without a value."""
    return value is None or (hasattr(value, "__len__") and not len(value))


def _rgb(path: Path, dataset: Dataset, photometric: str) -> np.ndarray:
    """uint8 (N,H,W,3)."""
    frames = _values(path, dataset, raw=False)
    if photometric == "PALETTE COLOR":
        return coloured(frames, dataset, path)
    return np.right_shift(frames, max(int(dataset.BitsStored) - 8, 0)).astype(np.uint8)
