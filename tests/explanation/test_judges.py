"""Maps of single pictures agree with captum's and grad-cam's, where they are installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from explanation.test_maps import model, study

from xraylab.explanation.maps import explain
from xraylab.models import AlexNet, MaxFeature, MeanProbability, Timm

BACKBONES = {
    "resnet18": (lambda: Timm("resnet18", pretrained=False), lambda b: b.model.layer4),
    "densenet121": (lambda: Timm("densenet121", pretrained=False), lambda b: b.model.features),
    "alexnet": (lambda: AlexNet(pretrained=False), lambda b: b.features[11]),
    "vit": (
        lambda: Timm("vit_tiny_patch16_224", pretrained=False, kwargs={"img_size": 64}), lambda b: b.model.blocks[-1].norm1,
    ),
    "swin": (
        lambda: Timm("swin_tiny_patch4_window7_224", pretrained=False, kwargs={"img_size": 64, "window_size": 2}),
        lambda b: b.model.norm,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    """Backbones are made before :func:`model` seeds what it adds to them."""
    torch.manual_seed(0)


class Logits(torch.nn.Module):
    """A model's logits of normalised pictures, each a study of its own, as these libraries want a network."""

    def __init__(self, module):
        super().__init__()
        self.net = module.net

    def forward(self, x):
        features = self.net.backbone(x)
        return self.net.pooled(features, torch.arange(len(x)), len(x))


def normalised(module, images):
    net = module.net
    x = torch.from_numpy(images)[:, None].float().expand(-1, net.backbone.in_chans, -1, -1)
    return ((x - net.mean) / net.std).requires_grad_()


def channels_first(name, side):
    """What makes a map of a layer's output, as these libraries want it."""
    if name == "vit":
        return lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return (lambda x: x.permute(0, 3, 1, 2)) if name == "swin" else None


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("method", ["hirescam", "gradcam"])
def test_maps_are_those_of_grad_cam(name, method):
    cams = pytest.importorskip("pytorch_grad_cam", reason="pip install --no-deps -r tests/requirements-judges.txt")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    make, layer = BACKBONES[name]
    module, images = model(make(), MaxFeature()), study(1)
    with torch.no_grad():  # a Grad-CAM has no negative values: of a finding and its opposite, one has positive ones
        module.net.head[-1].weight[1] = -module.net.head[-1].weight[0]
    ours = [found.maps[0] for found in explain(module, images, ["a", "b"], method)]
    kind = {"hirescam": cams.HiResCAM, "gradcam": cams.GradCAM}[method]
    for k, mine in enumerate(ours):
        with kind(Logits(module), [layer(module.net.backbone)], reshape_transform=channels_first(name, mine.shape[0])) as cam:
            wanted = [targets.ClassifierOutputTarget(k)]
            outputs = cam.activations_and_grads(normalised(module, images))
            wanted[0](outputs[0]).backward()
            values = cam.activations_and_grads.activations[0].cpu().numpy()
            slopes = cam.activations_and_grads.gradients[0].cpu().numpy()
            theirs = cam.get_cam_image(None, layer(module.net.backbone), wanted, values, slopes, False)[0]
        theirs = np.maximum(theirs, 0) if method == "gradcam" else theirs
        assert np.allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max() + 1e-9)
    assert max(np.abs(mine).max() for mine in ours) > 0


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "alexnet"])
def test_a_gradcam_is_that_of_captum(name):
    attr = pytest.importorskip("captum.attr", reason="pip install --no-deps -r tests/requirements-judges.txt")
    make, layer = BACKBONES[name]
    module, images = model(make(), MaxFeature()), study(1)
    ours = explain(module, images, ["a"], "gradcam")[0].maps[0]
    cam = attr.LayerGradCam(Logits(module), layer(module.net.backbone))
    theirs = cam.attribute(normalised(module, images), target=0, relu_attributions=True)
    assert np.allclose(ours, theirs[0, 0].detach().numpy(), atol=1e-5 * np.abs(ours).max())


def test_an_occlusion_is_that_of_captum():
    """Of one place at a time, each is the mean of the windows that cover it."""
    attr = pytest.importorskip("captum.attr", reason="pip install --no-deps -r tests/requirements-judges.txt")
    module, images = model(Timm("resnet18", pretrained=False), MeanProbability()), study(1, 56)
    ours = explain(module, images, ["a"], "occlusion")[0].maps[0]
    x = normalised(module, images)
    filled = normalised(module, np.full_like(images, np.rint(images.mean())))
    theirs = attr.Occlusion(Logits(module)).attribute(x, (3, 8, 8), strides=(3, 4, 4), baselines=filled, target=0)
    places = theirs[0, 0, 2::4, 2::4].detach().numpy()  # 14 x 14 places of 4 pixels
    assert np.allclose(ours, places, atol=1e-4 * np.abs(ours).max())
