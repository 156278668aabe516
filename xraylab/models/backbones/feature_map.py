"""The layers of a network that have places, first and last: those whose values maps of a prediction are made of."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xraylab.errors import UserError
from xraylab.models.backbones.base import Backbone

LEAST = 256  # pixels of the image by which receptive fields are found
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)
#: layers that were found, by network and size of images: finding one takes seconds
_KNOWN: WeakKeyDictionary[Backbone, dict[tuple[int, int, bool], FeatureMap]] = WeakKeyDictionary()


@dataclass(frozen=True)
class FeatureMap:
    """Layer of a network, and how its output becomes a map (I,K,h,w).

    Attributes:
        name: of the module.
        layout: ``channels_first`` (I,K,h,w); ``channels_last`` (I,h,w,K), as of Swin; ``tokens`` (I,prefix+h*w,K), as of ViT.
        grid: h, w.
        prefix: tokens that are no place: class and register tokens.
        centres: of each axis, where place 0 lies and how far it is to the next, in pixels of the network's input, whose pixel 0
            has its middle at 0: the middles of the receptive fields, which are not spread evenly over the image in networks
            whose padding is not symmetric. A ResNet's place k lies at 32 k, and not in the middle of its 32 pixels.
    """

    name: str
    layout: str
    grid: tuple[int, int]
    prefix: int = 0
    centres: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 1.0), (0.0, 1.0))

    def as_map(self, output: Tensor) -> Tensor:
        """The layer's output as (I,K,h,w)."""
        if self.layout == "channels_first":
            return output
        if self.layout == "channels_last":
            return output.permute(0, 3, 1, 2)
        return output[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)


def feature_map(backbone: Backbone, images: Tensor, first: bool = False) -> FeatureMap:
    """Find the last layer of a backbone that has places, or the first, by one forward pass.

    Of a network of maps the last is that of more than one place before a pooling, the first that of the first activation. Of a
    transformer over tokens the last is the input of the last block's attention, for behind it the tokens of places may have no
    part in the result any more, and the first the embedding of patches.

    Args:
        images: normalised (1,C,H,W), of the size that is to be explained.

    Raises:
        UserError: no layer has places.

    >>> from xraylab.models import AlexNet
    >>> net = AlexNet(pretrained=False)
    >>> found = [feature_map(net, torch.zeros(1, 3, 224, 224), first) for first in (True, False)]
    >>> [(of.name, of.layout, of.grid) for of in found]
    [('features.1', 'channels_first', (55, 55)), ('features.11', 'channels_first', (13, 13))]
    """
    height, width = images.shape[-2:]
    known = _KNOWN.setdefault(backbone, {})
    if (height, width, first) not in known:
        layer = _found(backbone, *_outputs(backbone, images), first)
        even = [((side / n - 1) / 2, side / n) for side, n in zip((height, width), layer.grid, strict=True)]
        fields = None if layer.layout == "tokens" else receptive_fields(backbone, layer, height, width)
        known[height, width, first] = replace(layer, centres=fields or (even[0], even[1]))
    return known[height, width, first]


def _outputs(backbone: Backbone, images: Tensor) -> tuple[dict[str, Tensor], set[int]]:
    """Outputs of the modules that are called once, in the order of their calls, and the identities of those of pooling."""
    seen: defaultdict[str, list[Tensor]] = defaultdict(list)
    modules = dict(backbone.named_modules())
    with ExitStack() as hooks, torch.no_grad():
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(lambda _, __, output, name=name: seen[name].append(output)))
        backbone(images)
    del seen[""]  # the network itself
    once = {name: outputs[0] for name, outputs in seen.items() if len(outputs) == 1 and isinstance(outputs[0], Tensor)}
    return once, {id(output) for name, outputs in seen.items() if isinstance(modules[name], POOLING) for output in outputs}


def _found(backbone: Backbone, once: dict[str, Tensor], pooled: set[int], first: bool) -> FeatureMap:
    model: Any = getattr(backbone, "model", backbone)
    names = {id(module): name for name, module in backbone.named_modules()}
    patches, blocks = getattr(model, "patch_embed", None), getattr(model, "blocks", None)
    attended = getattr(blocks[-1], "norm1", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
    tokens = names.get(id(patches if first else attended), "")
    if tokens in once and once[tokens].ndim == 3:
        grid, count = tuple(getattr(patches, "grid_size", None) or ()), once[tokens].shape[1]
        # of some, the class token joins behind the blocks
        prefix = 0 if first or count == math.prod(grid) else getattr(model, "num_prefix_tokens", 0)
        return FeatureMap(tokens, "tokens", _grid(count - prefix, grid), prefix)
    layout = "channels_last" if getattr(model, "output_fmt", "NCHW") == "NHWC" else "channels_first"
    maps = {name: output for name, output in once.items() if output.ndim == 4 and id(output) not in pooled}
    if first and layout == "channels_last":
        maps = {tokens: maps[tokens]} if tokens in maps else {}
    elif first:
        modules = dict(backbone.named_modules())
        start = next((tuple(output.shape[2:]) for output in maps.values()), ())
        acts = [name for name, output in maps.items() if _activates(modules[name]) and tuple(output.shape[2:]) == start]
        maps = {name: maps[name] for name in [*acts, *maps][:1]}
    for name, output in reversed(maps.items()):
        height, width = output.shape[1:3] if layout == "channels_last" else output.shape[2:]
        if min(height, width) > 1:
            return FeatureMap(name, layout, (height, width))
    raise UserError(f"{type(backbone).__name__}: no layer of this network has places for a map: method=occlusion needs none.")


def _activates(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("torch.nn.modules.activation") or kind.__name__.endswith("Act2d")


def receptive_fields(
    backbone: Backbone, layer: FeatureMap, height: int, width: int
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Where the places of a layer lie in the network's input, see :class:`FeatureMap`, to about a pixel.

    How far they are from each other follows from how many more of them a larger image has. Where they lie is measured: the
    squared gradient by noise, of the places in the middle of that image, has its own middle where they look. The arithmetic of
    convolutions says the same, of networks of convolutions alone.

    Args:
        height, width: of images whose map is ``layer.grid`` places high and wide.

    Returns:
        First and step of rows and of columns; None: not known, as of a network that takes one size only.
    """
    device = next(backbone.parameters()).device
    generator = torch.Generator().manual_seed(0)
    larger = max(2, -(-LEAST // min(height, width)))
    noise = torch.randn(2, backbone.in_chans, larger * height, larger * width, generator=generator).to(device).requires_grad_()
    seen: list[Tensor] = []
    watched = dict(backbone.named_modules())[layer.name]
    try:
        with watched.register_forward_hook(lambda _, __, output: seen.append(output.clone())), torch.enable_grad():
            backbone(noise)
            output = layer.as_map(seen[0])
            rows, columns = output.shape[2:]
            middle = output[:, :, (rows - 1) // 2 : rows // 2 + 1, (columns - 1) // 2 : columns // 2 + 1]
            (slope,) = torch.autograd.grad((middle * torch.randn(middle.shape, generator=generator).to(device)).sum(), noise)
    except (UserError, AssertionError, RuntimeError, IndexError):
        return None
    reached = slope.double().square().sum((0, 1))
    reached /= reached.sum()
    centres, steps = [], []
    for axis, side, more, few in zip((1, 0), (height, width), (rows, columns), layer.grid, strict=True):
        along = reached.sum(axis)
        step = (larger - 1) * side / max(more - few, 1)
        steps.append(float(round(step)) if abs(step - round(step)) < 0.25 else step)
        centre = float(along @ torch.arange(len(along), dtype=torch.float64, device=device))
        centres.append(centre - steps[-1] * (more - 1) / 2)
    if steps[0] == steps[1]:  # a network is alike in both directions, and the mean is measured twice as well
        centres = [sum(centres) / 2] * 2
    return (centres[0], steps[0]), (centres[1], steps[1])


def _grid(tokens: int, grid: tuple[int, ...]) -> tuple[int, int]:
    if len(grid) == 2 and math.prod(grid) == tokens:
        return grid[0], grid[1]
    side = math.isqrt(tokens)
    return side, tokens // side


@dataclass
class Tapped:
    """What a tapped layer gave in the latest forward pass.

    Attributes:
        output: of the layer, that gradients are taken to; None: it has not been reached.
    """

    output: Tensor | None = field(default=None)


@contextmanager
def tapped(backbone: Backbone, layer: FeatureMap) -> Iterator[Tapped]:
    """A context in which the layer's output is kept. No gradient goes further back, and none is computed there, but to an earlier
    layer that is tapped too."""
    kept = Tapped()

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        kept.output = output if output.requires_grad else output.detach().requires_grad_()
        return kept.output.clone()  # which the next layer may change in place

    with dict(backbone.named_modules())[layer.name].register_forward_hook(keep):
        yield kept
