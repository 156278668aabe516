"""What a backbone cannot do is seen on one blank image."""

from __future__ import annotations

import pytest
import torch

from xraylab.errors import UserError
from xraylab.models import CNN, AlexNet, Backbone, Timm
from xraylab.models.trial import lone_norms, require_features

VIT = {"embed_dim": 24, "depth": 2}
SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "works"),
    [
        ("vit_tiny_patch16_224", VIT, 64, (224, True)),
        ("swin_tiny_patch4_window7_224", SWIN, 256, (224, True)),
        ("densenet121", {"growth_rate": 4}, 8, (32, False)),
        ("vgg11", {"mlp_ratio": 1e-3}, 16, (32, False)),
    ],
)
def test_a_size_that_does_not_fit_is_refused_and_every_remedy_named_works(name, kwargs, size, works):
    backbone = Timm(name, pretrained=False, kwargs=kwargs)
    need, by_argument = works
    ways = [f"image.size={need}", *[f"++backbone.kwargs.img_size={size}"] * by_argument]
    with pytest.raises(UserError, match=rf"{name} cannot take images of {size}x{size} pixels: .*Set") as refused:
        require_features(backbone, size, size)
    assert str(refused.value).endswith(f" Set {' or '.join(ways)}, or choose another backbone.")
    assert backbone.training
    require_features(backbone, need, need)
    if by_argument:
        require_features(Timm(name, pretrained=False, kwargs={**kwargs, "img_size": size}), size, size)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kwargs": {"global_pool": ""}}, r"\(1, 512, 2, 2\) of one.*leave out.*global_pool\), or set backbone.spatial=avg"),
        ({"kwargs": {"num_classes": 5}}, r"backbone.kwargs.num_classes=5: leave it out"),
        ({"kwargs": {"features_only": True}}, r"backbone.kwargs.features_only=True: leave it out"),
        ({"kwargs": {"in_chans": 1}}, r"it is backbone.in_chans"),
        ({"kwargs": {"checkpoint_path": "w.pth"}}, r"it is backbone.pretrained=<file>"),
        ({"name": "vit_tiny_patch16_224", "kwargs": {**VIT, "img_size": 64, "global_pool": ""}}, r"makes \(1, 17, 24\) of one"),
        ({"name": "swin_tiny_patch4_window7_224", "kwargs": {**SWIN, "img_size": 64}, "spatial": "avg"}, "backbone.spatial=null"),
    ],
)  # fmt: skip
def test_what_is_no_row_of_features_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        require_features(Timm(**{"name": "resnet18", "pretrained": False, **options}), 64, 64)


def test_several_outputs_and_outputs_that_are_no_numbers_are_refused():
    class Two(Backbone):
        num_features, in_chans = 4, 1

        def forward(self, images):
            return (torch.zeros(1, 4), torch.zeros(1, 4))

    with pytest.raises(UserError, match="it makes a tuple of one image, and not a row of its 4 features"):
        require_features(Two(), 8, 8)
    backbone = CNN(16, layers=1, filters=2)
    with torch.no_grad():
        next(backbone.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not a number"):
        require_features(backbone, 16, 16)


def test_nothing_of_a_backbone_changes():
    torch.manual_seed(0)
    backbone = Timm("resnet18", pretrained=False, trainable_from="layer4")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    modes = [m.training for m in backbone.modules()]
    drawn = torch.random.get_rng_state()
    require_features(backbone, 64, 64)
    assert lone_norms(backbone, 64, 64) == []
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert [m.training for m in backbone.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), drawn)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: Timm("resnet18", pretrained=False), 32),
        (lambda: Timm("resnet18", pretrained=False), 33),
        (lambda: Timm("skresnet18", pretrained=False), 64),  # norms of what is pooled already
        (lambda: Timm("densenet121", pretrained=False, kwargs={"growth_rate": 4}), 32),
        (lambda: CNN(16, layers=4, filters=2), 16),
        (lambda: AlexNet(pretrained=False), 64),
    ],
)
def test_one_image_stops_training_exactly_where_a_norm_is_alone(make, size):
    backbone = make()
    image = torch.rand(1, 3, size, size)
    if lone_norms(backbone, size, size):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            backbone.train()(image)
    else:
        backbone.train()(image)
