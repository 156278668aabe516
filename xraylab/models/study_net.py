"""The network: images of studies to one row of logits a study.

Shapes: I images, B studies, C channels, D features, L logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from pytorch_lightning.core.mixins import HyperparametersMixin
from torch import Tensor, nn

from xraylab.errors import UserError
from xraylab.models.backbones.base import Backbone
from xraylab.models.masked_batch_norm import WithoutBlank
from xraylab.models.pools import Pool


class StudyNet(nn.Module, HyperparametersMixin):
    """Network from the images of studies to logits: normalisation, backbone, pool and head.

    Args:
        backbone: images (I,C,H,W) to features (I,D).
        pool: features to logits (B,L), through the head.
        num_outputs: L.
        hidden: widths of the head's hidden layers, each followed by a ReLU; none: one linear layer.
        dropout: before each linear layer of the head.
        mean, std: of the images on the scale 0-255, one value or one a channel; None: the backbone's own.
        softmax: how many outputs in a row share a softmax; 1: each has a sigmoid.
        parts: names of the P volumes of which each study consists, as the planes of an exam; one backbone and pool see each on
            its own, and the head sees what is pooled of all, P*D wide. None: a study is one bag.

    >>> from xraylab.models import CNN, MaxFeature
    >>> net = StudyNet(CNN(image_size=32, layers=2, filters=4), MaxFeature(), num_outputs=3)
    >>> net(torch.zeros(5, 1, 32, 32, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1]), 2).shape  # five images of two studies
    torch.Size([2, 3])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: Backbone, pool: Pool, num_outputs: int, hidden: Sequence[int] = (), dropout: float = 0.0,
        mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None,
        softmax: int = 1, parts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters(ignore=["backbone", "pool"])
        if not 0 <= dropout < 1:
            raise UserError(f"head.dropout={dropout}: it is at least 0 and below 1.")
        if any(width < 1 for width in hidden):
            raise UserError(f"head.hidden={list(hidden)}: widths are at least 1.")
        if parts and not pool.of_features:
            raise UserError(
                f"studies of several parts ({', '.join(parts)}) are joined by their features, and {type(pool).__name__} pools "
                "probabilities: pool=max_feature or pool=attention."
            )
        self.backbone, self.pool, self.parts = backbone, pool, tuple(parts)
        pool.build(backbone.num_features, softmax)
        layers: list[nn.Module] = []
        for width, following in pairwise((backbone.num_features * max(len(parts), 1), *hidden, num_outputs)):
            layers += [nn.Dropout(dropout)] * (dropout > 0) + [nn.Linear(width, following), nn.ReLU()]
        self.head = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", per_channel(mean, [255 * m for m in backbone.mean], "mean"))
        self.register_buffer("std", per_channel(std, [255 * s for s in backbone.std], "std"))

    def forward(self, images: Tensor, study: Tensor, studies: int, real: int | None = None) -> Tensor:
        """Logits.

        Args:
            images: uint8 (I,1,H,W), or (I,C,H,W) for a backbone of C channels.
            study: int64 (I,), the row 0..B-1 that each image belongs to; of studies of P parts, row * P + part. Every row, or
                part, has an image. A blank image, which only fills the batch, has the row after the last: nothing depends on
                it, batch statistics neither.
            studies: B.
            real: of a batch that is filled, how many images are not blank.

        Returns:
            float32 (B,L).
        """
        return self.pooled(self._features(images, study, studies, real), study, studies)

    def both(self, images: Tensor, study: Tensor, studies: int, real: int | None = None) -> tuple[Tensor, Tensor]:
        """Logits by study (B,L), and of each image as a study of its own (I,L), which an image of a part cannot be."""
        features = self._features(images, study, studies, real)
        alone = torch.arange(len(features), device=features.device)
        return self.pooled(features, study, studies), self.pooled(features, alone, len(features))

    def features(self, images: Tensor) -> Tensor:
        """float32 (I,D) of uint8 (I,1,H,W), or (I,C,H,W) for a backbone of C channels."""
        dtype = self.mean.dtype
        x = (images.to(dtype).expand(-1, self.backbone.in_chans, -1, -1) - self.mean) / self.std
        try:
            return self.backbone(x.contiguous(memory_format=torch.channels_last)).to(dtype)
        except AssertionError as error:  # as timm says that a network was made for another size
            size = "x".join(map(str, images.shape[-2:]))
            raise UserError(f"images of {size} pixels do not fit this backbone: {error} image.size makes all alike.") from error

    def _features(self, images: Tensor, study: Tensor, studies: int, real: int | None) -> Tensor:
        with nullcontext() if real is None else WithoutBlank(study < studies * max(len(self.parts), 1), real):
            return self.features(images)

    def behind_features(self) -> list[nn.Parameter]:
        """Parameters of the pool and the head."""
        return [p for part in (self.pool, self.head) for p in part.parameters() if p.requires_grad]

    def pooled(self, features: Tensor, study: Tensor, studies: int) -> Tensor:
        """float32 (B,L) of features (I,D)."""
        # in full precision: bf16 probabilities would tie
        with torch.autocast(features.device.type, enabled=False):
            if not self.parts:
                return self.pool(features, study, studies, self.head)
            return self.pool(features, study, studies * len(self.parts), lambda x: self.head(x.reshape(studies, -1)))


def per_channel(given: float | Sequence[float] | None, own: Sequence[float], name: str) -> Tensor:
    """Statistics as a tensor that broadcasts over (I,C,H,W), the given ones or the backbone's own.

    Raises:
        UserError: another number of values than channels, or a deviation that is not above 0.
    """
    values = own if given is None else given if isinstance(given, Sequence) else [given] * len(own)
    if len(values) not in (1, len(own)):
        raise UserError(f"image.{name}={list(values)}: {len(values)} values for {len(own)} channels.")
    if name == "std" and min(values) <= 0:
        raise UserError(f"image.std={given}: it is above 0.")
    return torch.tensor([float(v) for v in values]).view(1, -1, 1, 1)
