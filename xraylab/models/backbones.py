"""Backbones: images (I,C,H,W) to features (I,D), with published weights and freezing by stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.core.mixins import HyperparametersMixin
from torch import Tensor, nn

from xraylab.errors import UserError, did_you_mean, listed
from xraylab.models import weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module, HyperparametersMixin):
    """Interface of a backbone.

    Attributes:
        num_features: D.
        in_chans: C.
        mean, std: C values on the scale 0-1 that its weights were trained with.
        stages: names of its stages from input to output, with the names of their parameters.
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
        self._frozen_norms = [
            module
            for name, module in self.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" in frozen
        ] if freeze_batch_stats else []  # fmt: skip
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


class AlexNet(Backbone):
    """torchvision's AlexNet without its classifier, globally averaged: 256 features, as in Bien et al. 2018.

    Args:
        pretrained: True for the ImageNet weights, False for random ones (He et al. 2015), or a file of weights.
        in_chans: 3, or 1 (the first kernel is then summed over RGB).
        trainable_from: see :meth:`Backbone.freeze`; the stages are conv1 ... conv5.
        freeze_batch_stats: without effect; AlexNet has none.
    """

    def __init__(
        self, pretrained: bool | str = True, in_chans: int = 3, trainable_from: str | int | None = None,
        freeze_batch_stats: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        from torchvision.models import AlexNet_Weights, alexnet

        weights.check_choice(pretrained)
        model = alexnet()
        if pretrained is True:
            model.load_state_dict(weights.torchvision_weights(AlexNet_Weights.IMAGENET1K_V1, "alexnet"))
        elif pretrained:
            weights.load_file(model, weights.existing(str(pretrained)), heads=["classifier"])
        else:
            for layer in model.features:
                if isinstance(layer, nn.Conv2d):  # torchvision's own start shrinks the signal by a third a layer
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.features, self.pool = model.features, nn.AdaptiveAvgPool2d(1)
        self.num_features, self.in_chans = 256, in_chans
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        if in_chans != 3:
            _adapt_first_conv(self.features, "0", in_chans)
            self.mean, self.std = _grey(self.mean, self.std, in_chans)
        convs = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]
        self.stages = {f"conv{k}": [f"features.{i}.weight", f"features.{i}.bias"] for k, i in enumerate(convs, start=1)}
        self.freeze(trainable_from, freeze_batch_stats)

    def forward(self, images: Tensor) -> Tensor:
        """Features (I,256) of images (I,C,H,W), H and W at least 63."""
        if min(images.shape[-2:]) < 63:
            raise UserError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels are too small for alexnet (63 at least): "
                "set image.size, or another backbone."
            )
        return self.pool(self.features(images)).flatten(1)


class Timm(Backbone):
    """Any model of timm by name, pooled as it pools itself.

    Args:
        name: e.g. resnet18, or with a tag, densenet121.tv_in1k.
        pretrained: True for its published weights, False for random ones, or a file of weights for this model.
        in_chans: channels; timm adapts the first convolution of pretrained weights.
        trainable_from, freeze_batch_stats: see :meth:`Backbone.freeze`; the stages are timm's coarse groups.
        stem: ``small`` replaces a ResNet's stem by a 3x3 convolution of stride 1 without pooling.
        spatial: pooling of the last map over its pixels: ``avg``, ``max``, ``lse`` (:class:`LogSumExp`); None: the model's own.
        kwargs: further arguments of ``timm.create_model``.
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
        self.mean, self.std = _grey(cfg.get("mean", IMAGENET_MEAN), cfg.get("std", IMAGENET_STD), in_chans)
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
    """log(mean(exp(r * x))) / r over the pixels of a map (Pinheiro and Collobert 2015; Wang et al. 2017, eq. 4).

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


SPATIAL: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: nn.AdaptiveAvgPool2d(1), "max": lambda: nn.AdaptiveMaxPool2d(1), "lse": LogSumExp,
}  # fmt: skip


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
    from timm.models import group_parameters

    matcher: Callable[..., Any] | None = getattr(model, "group_matcher", None)
    groups = group_parameters(model, matcher(coarse=True)) if matcher else {0: [n for n, _ in model.named_parameters()]}
    stages: dict[str, list[str]] = {}
    for _, parameters in sorted(groups.items()):
        paths = [p.split(".")[:-1] for p in parameters]
        shared = [words[0] for words in zip(*paths, strict=False) if len(set(words)) == 1]
        name = ".".join(shared) or ("stem" if not stages else f"stage{len(stages)}")
        stages[name if name not in stages else f"{name}_{len(stages)}"] = [f"model.{p}" for p in parameters]
    return stages


def _grey(mean: Any, std: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Statistics for that many channels: as they are for 3, else their averages over RGB."""
    if channels == len(mean):
        return tuple(mean), tuple(std)
    return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels


def _adapt_first_conv(parent: nn.Module, name: str, in_chans: int) -> None:
    """Replace a 3-channel convolution by one of ``in_chans`` that responds alike to a grey image."""
    old = getattr(parent, name)
    new = nn.Conv2d(in_chans, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    with torch.no_grad():
        new.weight.copy_(old.weight.sum(1, keepdim=True).expand_as(new.weight) / in_chans)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    setattr(parent, name, new)


def _small_stem(model: nn.Module, name: str, in_chans: int) -> None:
    if not (isinstance(getattr(model, "maxpool", None), nn.Module) and isinstance(getattr(model, "conv1", None), nn.Module)):
        raise UserError(f"backbone.stem=small is for timm's ResNets; {name} has no conv1 and maxpool.")
    width = next(p for n, p in model.named_parameters() if n.startswith("bn1.")).shape[0]
    model.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
