"""Checks of a backbone by one blank image, made before data is read and not after hours of packing it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xraylab.errors import UserError, listed
from xraylab.models.backbones.base import Backbone
from xraylab.models.backbones.timm import Timm


def require_features(backbone: Backbone, height: int, width: int) -> None:
    """Check that a backbone takes images of this size and gives the features (I,D) that it announces.

    Raises:
        UserError: it does not; the message says what to set.
    """
    name = str(backbone.hparams.get("name", type(backbone).__name__))
    try:
        features = _pass(backbone, height, width)
    except (AssertionError, RuntimeError, ValueError) as error:
        if "memory" in str(error):
            raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"backbone {name} cannot take images of {height}x{width} pixels: {why}. {_remedy(backbone, height, width)}"
        ) from error
    if isinstance(features, Tensor) and features.shape == (1, backbone.num_features):
        if features.isfinite().all():
            return
        raise UserError(f"backbone {name}: what it makes of a blank image is not a number. Its weights are damaged.")
    found = f"{tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
    kwargs, ways = backbone.hparams.get("kwargs") or {}, []
    if kwargs:
        ways.append(f"leave out what changes its output (backbone.kwargs: {listed(kwargs)})")
    if backbone.hparams.get("spatial"):
        ways.append("set backbone.spatial=null")
    elif isinstance(features, Tensor) and features.ndim == 4 and features.shape[1] == backbone.num_features:
        ways.append("set backbone.spatial=avg")
    raise UserError(
        f"backbone {name}: it makes {found} of one image, and not a row of its {backbone.num_features} features: "
        f"{', or '.join([*ways, 'choose another backbone'])}."
    )


def lone_norms(backbone: Backbone, height: int, width: int) -> list[str]:
    """Names of the batch norms that see one value a channel of an image of this size: of one alone they have no variance."""
    seen: dict[nn.Module, int] = {}

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[module] = args[0].numel() // args[0].shape[1]

    norms: dict[nn.Module, str] = {module: name for name, module in backbone.named_modules() if isinstance(module, _BatchNorm)}
    with ExitStack() as hooks:
        for module in norms:
            hooks.enter_context(module.register_forward_pre_hook(watch))
        _pass(backbone, height, width)
    return [norms[module] for module, values in seen.items() if values == 1]


@torch.no_grad()
def _pass(backbone: Backbone, height: int, width: int, device: str = "cpu") -> Any:
    training = backbone.training
    try:
        return backbone.eval()(torch.zeros(1, backbone.in_chans, height, width, device=device))
    finally:
        backbone.train(training)


def _remedy(backbone: Backbone, height: int, width: int) -> str:
    """The settings that would fit, each tried."""
    side, ways = max(height, width), []
    cfg: Any = backbone.model.pretrained_cfg if isinstance(backbone, Timm) else None
    made_for = int((cfg or {}).get("input_size", (3, 224, 224))[-1])
    sizes = [side * 2**k for k in range(1, 6) if side * 2**k < made_for]
    if (size := next((s for s in [*sizes, made_for] if _takes(backbone, s)), None)) is not None:
        ways.append(f"image.size={size}")
    if isinstance(backbone, Timm) and height == width:
        arguments = {**backbone.hparams, "pretrained": False, "kwargs": {**(backbone.hparams["kwargs"] or {}), "img_size": side}}
        try:
            with torch.device("meta"):
                _pass(Timm(**arguments), side, side, "meta")
            ways.append(f"++backbone.kwargs.img_size={side}")
        except Exception:  # it takes no such argument, or not this size
            pass
    return f"Set {' or '.join(ways)}, or choose another backbone." if ways else "Choose another backbone."


def _takes(backbone: Backbone, size: int) -> bool:
    try:
        _pass(backbone, size, size)
    except (AssertionError, RuntimeError, ValueError, UserError):
        return False
    return True
