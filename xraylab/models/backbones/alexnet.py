"""AlexNet's convolutions, with their published weights or without."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from xraylab.errors import UserError
from xraylab.models.backbones import weights
from xraylab.models.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, adapted_first_conv, grey_weights


class AlexNet(Backbone):
    """Backbone AlexNet, torchvision's without its classifier, globally averaged: 256 features, as in Bien et al. 2018.

    Args:
        pretrained: True for the ImageNet weights, False for random ones (He et al. 2015), or a file of weights.
        in_chans: 3, or 1 (the first kernel is then summed over RGB).
        trainable_from: see :meth:`Backbone.freeze`; the stages are conv1 ... conv5.
        freeze_batch_stats: without effect; AlexNet has none.

    >>> AlexNet(pretrained=False).num_features
    256
    """

    def __init__(
        self, pretrained: bool | str = True, in_chans: int = 3, trainable_from: str | int | None = None,
        freeze_batch_stats: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
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
            adapted_first_conv(self.features, "0", in_chans)
            self.mean, self.std = grey_weights(self.mean, self.std, in_chans)
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
