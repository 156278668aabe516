"""Any network of timm as a backbone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xraylab.errors import UserError, did_you_mean
from xraylab.models.backbones import weights
from xraylab.models.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, grey_weights


class Timm(Backbone):
    """Backbone of any model of timm by name, pooled as it pools itself.

    Args:
        name: e.g. resnet18, or with a tag, densenet121.tv_in1k.
        pretrained: True for its published weights, False for random ones, or a file of weights for this model.
        in_chans: channels; timm adapts the first convolution of pretrained weights.
        trainable_from, freeze_batch_stats: see :meth:`Backbone.freeze`; the stages are timm's coarse groups.
        stem: ``small`` replaces a ResNet's stem by a 3x3 convolution of stride 1 without pooling.
        spatial: pooling of the last map over its pixels: ``avg``, ``max``, ``lse`` (:class:`LogSumExp`); None: the model's own.
        kwargs: further arguments of ``timm.create_model``.

    >>> import torch
    >>> net = Timm("resnet18", pretrained=False, in_chans=1)
    >>> net(torch.zeros(2, 1, 64, 64)).shape
    torch.Size([2, 512])
    """

    def __init__(
        self, name: str, pretrained: bool | str = True, in_chans: int = 3, trainable_from: str | int | None = None,
        freeze_batch_stats: bool = True, stem: str = "standard", kwargs: dict[str, Any] | None = None,
        spatial: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        timm = weights.import_timm()
        if not timm.is_model(name):
            near = did_you_mean(name.split(".")[0], timm.list_models())
            raise UserError(f"backbone.name={name}: timm has no such model.{near}")
        weights.check_choice(pretrained)
        if stem == "small" and pretrained:
            raise UserError(
                "backbone.stem=small has a first layer of its own, without pretrained weights: set backbone.pretrained=false."
            )
        for key, instead in OWN.items():
            if (kwargs or {}).get(key):
                raise UserError(f"backbone.kwargs.{key}={(kwargs or {})[key]}: leave it out; {instead}.")
        if spatial is not None and spatial not in SPATIAL:
            raise UserError(f"backbone.spatial={spatial}: it is {', '.join(SPATIAL)}, or null for the model's own.")
        options: dict[str, Any] = {"in_chans": in_chans, "num_classes": 0, **(kwargs or {})}
        if spatial is not None:
            options["global_pool"] = ""
        if pretrained is True:
            weights.require_timm_weights(name)
            options["pretrained"] = True
        if isinstance(pretrained, str):
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": weights.existing(pretrained)}}
            self.model = weights.from_file(name, lambda: timm.create_model(name, **options), weights.existing(pretrained))
        else:
            self.model = weights.or_stop(name, pretrained, lambda: timm.create_model(name, **options))
        if stem == "small":
            _small_stem(self.model, name, in_chans)
        elif stem != "standard":
            raise UserError(f"backbone.stem={stem}: it is standard or small.")
        self.in_chans = in_chans
        # num_features is not the output's width for mobilenetv3 and vgg
        model: Any = self.model
        self.num_features = int(getattr(model, "head_hidden_size", model.num_features))
        cfg = model.pretrained_cfg or {}
        self.mean, self.std = grey_weights(cfg.get("mean", IMAGENET_MEAN), cfg.get("std", IMAGENET_STD), in_chans)
        self.stages = _timm_stages(self.model)
        self.spatial = None if spatial is None else SPATIAL[spatial]()
        self.freeze(trainable_from, freeze_batch_stats)

    def forward(self, images: Tensor) -> Tensor:
        """Features (I,D) of images (I,C,H,W)."""
        features = self.model(images)
        if self.spatial is None:
            return features
        if features.ndim != 4:
            raise UserError(
                f"backbone.spatial: {self.hparams['name']} ends in {tuple(features.shape[1:])}, which is no map. Leave it null."
            )
        return self.spatial(features).flatten(1)


class LogSumExp(nn.Module):
    """Pooling by log(mean(exp(r * x))) / r over the pixels of a map (Pinheiro and Collobert 2015; Wang et al. 2017, eq. 4).

    Between the mean (r to 0) and the largest value (r to infinity).

    Args:
        r: sharpness, above 0.
    """

    def __init__(self, r: float = 10.0) -> None:
        super().__init__()
        self.r = r

    def forward(self, maps: Tensor) -> Tensor:
        """(I,D) of maps (I,D,H,W)."""
        x = maps.float().flatten(2) * self.r
        return ((torch.logsumexp(x, 2) - math.log(x.shape[2])) / self.r).to(maps.dtype)


SPATIAL: dict[str, Any] = {"avg": partial(nn.AdaptiveAvgPool2d, 1), "max": partial(nn.AdaptiveMaxPool2d, 1), "lse": LogSumExp}

# of timm.create_model, and what says it here
OWN = {
    "num_classes": "a backbone ends in features, and the head has as many outputs as the findings need",
    "features_only": "a backbone ends in one row of features an image (backbone.spatial pools its last map)",
    "in_chans": "it is backbone.in_chans",
    "pretrained": "it is backbone.pretrained",
    "checkpoint_path": "it is backbone.pretrained=<file>",
    "pretrained_cfg_overlay": "it is backbone.pretrained",
}


def _timm_stages(model: nn.Module) -> dict[str, list[str]]:
    """Coarse groups of timm, each named by the longest module path that its parameters share."""
    from timm.models import group_parameters  # which takes a second, and other backbones do without

    matcher: Callable[..., Any] | None = getattr(model, "group_matcher", None)
    groups = group_parameters(model, matcher(coarse=True)) if matcher else {0: [n for n, _ in model.named_parameters()]}
    stages: dict[str, list[str]] = {}
    for _, parameters in sorted(groups.items()):
        paths = [p.split(".")[:-1] for p in parameters]
        shared = [words[0] for words in zip(*paths, strict=False) if len(set(words)) == 1]
        name = ".".join(shared) or ("stem" if not stages else f"stage{len(stages)}")
        stages[name if name not in stages else f"{name}_{len(stages)}"] = [f"model.{p}" for p in parameters]
    return stages


def _small_stem(model: nn.Module, name: str, in_chans: int) -> None:
    if not (isinstance(getattr(model, "maxpool", None), nn.Module) and isinstance(getattr(model, "conv1", None), nn.Module)):
        raise UserError(f"backbone.stem=small is for timm's ResNets; {name} has no conv1 and maxpool.")
    width = next(p for n, p in model.named_parameters() if n.startswith("bn1.")).shape[0]
    model.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
