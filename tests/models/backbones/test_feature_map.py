"""The last layer with places of every kind of network, and where in the image its places lie."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xraylab.errors import UserError
from xraylab.models import CNN, AlexNet, Backbone, Timm
from xraylab.models.backbones.feature_map import feature_map, tapped

#: backbone, side of the image, layer, layout, grid, and by the arithmetic of its convolutions where place 0 lies and the step
KINDS = {
    "alexnet": (lambda: AlexNet(pretrained=False), 256, "features.11", "channels_first", 15, (15, 16)),
    "cnn": (lambda: CNN(image_size=64, layers=3, filters=4), 64, "cells.2.2", "channels_first", 16, (1.5, 4)),
    "resnet18": (lambda: Timm("resnet18", pretrained=False), 224, "model.layer4", "channels_first", 7, (0, 32)),
    "resnet18_small": (
        lambda: Timm("resnet18", pretrained=False, stem="small"), 28, "model.layer4", "channels_first", 4, (0, 8),
    ),
    "densenet121": (lambda: Timm("densenet121", pretrained=False), 224, "model.features", "channels_first", 7, (14, 32)),
    "vgg16": (lambda: Timm("vgg16", pretrained=False), 224, "model.features.29", "channels_first", 14, (7.5, 16)),
    "lse": (lambda: Timm("resnet18", pretrained=False, spatial="lse"), 224, "model", "channels_first", 7, (0, 32)),
    "vit": (lambda: Timm("vit_tiny_patch16_224", pretrained=False), 224, "model.blocks.11.norm1", "tokens", 14, (7.5, 16)),
    "swin": (lambda: Timm("swin_tiny_patch4_window7_224", pretrained=False), 224, "model.norm", "channels_last", 7, (15.5, 32)),
    "mixer": (lambda: Timm("mixer_s16_224", pretrained=False), 224, "model.blocks.7.norm1", "tokens", 14, (7.5, 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_layer_is_found_and_its_places_lie_where_its_convolutions_put_them(name):
    make, side, layer, layout, grid, (first, step) = KINDS[name]
    torch.manual_seed(0)
    found = feature_map(make().eval(), torch.zeros(1, 3, side, side))
    assert (found.name, found.layout, found.grid) == (layer, layout, (grid, grid))
    for axis in found.centres:
        assert axis == pytest.approx((first, step), abs=step / 10), "to a tenth of the step"


#: of the first activation, or the embedding of patches
FIRST = {
    "alexnet": ("features.1", "channels_first", 63, (3, 4)), "cnn": ("cells.0.2", "channels_first", 64, (0, 1)),
    "resnet18": ("model.act1", "channels_first", 112, (0, 2)),
    "densenet121": ("model.features.norm0.act", "channels_first", 112, (0, 2)),
    "vit": ("model.patch_embed", "tokens", 14, (7.5, 16)), "swin": ("model.patch_embed", "channels_last", 56, (1.5, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_the_first_layer_is_found_too(name):
    make, side, *_ = KINDS[name]
    layer, layout, grid, centre = FIRST[name]
    torch.manual_seed(0)
    found = feature_map(make().eval(), torch.zeros(1, 3, side, side), first=True)
    assert (found.name, found.layout, found.grid) == (layer, layout, (grid, grid))
    assert found.centres[0] == pytest.approx(centre, abs=0.3)


def test_a_map_has_the_layout_that_is_said():
    for name in ("vit", "swin", "resnet18"):
        make, side, *_ = KINDS[name]
        backbone = make().eval()
        layer = feature_map(backbone, torch.zeros(1, 3, side, side))
        with tapped(backbone, layer) as kept:
            backbone(torch.zeros(2, 3, side, side))
        assert layer.as_map(kept.output).shape[::2] == (2, layer.grid[0])


def test_oblong_images_have_oblong_maps():
    found = feature_map(Timm("resnet18", pretrained=False).eval(), torch.zeros(1, 3, 128, 224))
    assert found.grid == (4, 7)


def test_a_network_without_places_is_refused():
    class Brightness(Backbone):
        num_features, in_chans, mean, std, stages = 1, 1, (0.0,), (1.0,), {}

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, images):
            return self.layer(images.mean((2, 3)))

    with pytest.raises(UserError, match="method=occlusion needs none"):
        feature_map(Brightness(), torch.zeros(1, 1, 32, 32))
