"""Backbones: images (I,C,H,W) to features (I,D), with published weights and freezing by stage."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.core.mixins import HyperparametersMixin
from torch import Tensor, nn

from xraylab.errors import UserError, did_you_mean, listed

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module, HyperparametersMixin):
    """Base class of the backbones: networks from images (I,C,H,W) to features (I,D).

    Attributes:
        num_features: D.
        in_chans: C.
        mean, std: C values on the scale 0-1 that its weights were trained with.
        stages: names of its stages from input to output, with the names of their parameters.

    >>> class Brightness(Backbone):
    ...     num_features, in_chans, mean, std, stages = 1, 1, (0.0,), (1.0,), {}
    ...     def forward(self, images):
    ...         return images.mean((2, 3))
    >>> Brightness()(torch.ones(2, 1, 8, 8))
    tensor([[1.],
            [1.]])
    """

    num_features: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stages: dict[str, list[str]]

    def forward(self, images: Tensor) -> Tensor:
        """Features (I,D) of normalised images (I,C,H,W)."""
        raise NotImplementedError

    def freeze(self, trainable_from: str | int | None, freeze_batch_stats: bool = True) -> None:
        """Train what lies from here on, and nothing before it.

        Args:
            trainable_from: a stage, or any module by the end of its path (``denseblock4.denselayer31``), or a layer (a module
                with weights of its own) by its number from 0, negative from the end; ``head`` - nothing of the backbone;
                None - all of it.
            freeze_batch_stats: whether frozen batch norms also keep their statistics.

        Raises:
            UserError: there is no such place, or several.
        """
        frozen = self.before(trainable_from)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in frozen)
        norms = ((name, module) for name, module in self.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        self._frozen_norms = [module for name, module in norms if freeze_batch_stats and f"{name}.weight" in frozen]
        self.train(self.training)

    def before(self, place: str | int | None) -> set[str]:
        """Names of the parameters that lie before a place, as :meth:`freeze` takes it.

        Raises:
            UserError: there is no such place, or several.
        """
        names = [name for name, _ in self.named_parameters()]
        if place is None:
            return set()
        if place == "head":
            return set(names)
        if place in self.stages:
            stages = list(self.stages)
            return {p for stage in stages[: stages.index(str(place))] for p in self.stages[stage]}
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        if isinstance(place, int) and not isinstance(place, bool) and -len(layers) <= place < len(layers):
            return {n for n in names if n.rpartition(".")[0] in layers[:place]}
        modules = [n for n, m in self.named_modules() if n and next(m.parameters(), None) is not None]
        found = [n for n in modules if n == place or n.endswith(f".{place}")]
        if len(found) == 1:
            first = next(i for i, n in enumerate(names) if n.startswith(f"{found[0]}."))
            return set(names[:first])
        if found:
            raise UserError(f"backbone.trainable_from={place}: there are {len(found)}: {listed(found)}. Give more of the path.")
        raise UserError(
            f"backbone.trainable_from={place}: there is no such stage.{did_you_mean(str(place), [*self.stages, *modules])} "
            f"The stages are: {listed(self.stages, 40)}; or head, for training only the head; or a module's path "
            f"(model_summary.txt lists them); or a layer's number, 0 to {len(layers) - 1}."
        )

    def train(self, mode: bool = True) -> Backbone:
        """Training mode, but for the batch statistics of what is frozen."""
        super().train(mode)
        for module in getattr(self, "_frozen_norms", []):
            module.eval()
        return self


def grey_weights(mean: Any, std: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Statistics for that many channels: as they are for 3, else their averages over RGB."""
    if channels == len(mean):
        return tuple(mean), tuple(std)
    return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels


def adapted_first_conv(parent: nn.Module, name: str, in_chans: int) -> None:
    """Replace a 3-channel convolution by one of ``in_chans`` that responds alike to a grey image."""
    old = getattr(parent, name)
    new = nn.Conv2d(in_chans, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    with torch.no_grad():
        new.weight.copy_(old.weight.sum(1, keepdim=True).expand_as(new.weight) / in_chans)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    setattr(parent, name, new)
