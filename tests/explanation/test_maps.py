"""Maps and shares of a study's logit: identities, symmetries, and outside references on single pictures."""

from __future__ import annotations

import copy
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import nn

from xraylab.errors import UserError
from xraylab.explanation.maps import METHODS, StudyMaps, explain
from xraylab.losses import TwoSoftmax, WeightedBCE
from xraylab.models import CNN, AlexNet, Attention, MaxFeature, MaxProbability, MeanProbability, StudyNet, Timm
from xraylab.training.study_module import StudyModule

POOLS = (MaxFeature, Attention, MeanProbability, MaxProbability)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Backbones are made before :func:`model` seeds what it adds to them."""
    torch.manual_seed(0)


def model(backbone=None, pool=None, labels=("a", "b"), loss=None, **net) -> StudyModule:
    torch.manual_seed(0)
    loss = loss or WeightedBCE()
    outputs = loss.outputs(len(labels))
    net = StudyNet(backbone or Timm("resnet18", pretrained=False), pool or MaxFeature(), outputs, **net)
    for module in net.modules():  # statistics of a network that was trained
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return StudyModule(net, loss, labels=labels).eval()


def study(images=4, size=64, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (images, size, size)).astype(np.uint8)


def logit(module: StudyModule, images: np.ndarray) -> float:
    p = module.predict(images)["a"]
    return float(np.log(p) - np.log1p(-p))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("loss", [WeightedBCE, TwoSoftmax])
def test_shares_add_up_to_what_predict_says(pool, loss) -> None:
    module, images = model(pool=pool(), loss=loss()), study()
    for found in explain(module, images):
        p = module.predict(images)[found.finding]
        assert found.probability == pytest.approx(p, abs=1e-6)
        assert found.shares.sum() + found.rest == pytest.approx(p if found.of == "probability" else found.logit, abs=1e-5)


def test_a_linear_heads_rest_is_its_bias() -> None:
    for pool in (MaxFeature(), Attention()):
        module = model(pool=pool)
        a, b = explain(module, study())
        bias = module.net.head[-1].bias.tolist()
        assert [a.rest, b.rest] == pytest.approx(bias, abs=1e-5)


@pytest.mark.parametrize("backbone", [
    lambda: Timm("resnet18", pretrained=False), lambda: AlexNet(pretrained=False), lambda: Timm("densenet121", pretrained=False),
    lambda: CNN(image_size=64, layers=2, filters=4),
])  # fmt: skip
def test_a_hirescam_sums_to_each_images_share(backbone) -> None:
    module = model(backbone())
    for found in explain(module, study(), method="hirescam"):
        assert found.maps.sum((1, 2)) == pytest.approx(found.shares, abs=1e-4)


@pytest.mark.parametrize("pool", [MeanProbability, MaxProbability])
def test_a_hirescam_sums_to_the_share_of_a_probability_less_that_of_nothing(pool) -> None:
    module, images = model(pool=pool()), study()
    nothing = module.net.head[-1].bias.sigmoid().tolist()
    for found, p in zip(explain(module, images, method="hirescam"), nothing, strict=True):
        weight = (found.shares > 0) / (found.shares > 0).sum()
        assert found.maps.sum((1, 2)) == pytest.approx(found.shares - weight * p, abs=1e-4)


def test_an_image_that_is_sure_keeps_its_map() -> None:
    """The slope of its probability is 0, but it is what decides."""
    module, images = model(pool=MeanProbability()), study()
    with torch.no_grad():
        module.net.head[-1].weight.mul_(1e4)
    found = max(explain(module, images, method="hirescam"), key=lambda of: of.shares.max())
    assert found.shares.max() == pytest.approx(1 / len(images), abs=1e-6)
    assert found.maps.sum((1, 2))[found.shares.argmax()] > 0.4 / len(images)


def test_a_cam_of_a_linear_head_sums_to_each_images_own_logit_without_its_bias() -> None:
    module, images = model(pool=MeanProbability()), study()
    a = explain(module, images, ["a"], method="cam")[0]
    own = [logit(module, image) for image in images]
    assert a.maps.sum((1, 2)) == pytest.approx(np.array(own) - module.net.head[-1].bias[0].item(), abs=1e-4)


def test_a_cam_that_would_not_be_exact_is_refused() -> None:
    with pytest.raises(UserError, match="method=cam is exact only"):
        explain(model(hidden=(8,)), study(), method="cam")


def test_of_a_maximum_only_decisive_images_have_a_map() -> None:
    module, images = model(pool=MaxProbability()), study()
    a = explain(module, images, ["a"])[0]
    own = [logit(module, image) for image in images]
    assert np.flatnonzero(np.abs(a.maps).sum((1, 2))).tolist() == [int(np.argmax(own))] == [a.shares.argmax()]


def test_a_blank_copy_does_not_take_the_share_of_another() -> None:
    """Images of which no feature is the largest have no share and no map under MaxFeature."""
    module, images = model(), study()
    with torch.no_grad():
        features = module.net.features(torch.from_numpy(images)[:, None])
    winners = set(features.argmax(0).tolist())
    a = explain(module, images, ["a"])[0]
    for image in range(len(images)):
        assert (a.shares[image] != 0) == (image in winners)


@pytest.mark.parametrize("pool", [MaxFeature, Attention])
def test_the_gradient_is_that_of_the_study_through_the_pool(pool) -> None:
    """A change of the layer's values along the gradient changes the logit as a plain loop over the network says."""
    module, images = model(pool=pool()), study()
    maps = explain(module, images, ["a"], "hirescam")[0].maps
    x = torch.from_numpy(images)[:, None].float().expand(-1, 3, -1, -1)
    timm_model = module.net.backbone.model
    layer = timm_model.forward_features((x - module.net.mean) / module.net.std).detach().requires_grad_()
    features = timm_model.forward_head(layer)
    z = module.loss.log_odds(module.net.pooled(features, torch.zeros(len(images), dtype=torch.int64), 1))[0, 0]
    (slope,) = torch.autograd.grad(z, layer)
    assert np.allclose(maps, (slope * layer).sum(1).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_images_is_that_of_maps(method) -> None:
    module, images = model(), study(3)
    options = {"method": method if method != "cam" else "hirescam"}
    a, b = explain(module, images, ["a"], **options)[0], explain(module, images[::-1].copy(), ["a"], **options)[0]
    assert np.allclose(a.maps, b.maps[::-1], atol=1e-5)
    assert a.shares == pytest.approx(b.shares[::-1], abs=1e-5)


def test_a_mirrored_picture_has_a_mirrored_map_where_the_network_is_symmetric() -> None:
    module = model(CNN(image_size=32, layers=2, filters=4), pool=MeanProbability())
    with torch.no_grad():
        for layer in module.net.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_((layer.weight + layer.weight.flip(3)) / 2)
        head = module.net.head[-1].weight.view(2, -1, 8, 8)
        head.copy_((head + head.flip(3)) / 2)
    images = study(1, 32)
    for method in ("layers", "stem", "hirescam", "gradcam", "occlusion"):
        a = explain(module, images, ["a"], method)[0].maps
        b = explain(module, np.ascontiguousarray(images[:, :, ::-1]), ["a"], method)[0].maps
        assert np.abs(a).max() > 0
        assert np.allclose(a, b[:, :, ::-1], atol=1e-4 * np.abs(a).max())


def test_occlusion_finds_the_place_that_a_network_looks_at() -> None:
    class Corner(CNN):
        def forward(self, images):
            return images[:, :, 4:12, 40:52].mean((1, 2, 3))[:, None] / 50

    backbone = Corner(image_size=64, layers=1, filters=2, in_chans=1)
    backbone.num_features = 1
    module = model(backbone, labels=("a",))
    nn.init.ones_(module.net.head[-1].weight)
    images = np.zeros((1, 64, 64), np.uint8)
    images[0, 4:12, 40:52] = 255
    (a,) = explain(module, images, method="occlusion")
    x, y = a.peak(0)
    assert 40 <= 64 * x <= 52
    assert 4 <= 64 * y <= 12


def test_a_map_of_the_stem_is_gradient_times_value_smoothed() -> None:
    module, images = model(), study(2)
    maps = explain(module, images, ["a"], "stem")[0].maps
    net = module.net.backbone.model
    x = torch.from_numpy(images)[:, None].float().expand(-1, 3, -1, -1)
    values = net.act1(net.bn1(net.conv1((x - module.net.mean) / module.net.std))).detach().requires_grad_()
    features = net.forward_head(net.layer4(net.layer3(net.layer2(net.layer1(net.maxpool(values))))))
    z = module.loss.log_odds(module.net.pooled(features, torch.zeros(2, dtype=torch.int64), 1))[0, 0]
    (slope,) = torch.autograd.grad(z, values)
    sharp = (slope * values).sum(1).detach().numpy()
    assert np.allclose(
        maps, [cv2.GaussianBlur(one, (0, 0), 0.06 * 32, borderType=cv2.BORDER_REFLECT) for one in sharp], atol=1e-5
    )
    assert maps.sum() == pytest.approx(sharp.sum(), rel=0.05)


@pytest.mark.parametrize("pool", [MaxFeature, MeanProbability])
def test_a_map_of_layers_is_the_mean_of_the_two_at_the_places_of_the_fine_one(pool) -> None:
    module, images = model(pool=pool()), study(3, 64)
    both, fine, coarse = (explain(module, images, ["a"], method)[0] for method in ("layers", "stem", "hirescam"))
    assert both.places == fine.places
    spread = []
    for image in coarse.maps:
        at = [first + step * np.arange(side) for (first, step), side in zip(coarse.places, image.shape, strict=True)]
        wanted = [first + step * np.arange(side) for (first, step), side in zip(fine.places, fine.maps.shape[1:], strict=True)]
        grid = np.meshgrid(*(np.clip(w, a[0], a[-1]) for w, a in zip(wanted, at, strict=True)), indexing="ij")
        spread.append(RegularGridInterpolator(at, image)(np.stack(grid, -1)) * image.size / fine.maps[0].size)
    by_hand = (fine.maps * np.linalg.norm(spread) / np.linalg.norm(fine.maps) + spread) / 2
    assert np.abs(both.maps - by_hand).max() <= 0.04 * np.abs(by_hand).max(), "OpenCV interpolates in steps of 1/32"
    assert np.corrcoef(both.maps.ravel(), by_hand.ravel())[0, 1] > 0.999


def test_parts_are_explained_by_the_features_of_all() -> None:
    torch.manual_seed(0)
    net = StudyNet(Timm("resnet18", pretrained=False), MaxFeature(), 1, parts=("axial", "coronal"))
    module = StudyModule(net, WeightedBCE(), labels=["a"]).eval()
    bags = [study(3, seed=1), study(2, seed=2)]
    (a,) = explain(module, bags)
    p = module.predict({"axial": bags[0], "coronal": bags[1]})["a"]
    assert a.maps.shape[0] == 5
    assert a.probability == pytest.approx(p, abs=1e-6)
    assert a.shares.sum() + a.rest == pytest.approx(a.logit, abs=1e-5)
    with pytest.raises(UserError, match="image of a part"):
        explain(module, bags, method="cam")
    assert explain(module, bags, method="occlusion", most=1)[0].maps.any((1, 2)).sum() == 1


def test_the_model_is_left_as_it_was() -> None:
    module = model().train()
    module.net.head.requires_grad_(False)
    before, state = [p.requires_grad for p in module.parameters()], copy.deepcopy(module.state_dict())
    for method in ("layers", "stem", "hirescam", "occlusion"):
        explain(module, study(), method=method)
    assert module.net.backbone.training
    assert [p.requires_grad for p in module.parameters()] == before
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert not any(m._forward_hooks for m in module.modules())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="hirescam"):
        explain(model(), study(), method="hirescm")
    with pytest.raises(UserError, match="finding=acl"):
        explain(model(), study(), ["acl"])


def test_pixels_lie_where_places_do_and_keep_the_sum() -> None:
    cells = np.zeros((1, 4, 4), np.float32)
    cells[0, 1, 2] = 1
    even = (0.125, 0.25)
    maps = StudyMaps("a", "hirescam", 0.0, cells, np.zeros(1), 0.0, "logit", (even, even))
    pixels = maps.pixels(0, 40, 80)
    y, x = np.unravel_index(pixels.argmax(), pixels.shape)
    assert maps.peak(0) == (0.625, 0.375)
    assert abs((x + 0.5) / 80 - 0.625) < 0.01
    assert abs((y + 0.5) / 40 - 0.375) < 0.02
    assert pixels.sum() == pytest.approx(1, rel=1e-4)
    shifted = replace(maps, places=((0.0, 0.25), even)).pixels(0, 40, 80)
    assert abs((np.unravel_index(shifted.argmax(), shifted.shape)[0] + 0.5) / 40 - 0.25) < 0.02
