"""What training images look like: distances as references say, thresholds that hold, and what is told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from xraylab.models import AlexNet, Timm
from xraylab.models.distribution import Enough, TrainingDistribution, described, early_layer


def studies(count: int, seed: int, shift: float = 0.0, channels: int = 6) -> list[np.ndarray]:
    """Each of 1-4 images, described by correlated numbers."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).standard_normal((channels, channels))
    return [(rng.standard_normal((rng.integers(1, 5), channels)) @ mix + shift + 5).astype(np.float32) for _ in range(count)]


def test_distances_are_those_of_scipy_with_the_covariance_of_scikit_learn():
    train = studies(80, 1)
    found = TrainingDistribution.fit("layer", train, range(80))
    x = np.concatenate(train).astype(np.float64)
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit((x - x.mean(0)) / x.std(0)).covariance_)
    some = studies(1, 2)[0]
    wanted = [mahalanobis((row - x.mean(0)) / x.std(0), np.zeros(6), inverse) for row in some]
    assert found.distance(torch.from_numpy(some)).tolist() == pytest.approx(wanted, rel=1e-4)
    assert found.of_study(some) == pytest.approx(np.mean(wanted), rel=1e-4)


def test_of_studies_like_those_of_training_one_in_a_hundred_is_refused_and_of_others_all():
    shares = []
    for seed in range(12):
        found = TrainingDistribution.fit("layer", studies(150, 3 * seed), range(150), studies(50, 3 * seed + 1))
        assert found.n == 200
        shares.append(np.mean([found.of_study(x) > found.threshold for x in studies(300, 3 * seed + 2)]))
        assert all(found.of_study(x) > found.threshold for x in studies(50, seed, shift=15.0))
    assert 0.003 < np.mean(shares) < 0.017


def test_a_patients_studies_are_of_one_fold():
    """Else copies of a study would make its distance that of training itself."""
    train = [x for of in studies(40, 5, channels=30) for x in [of] * 3]
    apart = TrainingDistribution.fit("layer", train, [k // 3 for k in range(120)])
    mixed = TrainingDistribution.fit("layer", train, range(120))
    assert apart.threshold > mixed.threshold


def test_constant_channels_and_values_that_are_no_numbers_do_no_harm():
    train = [np.concatenate([x, np.full((len(x), 2), 3.0, np.float32)], 1) for x in studies(30, 6)]
    found = TrainingDistribution.fit("layer", train, range(30))
    assert np.isfinite(found.threshold)
    other = train[0].copy()
    other[:, -1] = 4.0
    assert found.of_study(other) > found.threshold
    other[:] = np.nan
    assert found.of_study(other) > found.threshold
    assert TrainingDistribution.fit("layer", train[:4], range(4)) is None


@pytest.mark.parametrize(
    ("backbone", "layer", "channels"),
    [
        (lambda: AlexNet(pretrained=False), "features.3", 192),
        (lambda: Timm("resnet18", pretrained=False), "model.layer1.1.conv2", 64),
        (lambda: Timm("vit_tiny_patch16_224", pretrained=False, kwargs={"img_size": 64}), "model.patch_embed.proj", 192),
    ],
)
def test_an_early_layer_says_means_and_deviations_of_its_channels(backbone, layer, channels):
    net = backbone().eval()
    assert early_layer(net) == layer
    x = torch.randn(3, 3, 64, 64)
    kept: list[torch.Tensor] = []
    handle = dict(net.named_modules())[layer].register_forward_hook(lambda _, __, output: kept.append(output.clone()))
    with torch.no_grad(), described(net, layer) as seen:
        net(x)
    handle.remove()
    assert seen.images.shape == (3, 2 * channels)
    assert torch.allclose(seen.images[:, :channels], kept[0].mean((2, 3)), atol=1e-6)
    assert torch.allclose(seen.images[:, channels:], kept[0].std((2, 3), correction=0), atol=1e-6)
    with torch.no_grad(), described(net, layer, stop=True) as early, pytest.raises(Enough):
        net(x)
    assert torch.equal(early.images, seen.images)
    assert not dict(net.named_modules())[layer]._forward_hooks
