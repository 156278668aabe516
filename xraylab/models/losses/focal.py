"""Losses that count easy cases less: focal and asymmetric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from xraylab.errors import UserError
from xraylab.models.losses.uncertain_labels import Uncertainty, number_of, refuse_learned


class Focal(Uncertainty):
    """Focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 5): l1 = alpha (1-p)^gamma * -log p, l0 = (1-alpha) p^gamma * -log(1-p).

    Args:
        gamma: at least 0; 0 is cross-entropy.
        alpha: weight of positives, between 0 and 1; None: 1 for both classes.
        options: of :class:`Uncertainty`.

    >>> loss = Focal(gamma=2.0)
    >>> loss.build(num_labels=1)
    >>> round(float(loss.total(torch.zeros(1, 1), torch.ones(1, 1))), 4)  # a quarter of log 2
    0.1733
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.save_hyperparameters()
        refuse_learned(self, "focal")
        if number_of("loss.gamma", gamma) < 0:
            raise UserError(f"loss.gamma={gamma}: it is at least 0.")
        if alpha is not None and not 0 < number_of("loss.alpha", alpha) < 1:
            raise UserError(f"loss.alpha={alpha}: it is above 0 and below 1, or null.")
        self.gamma = gamma
        self.sides = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)

    def curves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of logits (B,L) if their labels are positive, and if they are negative."""
        x = _wide(x)
        positive, negative = _focus(-x, self.gamma) * -logsigmoid(x), _focus(x, self.gamma) * -logsigmoid(-x)
        return self.sides[0] * positive, self.sides[1] * negative


class Asymmetric(Uncertainty):
    """Asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119, eq. 7).

    l1 = (1-p)^gamma_pos * -log p; l0 = m^gamma_neg * -log(1-m) with m = max(p - margin, 0): negatives that are easy enough weigh
    nothing.

    Args:
        gamma_pos, gamma_neg: at least 0.
        margin: probability shift of negatives, at least 0 and below 1.
        options: of :class:`Uncertainty`.

    >>> loss = Asymmetric(margin=0.05)
    >>> loss.build(num_labels=1)
    >>> float(loss.total(torch.tensor([[0.04]]).logit(), torch.zeros(1, 1)))  # an easy negative
    0.0
    """

    def __init__(self, gamma_pos: float = 0.0, gamma_neg: float = 4.0, margin: float = 0.05, **options: Any) -> None:
        super().__init__(**options)
        self.save_hyperparameters()
        refuse_learned(self, "asymmetric")
        for name, value in (("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg)):
            if number_of(f"loss.{name}", value) < 0:
                raise UserError(f"loss.{name}={value}: it is at least 0.")
        if not 0 <= number_of("loss.margin", margin) < 1:
            raise UserError(f"loss.margin={margin}: it is at least 0 and below 1.")
        self.gamma_pos, self.gamma_neg, self.margin = gamma_pos, gamma_neg, margin

    def curves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of logits (B,L) if their labels are positive, and if they are negative."""
        x = _wide(x)
        positive = _focus(-x, self.gamma_pos) * -logsigmoid(x)
        if self.margin == 0:
            return positive, _focus(x, self.gamma_neg) * -logsigmoid(-x)
        shifted = torch.sigmoid(x) - self.margin
        counts = shifted > torch.finfo(x.dtype).tiny
        # the power of 0 has no finite gradient at exponents below 1
        focus = torch.where(counts, shifted, 1) ** self.gamma_neg
        # 1 - m as (1-p) + margin, which is above 0 where 1 - m is rounded to 0
        rest = torch.where(counts, torch.sigmoid(-x) + self.margin, 1)
        return positive, torch.where(counts, focus * -torch.log(rest), 0)


def _wide(x: Tensor) -> Tensor:
    """float32 of halves, whose powers and logarithms would overflow; others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _focus(x: Tensor, exponent: float) -> Tensor:
    """sigmoid(x) ** exponent, at least 0; its gradient is finite where the sigmoid itself is rounded to 0."""
    return torch.exp(exponent * logsigmoid(x))
