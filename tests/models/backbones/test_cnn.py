"""The configurable CNN: its published size, every option, and the cells fed by two."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xraylab.errors import UserError
from xraylab.models import CNN, MeanProbability, StudyNet


def test_six_layers_have_the_published_number_of_parameters():
    net = StudyNet(CNN(256), MeanProbability(), 1, dropout=0.25)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 6_308_609


def test_filters_double_and_the_features_are_flattened():
    cnn = CNN(64, in_chans=1, layers=3, filters=8, convs=2, kernel=5)
    assert [(m.in_channels, m.out_channels) for m in cnn.modules() if isinstance(m, nn.Conv2d)] == [
        (1, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32),
    ]  # fmt: skip
    assert cnn.num_features == 32 * 8 * 8
    assert cnn(torch.randn(2, 1, 64, 64)).shape == (2, cnn.num_features)


@pytest.mark.parametrize(("pool", "size", "stride", "side"), [("max", 2, 2, 16), ("average", 3, 2, 15), ("max", 3, 3, 7)])
def test_pooling_is_the_one_asked_for(pool, size, stride, side):
    cnn = CNN(64, layers=2, filters=4, pool=pool, pool_size=size, pool_stride=stride, batch_norm=False)
    assert cnn.num_features == 8 * side * side
    image = torch.randn(1, 3, 64, 64)
    kind = {"max": nn.functional.max_pool2d, "average": nn.functional.avg_pool2d}[pool]
    x = image
    for conv in (m for m in cnn.modules() if isinstance(m, nn.Conv2d)):
        x = kind(nn.functional.conv2d(x, conv.weight, conv.bias, padding=1).relu(), size, stride)
    torch.testing.assert_close(cnn(image), x.flatten(1))


def test_each_regularisation_is_where_it_says():
    kinds = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)

    def count(**options):
        return tuple(sum(type(m) is kind for m in CNN(32, layers=2, filters=4, **options).modules()) for kind in kinds)

    assert count(batch_norm=False) == (0, 0, 0)
    assert count(batch_norm=True, convs=3) == (6, 0, 0)
    assert count(batch_norm=False, dropout=0.25) == (0, 2, 0)
    assert count(batch_norm=False, spatial_dropout=0.25) == (0, 0, 2)
    cell = CNN(32, layers=1, filters=64, spatial_dropout=0.5).train().cells[0]
    maps = cell(torch.rand(4, 3, 32, 32) + 1).flatten(2)
    assert 0 < (maps == 0).all(2).float().mean() < 1, "whole maps vanish"


def test_a_cell_is_fed_by_the_two_before_it():
    cnn = CNN(32, layers=4, filters=4, feed_forward=True, batch_norm=False)
    assert [c[0].in_channels for c in cnn.cells] == [3, 4, 8 + 4, 16 + 8]
    image = torch.randn(2, 3, 32, 32)
    one = cnn.cells[0](image)
    two = cnn.cells[1](one)
    three = cnn.cells[2](torch.cat([two, nn.functional.max_pool2d(one, 2)], 1))
    four = cnn.cells[3](torch.cat([three, nn.functional.max_pool2d(two, 2)], 1))
    torch.testing.assert_close(cnn(image), four.flatten(1))


def test_freezing_by_cell():
    cnn = CNN(32, layers=3, filters=4, trainable_from="cell3")
    assert {n.split(".")[1] for n, p in cnn.named_parameters() if p.requires_grad} == {"2"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": None}, "set image.size"),
        ({"layers": 7}, "after 6 poolings nothing is left of 32 pixels"),
        ({"filters": 0}, r"backbone.filters=0"),
        ({"dropout": 1.0}, r"backbone.dropout=1.0"),
        ({"pool": "median"}, "max or average"),
        ({"pretrained": True}, "no published weights"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        CNN(**{"image_size": 32, "layers": 2, "filters": 4, **options})
    with pytest.raises(UserError, match="images of 16x16"):
        CNN(32, layers=2, filters=4)(torch.zeros(1, 3, 16, 16))


def test_weights_from_a_file(tmp_path):
    source = CNN(32, layers=2, filters=4)
    torch.save(source.state_dict(), tmp_path / "cnn.pth")
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        CNN(32, layers=2, filters=4, pretrained=str(tmp_path / "cnn.pth")).eval()(image), source.eval()(image)
    )
