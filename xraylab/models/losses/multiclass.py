"""The loss in which uncertain is a class of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from xraylab.errors import UserError
from xraylab.models.losses.cross_entropy import WeightedBCE
from xraylab.models.losses.uncertain_labels import ADAPTED, Uncertainty, shown_value


class MultiClass(Uncertainty):
    """Cross-entropy of three softmax outputs a finding: negative, positive, uncertain; the probability drops the last.

    Irvin et al. 2019, section 3.1. The balance weighs negatives and positives; uncertain labels weigh w.

    Args:
        options: of :class:`Uncertainty`, but u.

    >>> loss = MultiClass()
    >>> loss.build(num_labels=1)
    >>> loss.outputs(num_labels=1), round(float(loss.total(torch.zeros(1, 3), torch.tensor([[-1.0]]))), 4)  # log 3
    (3, 1.0986)
    """

    per_label = 3

    def __init__(self, w: float | str | Mapping[str, Any] = 1.0, **options: Any) -> None:
        if "u" in options or w == ADAPTED:
            raise UserError("loss=multiclass: uncertain labels are a class, which has no target u and no adapted w.")
        super().__init__(w=w, **options)
        self.save_hyperparameters()
        self.hparams.pop("u")

    def count(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Negatives and positives, unmentioned ones by their weight, float64 (L,)."""
        negative, positive = WeightedBCE.count(self, labels)
        return negative + self.blank_weight * np.isnan(labels).sum(0), positive

    def total(self, logits: Tensor, labels: Tensor, group: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """sum(b * w * l), l the cross-entropy of three classes."""
        uncertain = labels == -1
        target, weight = self._plain(labels)
        b = self.class_weights(group)
        log_p = log_softmax(logits.unflatten(1, (-1, 3)), 2)
        keep, move = 1 - self.label_smoothing / 2, self.label_smoothing / 2
        t = keep * target + move * (1 - target)
        certain = torch.where(target == 1, b[..., 1], b[..., 0]) * (t * log_p[..., 1] + (1 - t) * log_p[..., 0])
        return -(weight * torch.where(uncertain, log_p[..., 2], certain)).sum()

    def describe(self, names: Sequence[str], groups: Sequence[str] = ()) -> str:
        """The policy and the balance in force, in words."""
        w = shown_value(names, [(v, v) for v in self.w.tolist()])
        policy = f"uncertain labels: a class of their own, w={w}; unmentioned ones weigh {self.blank_weight:g} as negatives"
        return policy if self.balance == "none" else f"{policy}; {WeightedBCE.describe(self, names, groups)}"
