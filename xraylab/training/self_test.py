"""A checkpoint's self-test: outputs for noise, so that a model that was carried elsewhere can be checked there by one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xraylab.errors import UserError

if TYPE_CHECKING:
    from xraylab.training.study_module import StudyModule

SHAPES = ((3, 96, 70), (1, 61, 128), (5, 50, 50))  # images, height, width of each study, before preprocessing
SIDE = 64  # of a model that takes images as they are, whose size is not known: that of its studies
TOLERANCE = 1e-3  # of logits, of their largest


def noise(module: StudyModule, number: int) -> Any:
    """The images of a self-test's study, uint8 (N,H,W[,3]): smooth noise from a seed; by name of a model of several parts."""
    count, height, width = SHAPES[number]
    if module.preprocessing["size"] is None:
        height = width = module.net.backbone.hparams.get("image_size") or SIDE
    channels = (3,) if module.images["channels"] == 3 else ()
    rng = np.random.default_rng(number)

    def volume() -> np.ndarray:
        coarse = rng.integers(30, 200, (count, -(-height // 8), -(-width // 8), *channels)).astype(np.uint8)
        return coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]

    return {part: volume() for part in module.net.parts} if module.net.parts else volume()


def outputs(module: StudyModule) -> torch.Tensor:
    """float64 (studies,L), the logits that a model gives for them, on the CPU in full precision."""
    found = [module.logits(noise(module, number)) for number in range(len(SHAPES))]
    return torch.from_numpy(np.stack(found))


def check(module: StudyModule, wanted: torch.Tensor | None) -> float:
    """The largest difference of logits from those that a checkpoint carries.

    Raises:
        UserError: it is more than rounding; or there are none to compare with.
    """
    if wanted is None:
        raise UserError("self-test: the checkpoint carries none; runs of today do.")
    found = outputs(module)
    largest = float((found - wanted).abs().max())
    if not largest <= TOLERANCE * max(float(wanted.abs().max()), 1.0):
        raise UserError(
            f"self-test: logits differ by up to {largest:.3g} from those of the machine that trained the model, where rounding "
            f"makes {TOLERANCE:g} of their size: its weights, its preprocessing or a library is not what it was there."
        )
    return largest
