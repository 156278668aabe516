"""Cross-entropy by label and over classes, weighted for the balance of each label."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from xraylab.models.losses.base import BALANCES, Loss


class WeightedBCE(Loss):
    """Binary cross-entropy by label, with weights for the class balance.

    Args:
        balance: weights of [negatives, positives], from the n and p of train: ``label`` [1, n/p]; ``group`` [p/(n+p),
            n/(n+p)] by group (Rajpurkar et al. 2017); ``keras`` [(n+p)/2n, (n+p)/2p]; ``inverse`` [(n+p)/n, (n+p)/p]; ``none``.
        label_smoothing: s; targets become s/2 and 1 - s/2 in training.

    >>> loss = WeightedBCE(balance="none")
    >>> loss.build(num_labels=1)
    >>> round(float(loss.total(torch.tensor([[0.0]]), torch.tensor([[1.0]]))), 4)  # log 2
    0.6931
    """

    balances = tuple(BALANCES)

    def __init__(self, balance: str = "label", label_smoothing: float = 0.0) -> None:
        super().__init__(balance, label_smoothing)
        self.save_hyperparameters()

    def total(self, logits: Tensor, labels: Tensor, group: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """sum(b * w * l) over scored labels, with smoothed targets."""
        target, weight = self.targets(labels, rows)
        return self.sum(self.curves(self.difference(logits)), target, weight, group, self.label_smoothing)

    def certain(self, logits: Tensor, labels: Tensor, group: Tensor | None = None) -> Tensor:
        """sum(b * l) over certain labels, l the binary cross-entropy."""
        target, weight = WeightedBCE.targets(self, labels)
        return self.sum(WeightedBCE.curves(self, self.difference(logits)), target, weight, group)

    def targets(self, labels: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Target in [0,1] and weight of raw labels, both (B,L)."""
        certain = (labels == 0) | (labels == 1)
        return torch.where(certain, labels, torch.zeros_like(labels)), certain.to(labels.dtype)

    def curves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of logits (B,L) if their labels are positive, and if they are negative."""
        return -logsigmoid(x), -logsigmoid(-x)

    def sum(
        self, curves: tuple[Tensor, Tensor], target: Tensor, weight: Tensor, group: Tensor | None, smoothing: float = 0.0
    ) -> Tensor:
        """sum(w * (b1 * t * l1 + b0 * (1 - t) * l0)); smoothing s moves s/2 of each class's share to the other curve."""
        b = self.class_weights(group)
        positive, negative = weight * target * b[..., 1], weight * (1 - target) * b[..., 0]
        keep, move = 1 - smoothing / 2, smoothing / 2
        return (curves[0] * (keep * positive + move * negative) + curves[1] * (keep * negative + move * positive)).sum()

    def difference(self, logits: Tensor) -> Tensor:
        """(B,L), the logit of each label: of several outputs, the second, which is positive, minus the first, negative."""
        return logits if self.per_label == 1 else logits[:, 1 :: self.per_label] - logits[:, :: self.per_label]

    def log_odds(self, logits: Tensor) -> Tensor:
        """The logit itself, whose sigmoid is the probability."""
        return self.difference(logits)


class TwoSoftmax(WeightedBCE):
    """Cross-entropy of two softmax outputs a label, negative and positive.

    It is binary cross-entropy of their difference, and is computed so. Arguments as of :class:`WeightedBCE`.

    >>> loss = TwoSoftmax()
    >>> loss.outputs(num_labels=1), loss.probabilities(torch.zeros(1, 2))
    (2, tensor([[0.5000]]))
    """

    per_label = 2

    def __init__(self, balance: str = "none", label_smoothing: float = 0.0) -> None:
        super().__init__(balance, label_smoothing)
        self.save_hyperparameters()


class CrossEntropy(Loss):
    """Softmax cross-entropy over labels of which exactly one is positive in a study; n counts studies.

    Args:
        balance: ``label`` - a class weighs n / (classes * n_class), counted on train; ``none``.
        label_smoothing: s; spread evenly over the classes in training.

    >>> loss = CrossEntropy()
    >>> loss.build(num_labels=3)
    >>> round(float(loss(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]))), 4)  # log 3
    1.0986
    """

    balances = ("label", "none")
    exclusive = True

    def __init__(self, balance: str = "none", label_smoothing: float = 0.0) -> None:
        super().__init__(balance, label_smoothing)
        self.save_hyperparameters()

    def softmax(self, num_labels: int) -> int:
        """All."""
        return num_labels

    def _weights(self, negative: np.ndarray, positive: np.ndarray) -> Tensor:
        weight = positive.sum() / (len(positive) * positive) if self.balance == "label" else np.ones(len(positive))
        return torch.from_numpy(np.stack([np.ones_like(weight), weight], axis=1)).float()

    def scored(self, labels: Tensor) -> Tensor:
        """bool (B,L): the positive label of each study that has exactly one."""
        return (labels == 1) & ((labels == 1).sum(1, keepdim=True) == 1)

    def total(self, logits: Tensor, labels: Tensor, group: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """sum(b * l) over studies, with smoothed targets."""
        return self._ce(logits, labels, self.label_smoothing)

    def certain(self, logits: Tensor, labels: Tensor, group: Tensor | None = None) -> Tensor:
        """sum(b * l) over studies."""
        return self._ce(logits, labels, 0.0)

    def _ce(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        truth = self.scored(labels).to(logits.dtype)
        b = (truth * self.class_weights(None)[:, 1]).sum(1, keepdim=True)
        target = truth * (1 - smoothing) + smoothing / labels.shape[1]
        return -(b * target * log_softmax(logits, 1)).sum()

    def log_odds(self, logits: Tensor) -> Tensor:
        """x_k - logsumexp of the other x, whose sigmoid is the softmax."""
        largest, top = logits.max(1, keepdim=True)
        shares = (logits - largest).exp()
        others = (shares.sum(1, keepdim=True) - shares).log() + largest
        of_top = logits.scatter(1, top, float("-inf")).logsumexp(1, keepdim=True)  # where the difference above cancels
        return logits - others.scatter(1, top, of_top)
