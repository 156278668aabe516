"""Averages of weights: torch's numbers, without asking a device for one."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from xraylab.errors import UserError
from xraylab.training.callbacks.weight_averaging import ExponentialAveraging, StochasticWeightAveraging


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def step(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn_like(parameter)
    net.layers(torch.randn(8, 3, dtype=torch.double))


@pytest.mark.parametrize(
    ("callback", "reference"),
    [(ExponentialAveraging(0.8), {"avg_fn": get_ema_avg_fn(0.8)}), (StochasticWeightAveraging(start=1), {})],
    ids=["ema", "swa"],
)
def test_averages_are_torchs_and_nothing_is_asked_of_their_device(callback, reference):
    torch.manual_seed(0)
    net = Net().double()
    callback.setup(None, net, "fit")
    ours, torchs = callback._average_model, AveragedModel(net, use_buffers=True, **reference)
    for _ in range(5):
        step(net)
        ours.update_parameters(net)
        torchs.update_parameters(net)
    a, b = ours.state_dict(), torchs.state_dict()
    assert a.keys() == b.keys()
    assert int(a["n_averaged"]) == 5
    for key, value in b.items():
        if value.is_floating_point():
            torch.testing.assert_close(a[key], value)
    assert int(a["module.layers.1.num_batches_tracked"]) == 5, "a count is no mean"

    net.to("meta")  # which has no number to give
    callback.on_fit_start(None, net)
    assert {t.device.type for t in ours.module.state_dict().values()} == {"meta"}
    ours.update_parameters(net)
    assert int(ours.n_averaged) == 6
    blind = AveragedModel(net, device=torch.device("meta"), use_buffers=True, **reference)
    with pytest.raises((RuntimeError, NotImplementedError)):
        blind.update_parameters(net)


@pytest.mark.parametrize("decay", [1, -0.1, "high", True])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(UserError, match=rf"callbacks.ema.decay={decay}: it is a number from 0 to below 1"):
        ExponentialAveraging(decay)
