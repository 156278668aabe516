"""Batch normalisation without the blank images, which only fill a batch and do not count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode


class WithoutBlank(TorchFunctionMode):
    """Context in which batch normalisation by the batch takes mean, variance and running statistics of real images only.

    Whichever module normalises, for all of them call ``torch.nn.functional.batch_norm``.

    Args:
        real: bool (I,), which images are real.
        count: how many are; known to the host, so that asking needs no sync.
    """

    def __init__(self, real: Tensor, count: int) -> None:
        super().__init__()
        self.real, self.count = real, count

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is batch_norm:
            return self.batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        """As ``torch.nn.functional.batch_norm``, of input (I,C,...).

        Raises:
            ValueError: one value a channel has no variance.
        """
        if not training:
            return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        values = input[0, 0].numel()
        if self.count * values == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
        over, channel = [0, *range(2, input.ndim)], [1, -1] + [1] * (input.ndim - 2)
        x, real = input.to(torch.promote_types(input.dtype, torch.float32)), self.real.view([-1] + [1] * (input.ndim - 1))
        n = self.real.sum() * values
        mean = torch.where(real, x, 0).sum(over) / n
        centred = x - mean.view(channel)
        variance = torch.where(real, centred.square(), 0).sum(over) / n
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * n / (n - 1)).to(running_var.dtype), momentum)
        scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight.to(x.dtype))
        out = centred * scale.view(channel)
        return (out if bias is None else out + bias.to(x.dtype).view(channel)).to(input.dtype)
