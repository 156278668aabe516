"""The self-test that a checkpoint carries: it passes where nothing changed, and finds what did."""

from __future__ import annotations

import pytest
import torch

import xraylab
from xraylab.errors import UserError
from xraylab.training.self_test import SHAPES, noise, outputs


@pytest.mark.parametrize("plane", ["axial", "all"])
def test_a_model_that_was_carried_elsewhere_says_what_it_said(knee_runs, plane):
    module = xraylab.load(knee_runs[plane])
    assert module.expected.shape == (len(SHAPES), 2)
    assert module.self_test() < 1e-5
    assert module.expected.std(0).min() > 0  # of which each study has its own


def test_views_of_bones_too(bone_run):
    assert xraylab.load(bone_run).self_test() < 1e-5


def test_changed_weights_and_preprocessing_are_found(knee_runs):
    module = xraylab.load(knee_runs["axial"])
    with torch.no_grad():
        next(module.net.backbone.parameters()).mul_(1.1)
    with pytest.raises(UserError, match="logits differ by up to"):
        module.self_test()
    for change in ({"rescale": not module.preprocessing["rescale"]}, {"size": 48}):
        other = xraylab.load(knee_runs["axial"])
        other.preprocessing.update(change)
        with pytest.raises(UserError, match="preprocessing"):
            other.self_test()
    broken = xraylab.load(knee_runs["axial"])
    with torch.no_grad():
        broken.net.head[0].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="self-test"):
        broken.self_test()


def test_noise_is_of_its_seed_and_a_checkpoint_of_before_says_that_it_carries_none(knee_runs):
    module = xraylab.load(knee_runs["axial"])
    assert (noise(module, 0) == noise(module, 0)).all()
    assert [noise(module, k).shape for k in range(3)] == list(SHAPES)
    assert torch.equal(outputs(module), outputs(module))
    module.expected = None
    with pytest.raises(UserError, match="carries none"):
        module.self_test()
