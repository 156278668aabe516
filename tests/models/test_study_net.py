"""The network: normalisation, packing, the head."""

from __future__ import annotations

import pytest
import torch

from xraylab.errors import UserError
from xraylab.models import AlexNet, MaxFeature, MeanProbability, StudyNet, Timm


def test_packed_bags_equal_bags_on_their_own():
    torch.manual_seed(0)
    net = StudyNet(Timm("resnet18", pretrained=False), MeanProbability(), 2).eval()
    images = torch.randint(0, 255, (5, 1, 64, 64), dtype=torch.uint8)
    study = torch.tensor([0, 0, 0, 1, 1])
    together = net(images, study, 2)
    torch.testing.assert_close(together[:1], net(images[:3], study[:3], 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[1:], net(images[3:], study[3:] - 1, 1), atol=1e-5, rtol=1e-4)


def test_normalisation_is_on_the_scale_of_the_stored_pixels():
    seen = []
    backbone = AlexNet(pretrained=False)
    backbone.features[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].clone()))
    image = torch.full((1, 1, 64, 64), 58, dtype=torch.uint8)
    study = torch.zeros(1, dtype=torch.long)
    StudyNet(backbone, MaxFeature(), 1, mean=58.0, std=49.73).eval()(image, study, 1)
    assert seen[-1].abs().max() == 0
    StudyNet(backbone, MaxFeature(), 1, mean=0, std=1).eval()(image, study, 1)
    assert (seen[-1] == 58).all()
    StudyNet(backbone, MaxFeature(), 1).eval()(image, study, 1)
    torch.testing.assert_close(seen[-1][0, :, 0, 0], (58 / 255 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std))


def test_the_head_has_the_layers_asked_for():
    net = StudyNet(AlexNet(pretrained=False), MaxFeature(), 3, hidden=[512, 64], dropout=0.25)
    assert [m.out_features for m in net.head if isinstance(m, torch.nn.Linear)] == [512, 64, 3]
    assert sum(isinstance(m, torch.nn.Dropout) for m in net.head) == 3
    with pytest.raises(UserError, match=r"head.dropout"):
        StudyNet(AlexNet(pretrained=False), MaxFeature(), 1, dropout=1.5)
    with pytest.raises(UserError, match=r"image.std"):
        StudyNet(AlexNet(pretrained=False), MaxFeature(), 1, std=0)
