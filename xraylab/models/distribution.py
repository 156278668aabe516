"""What the images that a network was trained on look like to it, so that others are told apart (out-of-distribution detection).

The statistic is the Mahalanobis distance (Lee et al. 2018) of an early layer's channels, their means and deviations over the
image, from those of the training images. Deep layers know what the model was trained to tell apart and
little else: on the samples they took many photographs for radiographs, of which a convolution a quarter of the way in took few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from xraylab.models.backbones.base import Backbone
from xraylab.models.study_net import StudyNet

DEPTH = 0.25  # of the way through the convolutions, where the layer lies
FOLDS = 5
REFUSED = 0.01  # of studies like those of training, at most, in the long run


@dataclass(frozen=True)
class TrainingDistribution:
    """Statistics of the images that a network was trained on.

    Attributes:
        layer: name of the backbone's layer.
        mean, scale: float32 (2K,), of its K channels' means and deviations over an image.
        precision: float32 (2K,2K), the inverse of their covariance, in units of ``scale``.
        threshold: a study is unlike those of training where the mean distance of its images is larger.
        n: studies that the threshold was chosen by.
        refused: of splits that are held out, the share of studies that are unlike those of training, as a metric.
    """

    layer: str
    mean: Tensor
    scale: Tensor
    precision: Tensor
    threshold: float
    n: int
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)

    def distance(self, described: Tensor) -> Tensor:
        """float64 (I,) of images (I,2K), as :func:`described` gives them."""
        mean, scale, precision = (x.double().cpu() for x in (self.mean, self.scale, self.precision))
        z = ((described.double().cpu() - mean) / scale).nan_to_num(1e6, 1e6, -1e6)
        return ((z @ precision) * z).sum(1).clamp_min(0).sqrt()

    def record(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def fit(
        cls, layer: str, train: Sequence[np.ndarray], patients: Sequence[object], valid: Sequence[np.ndarray] = ()
    ) -> TrainingDistribution | None:  # fmt: skip
        """Fit to studies.

        The threshold is the conformal quantile (Vovk et al. 2005) of distances of studies that the statistics were not fitted on:
        those of ``valid``, and those of ``train`` by cross-fitting over patients. Of fewer than 99 studies it is the largest.

        Args:
            train, valid: of each study its described images (I,2K).
            patients: of each study of train.

        Returns:
            None where there are fewer than two folds of patients.
        """
        folds = np.unique(np.asarray(patients, object).astype(str), return_inverse=True)[1]
        count = int(folds.max(initial=-1)) + 1
        if count < FOLDS:
            return None
        fold = np.random.default_rng(0).permutation(count)[folds] % FOLDS
        parts = []
        for k in range(FOLDS):
            fitted = cls._fitted(layer, [of for of, f in zip(train, fold, strict=True) if f != k])
            parts += [fitted.of_study(of) for of, f in zip(train, fold, strict=True) if f == k]
        whole = cls._fitted(layer, train)
        distances = np.sort([*parts, *(whole.of_study(of) for of in valid)])
        place = min(math.ceil((len(distances) + 1) * (1 - REFUSED)), len(distances))
        return replace(whole, threshold=float(distances[place - 1]), n=len(distances))

    @classmethod
    def _fitted(cls, layer: str, studies: Sequence[np.ndarray]) -> TrainingDistribution:
        x = np.concatenate(list(studies)).astype(np.float64)
        mean, scale = x.mean(0), x.std(0)
        scale = np.maximum(scale, 1e-6 * max(float(scale.max()), 1e-6))  # of channels that are the same on all images
        precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit((x - mean) / scale).covariance_)
        centre, unit, inverse = (torch.from_numpy(a.astype(np.float32)) for a in (mean, scale, precision))
        return cls(layer, centre, unit, inverse, threshold=math.inf, n=0)

    @torch.no_grad()
    def of_images(self, net: StudyNet, images: Tensor) -> float:
        """The mean distance of a study's images, uint8 (I,C,H,W)."""
        parts = []
        with described(net.backbone, self.layer, stop=True) as seen:
            for some in images.split(32):
                with suppress(Enough):
                    net.features(some)
                assert seen.images is not None
                parts.append(seen.images)
        return float(self.distance(torch.cat(parts)).mean())

    def of_study(self, described: np.ndarray) -> float:
        """The mean distance of a study's images, (I,2K)."""
        return float(self.distance(torch.from_numpy(described)).mean())


@dataclass
class Described:
    """What a watched layer said in the latest forward pass.

    Attributes:
        images: float32 (I,2K), the mean and the deviation of each channel over the image; None: it has not been reached.
    """

    images: Tensor | None = field(default=None)


class Enough(Exception):
    """The layer is reached; what lies behind it is not needed."""


def early_layer(backbone: Backbone) -> str | None:
    """The name of the convolution, of more than one pixel, a quarter of the way in; None: there is none.

    >>> from xraylab.models import AlexNet
    >>> early_layer(AlexNet(pretrained=False))
    'features.3'
    """
    layers = [n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    return layers[round(DEPTH * (len(layers) - 1))] if layers else None


@contextmanager
def described(backbone: Backbone, layer: str, stop: bool = False) -> Iterator[Described]:
    """A context in which forward passes leave what a layer says of each image.

    Args:
        stop: end the pass there, by raising :class:`Enough`.
    """
    kept = Described()

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        found = output.detach().float()
        kept.images = torch.cat([found.mean((2, 3)), found.std((2, 3), correction=0)], 1)
        if stop:
            raise Enough

    handle = dict(backbone.named_modules())[layer].register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
