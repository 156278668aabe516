"""Adaptation of the weight w of uncertain labels, by whether they help to tell certain ones.

After an epoch, for each finding k: is a step that lowers the loss of its uncertain labels also one that lowers the
loss of certain labels? The step is taken by the head (the layers behind the features), downhill on the mean loss of finding k's
uncertain labels in train; d_i is the derivative along it of the loss of the certain labels of study i, from a part of train
that was held back. To first order, minus the mean of d is the fall of the held-back loss for a larger w_k (the hypergradient,
as in Ren et al. 2018, arXiv:1803.09050). Then w_k grows by rate * tanh(-mean(d) / se(d) / 2), within [0, 1]: little where the
held-back studies do not agree. That loss is taken at the offset of each finding's logits that suits it best: calling uncertain
labels positive shifts every probability, which a threshold undoes, and would else hide whether they help to tell cases apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

if TYPE_CHECKING:
    from xraylab.models.losses.uncertain_labels import Uncertainty

Logits = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # of batches: logits (B, outputs), raw labels (B,L)


def derivatives(loss: Uncertainty, parameters: Sequence[Tensor], held_back: Logits, uncertain: Logits) -> Tensor:
    """Derivatives of held-back studies' losses along steps that lower those of each finding's uncertain labels.

    By a central difference over a thousandth of the parameters' length, which are as before afterwards, bit for bit.

    Args:
        parameters: that are stepped; the logits depend on them.
        held_back: studies whose certain labels count.
        uncertain: training studies with uncertain labels.

    Returns:
        (N,L), of N held-back studies; 0 for findings without uncertain labels, or without certain ones of both classes.
    """
    gradients = [[torch.zeros_like(p) for p in parameters] for _ in loss.w]
    for logits, labels in uncertain():
        sums = loss.each(logits, labels).sum(0)
        for of, total in zip(gradients, sums, strict=True):
            for g, part in zip(of, torch.autograd.grad(total, parameters, retain_graph=True), strict=True):
                g += part
    with torch.no_grad():
        parts = [(loss.difference(logits), labels) for logits, labels in held_back()]
        x, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        certain = (labels == 0) | (labels == 1)
        target = torch.where(certain, labels, 0).to(x.dtype)
        offset = _offset(x, target, certain)
        before = [p.detach().clone() for p in parameters]
        step = 1e-3 * _length(before)
        out = torch.zeros(len(x), len(gradients), dtype=x.dtype, device=x.device)
        both = ((labels == 0).any(0) & (labels == 1).any(0)).tolist()
        for k, of in enumerate(gradients):
            length = _length(of)
            if length == 0 or not both[k]:
                continue
            for sign in (1, -1):
                for p, old, g in zip(parameters, before, of, strict=True):
                    p.copy_(old - (sign * step / length) * g)
                moved = torch.cat([loss.difference(logits) for logits, _ in held_back()])
                losses = binary_cross_entropy_with_logits(moved + offset, target, reduction="none") * certain
                out[:, k] += sign * losses.sum(1) / (2 * step)
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
    return out


def _length(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())


def _offset(x: Tensor, target: Tensor, certain: Tensor) -> Tensor:
    """(L,), what is added to logits (N,L) for the lowest cross-entropy of certain labels, by Newton's method, within +-10."""
    offset = x.new_zeros(x.shape[1])
    for _ in range(30):
        p = torch.sigmoid(x + offset)
        slope, curvature = ((p - target) * certain).sum(0), (p * (1 - p) * certain).sum(0)
        offset = (offset - (slope / curvature.clamp(min=1e-6)).clamp(-1, 1)).clamp(-10, 10)
    return offset
