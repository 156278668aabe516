"""Losses: from logits and raw labels to one number, and from logits to probabilities.

Every loss returns  sum(b * w * l) / n : b the class balance counted on train, w the weight of the label's policy, l the
loss of a label, n the number of scored labels in the whole optimiser step. The balance never enters n: at one study a
step it would cancel.

Shapes: B studies, L labels. Raw labels: 1 positive, 0 negative, -1 uncertain, NaN not mentioned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.core.mixins import HyperparametersMixin
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from xraylab.errors import UserError


class Loss(nn.Module, HyperparametersMixin):
    """Interface of a loss.

    Attributes:
        balances: the kinds of class balance it knows, by option.
        balance_weights: float32 (L,2), the weight b of negatives and positives by label.
    """

    balances: tuple[str, ...] = ("none",)
    exclusive = False
    balance_weights: Tensor

    def __init__(self, balance: str, label_smoothing: float) -> None:
        super().__init__()
        if balance not in self.balances:
            raise UserError(f"loss.balance={balance}: it is one of {', '.join(self.balances)}.")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"loss.label_smoothing={label_smoothing}: it is at least 0 and below 1.")
        self.balance, self.label_smoothing = balance, label_smoothing

    def build(self, num_labels: int) -> None:
        """Make the balance's buffer, all ones."""
        self.register_buffer("balance_weights", torch.ones(num_labels, 2))

    def outputs(self, num_labels: int) -> int:
        """How many logits the network needs for that many labels."""
        return num_labels

    def fit(self, labels: np.ndarray, names: Sequence[str]) -> None:
        """Count the class balance.

        Args:
            labels: raw labels (studies, L) of the training split.
            names: of the labels, for messages.

        Raises:
            UserError: a label has only one class, so it cannot be balanced.
        """
        positive, negative = (labels == 1).sum(0), (labels == 0).sum(0)
        for name, p, n in zip(names, positive, negative, strict=True):
            if p == 0 or n == 0:
                raise UserError(
                    f"label {name} has {p} positive and {n} negative studies in train: there is nothing to learn. "
                    "Leave the label out, or choose another split (selection, seed, fold)."
                )
        weights = torch.from_numpy(self._weights(positive.astype(float), negative.astype(float))).float()
        self.balance_weights.copy_(weights)

    def _weights(self, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """(L,2) of positive and negative counts (L,)."""
        return np.ones((len(positive), 2))

    def scored(self, labels: Tensor) -> Tensor:
        """bool (B,L), the labels that count in n."""
        return (labels == 0) | (labels == 1)

    def forward(self, logits: Tensor, labels: Tensor, n: Tensor | float | None = None) -> Tensor:
        """The loss, a scalar; 0 with gradient 0 where nothing is scored.

        Args:
            logits: (B, outputs).
            labels: raw (B,L).
            n: scored labels in the whole optimiser step; None: those of this batch.
        """
        n = self.scored(labels).sum() if n is None else n
        return self.total(logits, labels) / torch.clamp(torch.as_tensor(n, device=logits.device), min=1)

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """sum(b * w * l) over the batch, a scalar."""
        raise NotImplementedError

    def certain(self, logits: Tensor, labels: Tensor) -> Tensor:
        """sum(b * l) over certain labels, without any policy: what ``valid/loss`` averages."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B,L) in [0,1]."""
        raise NotImplementedError

    def describe(self, names: Sequence[str]) -> str:
        """The balance in force, in words."""
        pairs = [f"{n} [{w[0]:.3g}, {w[1]:.3g}]" for n, w in zip(names, self.balance_weights.tolist(), strict=True)]
        return f"balance={self.balance}: weights of [negatives, positives]: {', '.join(pairs)}"


class WeightedBCE(Loss):
    """Binary cross-entropy by label.

    Args:
        balance: ``label`` - weights [1, negatives/positives] by label, counted on train; ``none``.
        label_smoothing: s; targets become s/2 and 1 - s/2 in training.
    """

    balances = ("label", "none")

    def __init__(self, balance: str = "label", label_smoothing: float = 0.0) -> None:
        super().__init__(balance, label_smoothing)
        self.save_hyperparameters()

    def _weights(self, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        ratio = negative / positive if self.balance == "label" else np.ones_like(positive)
        return np.stack([np.ones_like(ratio), ratio], axis=1)

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """sum(b * l) over scored labels, with smoothed targets."""
        return self._bce(logits, labels, self.label_smoothing)

    def certain(self, logits: Tensor, labels: Tensor) -> Tensor:
        """sum(b * l) over certain labels."""
        return self._bce(logits, labels, 0.0)

    def _bce(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        scored = self.scored(labels)
        truth = torch.where(scored, labels, torch.zeros_like(labels))
        b = torch.where(truth == 1, self.balance_weights[:, 1], self.balance_weights[:, 0]) * scored
        target = truth * (1 - smoothing) + smoothing / 2
        return (b * binary_cross_entropy_with_logits(logits, target, reduction="none")).sum()

    def probabilities(self, logits: Tensor) -> Tensor:
        """The sigmoid."""
        return torch.sigmoid(logits)


class CrossEntropy(Loss):
    """Softmax cross-entropy over labels of which exactly one is positive in a study; n counts studies.

    Args:
        balance: ``label`` - a class weighs n / (classes * n_class), counted on train; ``none``.
        label_smoothing: s; spread evenly over the classes in training.
    """

    balances = ("label", "none")
    exclusive = True

    def __init__(self, balance: str = "none", label_smoothing: float = 0.0) -> None:
        super().__init__(balance, label_smoothing)
        self.save_hyperparameters()

    def _weights(self, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        weight = positive.sum() / (len(positive) * positive) if self.balance == "label" else np.ones_like(positive)
        return np.stack([np.ones_like(weight), weight], axis=1)

    def scored(self, labels: Tensor) -> Tensor:
        """bool (B,L): the positive label of each study that has exactly one."""
        return (labels == 1) & ((labels == 1).sum(1, keepdim=True) == 1)

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """sum(b * l) over studies, with smoothed targets."""
        return self._ce(logits, labels, self.label_smoothing)

    def certain(self, logits: Tensor, labels: Tensor) -> Tensor:
        """sum(b * l) over studies."""
        return self._ce(logits, labels, 0.0)

    def _ce(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        truth = self.scored(labels).to(logits.dtype)
        b = (truth * self.balance_weights[:, 1]).sum(1, keepdim=True)
        target = truth * (1 - smoothing) + smoothing / labels.shape[1]
        return -(b * target * log_softmax(logits, 1)).sum()

    def probabilities(self, logits: Tensor) -> Tensor:
        """The softmax."""
        return torch.softmax(logits, 1)


def spec(component: Any) -> dict[str, Any]:
    """What rebuilds a component: its class and the arguments it was made with."""
    kind = type(component)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "arguments": dict(component.hparams)}
