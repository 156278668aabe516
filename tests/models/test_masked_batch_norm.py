"""Batch statistics without blank images, against torch's own of a batch that has none."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from xraylab.models.masked_batch_norm import WithoutBlank

LAYERS = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False, track_running_stats=False), BatchNormAct2d(3), nn.BatchNorm1d(3)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer).split("(")[0])
def test_blank_images_do_not_enter_batch_statistics(layer):
    torch.manual_seed(0)
    shape = (3,) if isinstance(layer, nn.BatchNorm1d) else (3, 4, 2)
    x, blank = torch.randn(5, *shape), torch.full((3, *shape), 1e6)
    real, weight = torch.arange(8) < 5, torch.randn(5, *shape)
    plain, filled = copy.deepcopy(layer), copy.deepcopy(layer)
    for _ in range(2):
        a, b = x.clone().requires_grad_(), torch.cat([x, blank]).requires_grad_()
        expected = plain(a)
        with WithoutBlank(real, 5):
            out = filled(b)
        torch.testing.assert_close(out[:5], expected)
        (expected * weight).sum().backward()
        (out[:5] * weight).sum().backward()
        torch.testing.assert_close(b.grad[:5], a.grad, rtol=1e-4, atol=1e-5)
        assert (b.grad[5:] == 0).all()
    torch.testing.assert_close(dict(filled.named_buffers()), dict(plain.named_buffers()))
    for p, q in zip(filled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    with WithoutBlank(real, 5):
        out = filled.eval()(torch.cat([x, blank]))
    torch.testing.assert_close(out[:5], plain.eval()(x))


def test_one_value_has_no_variance():
    x = torch.randn(4, 3, 1, 1)
    with WithoutBlank(torch.arange(4) < 1, 1), pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(3)(x)
