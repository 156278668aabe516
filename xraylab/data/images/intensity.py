"""From the values of a volume to grey, by one rule for all its slices.

Windows are in Hounsfield units, as read in clinical use (radiopaedia.org, "Windowing (CT)"), applied by DICOM PS3.3
C.11.2.1.2. Percentiles are for values without a unit, as of MR, whose scale differs from scanner to scanner: the 0.5th and the
99.5th of the volume become black and white (Ma et al. 2024, Nature Communications 15:654).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xraylab.data.images.dicom import windowed
from xraylab.errors import UserError, did_you_mean

#: centre and width
WINDOWS = {
    "lung": (-600, 1500), "mediastinum": (50, 350), "soft_tissue": (50, 400), "bone": (400, 1800), "brain": (40, 80),
}  # fmt: skip
PERCENTILES = "percentiles"
LOW, HIGH = 0.5, 99.5


def check_window(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of windows, one or three, as ``dataset.window`` gives them; none of null.

    Raises:
        UserError: there are others.
    """
    names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    known = (*WINDOWS, PERCENTILES)
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"dataset.window={wrong[0]}: it is one of {', '.join(known)}.{did_you_mean(str(wrong[0]), known)}")
    if len(names) not in (0, 1, 3):
        raise UserError(
            f"dataset.window=[{','.join(names)}]: it is one window, or three that become the three channels; one of them may be "
            "named twice."
        )
    return names


def to_grey(values: np.ndarray, padded: np.ndarray | None, window: str | tuple[float, float, str]) -> np.ndarray:
    """A volume by one window.

    Args:
        values: (N,H,W) of any numbers.
        padded: bool (N,H,W), pixels that count for no scale and become black; None: there are none.
        window: a name; or centre, width and function.

    Returns:
        uint8 (N,H,W).
    """
    grey = np.empty(values.shape, np.uint8)
    if window == PERCENTILES:
        counted = values if padded is None else values[~padded]
        low, high = np.percentile(counted, (LOW, HIGH)) if counted.size else (0.0, 0.0)
        if high <= low:  # e.g. where next to all is background
            low, high = (counted.min(), counted.max()) if counted.size else (0.0, 0.0)
    else:
        low = high = 0.0
    for number, image in enumerate(values):  # one at a time, for what is computed is of 64 bits
        if window == PERCENTILES:
            scaled = (image.astype(np.float64) - low) / max(float(high) - float(low), 1e-9)
        else:
            scaled = windowed(image.astype(np.float64), *(WINDOWS[window] if isinstance(window, str) else window))
        grey[number] = np.clip(scaled * 255, 0, 255).round()
    if padded is not None:
        grey[padded] = 0
    return grey
