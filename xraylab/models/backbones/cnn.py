"""A plain convolutional network whose every part is an option: the ladder of custom CNNs tried on MURA.

Cells of convolutions, batch norm and ReLU, then pooling and dropout; the filters double from cell to cell; the last cell's
output is flattened, not averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xraylab.errors import UserError
from xraylab.models.backbones import weights
from xraylab.models.backbones.base import Backbone
from xraylab.system.command_line import as_typed

POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class CNN(Backbone):
    """Backbone of cells 1..N, each of ``convs`` convolutions with as many channels as the cell has filters.

    Six layers at 256x256x3 with 32 starting filters and one sigmoid have 6,308,609 parameters, as the published network.

    Args:
        image_size: height and width of the images, for the flattened features depend on it.
        in_chans: channels of the images.
        layers: cells.
        filters: of the first cell; doubled from cell to cell.
        convs: convolutions in a cell.
        kernel: of the convolutions, with padding that keeps the size.
        pool: max or average.
        pool_size, pool_stride: of the pooling at a cell's end.
        batch_norm: after each convolution.
        dropout: of single values, after pooling.
        spatial_dropout: of whole feature maps, after pooling.
        feed_forward: feed a cell with the two cells before it: its predecessor's output and, pooled to the same size, the
            one before that.
        pretrained: False, or a file of weights of the same network.
        trainable_from, freeze_batch_stats: see :meth:`Backbone.freeze`.

    >>> import torch
    >>> net = CNN(image_size=32, layers=2, filters=4)
    >>> net(torch.zeros(5, 3, 32, 32)).shape[1] == net.num_features
    True
    """

    def __init__(
        self, image_size: int | None, in_chans: int = 3, layers: int = 6, filters: int = 32, convs: int = 1, kernel: int = 3,
        pool: str = "max", pool_size: int = 2, pool_stride: int = 2, batch_norm: bool = True, dropout: float = 0.0,
        spatial_dropout: float = 0.0, feed_forward: bool = False, pretrained: bool | str = False,
        trainable_from: str | int | None = None, freeze_batch_stats: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        if image_size is None:
            raise UserError("backbone=cnn: its flattened features depend on the size of the images: set image.size=<pixels>.")
        whole = {"image_size": image_size, "in_chans": in_chans, "layers": layers, "filters": filters, "convs": convs,
                 "kernel": kernel, "pool_size": pool_size, "pool_stride": pool_stride}  # fmt: skip
        for name, value in whole.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"backbone.{name}={as_typed(value)}: it is a whole number of at least 1.")
        for name, rate in (("dropout", dropout), ("spatial_dropout", spatial_dropout)):
            if not 0 <= rate < 1:
                raise UserError(f"backbone.{name}={rate}: it is at least 0 and below 1.")
        if pool not in POOLS:
            raise UserError(f"backbone.pool={pool}: it is max or average.")
        if pretrained is True:
            raise UserError("backbone.pretrained=true: there are no published weights of this network. It is false or a file.")
        self.image_size, self.feed_forward = image_size, feed_forward
        self.shrink = POOLS[pool](pool_size, pool_stride)
        self.cells = nn.ModuleList()
        widths, side = [filters * 2**k for k in range(layers)], image_size
        for k, out in enumerate(widths):
            width = (widths[k - 1] if k else in_chans) + (widths[k - 2] if feed_forward and k > 1 else 0)
            self.cells.append(_cell(width, out, convs, kernel, batch_norm, self.shrink, dropout, spatial_dropout))
            side = (side - pool_size) // pool_stride + 1 if side >= pool_size else 0
            if side < 1:
                raise UserError(
                    f"backbone.layers={layers}: after {k + 1} poolings nothing is left of {image_size} pixels: "
                    "fewer layers, or a larger image.size."
                )
        self.num_features, self.in_chans = widths[-1] * side * side, in_chans
        self.mean, self.std = (0.0,) * in_chans, (1.0,) * in_chans
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # the start of Keras (Glorot and Bengio 2010)
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        names = [n for n, _ in self.named_parameters()]
        self.stages = {f"cell{k + 1}": [n for n in names if n.startswith(f"cells.{k}.")] for k in range(layers)}
        if isinstance(pretrained, str):
            weights.load_file(self, weights.existing(pretrained))
        self.freeze(trainable_from, freeze_batch_stats)

    def forward(self, images: Tensor) -> Tensor:
        """Features (I,D) of images (I,C,H,W), H and W as ``image_size`` says."""
        if tuple(images.shape[-2:]) != (self.image_size, self.image_size):
            raise UserError(f"images of {images.shape[-2]}x{images.shape[-1]}; this network was made for {self.image_size}.")
        x, before = self.cells[0](images), None
        for cell in list(self.cells)[1:]:
            fed = x if before is None else torch.cat([x, self.shrink(before)], 1)
            before = x if self.feed_forward else None
            x = cell(fed)
        return x.flatten(1)


def _cell(
    width: int, out: int, convs: int, kernel: int, batch_norm: bool, shrink: nn.Module, dropout: float, spatial_dropout: float
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k in range(convs):
        layers.append(nn.Conv2d(width if k == 0 else out, out, kernel, padding="same"))
        layers += [nn.BatchNorm2d(out)] * batch_norm + [nn.ReLU()]
    layers.append(shrink)
    layers += [nn.Dropout2d(spatial_dropout)] * (spatial_dropout > 0) + [nn.Dropout(dropout)] * (dropout > 0)
    return nn.Sequential(*layers)
