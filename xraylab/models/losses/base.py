"""Losses: from logits and raw labels to one number, and from logits to probabilities.

Every loss returns  sum(b * w * l) / n : b the class balance counted on train, w the weight of the label's policy, l the
loss of a label, n the number of scored labels in the whole optimiser step. The balance never enters n: at one study a
step it would cancel.

Shapes: B studies, L labels, G groups. Raw labels: 1 positive, 0 negative, -1 uncertain, NaN not mentioned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning.core.mixins import HyperparametersMixin
from torch import Tensor, nn

from xraylab.errors import UserError, listed
from xraylab.system.classes import lasting_name

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from xraylab.data.study_table import StudyTable

log = logging.getLogger(__name__)
#: weights [of negatives, of positives] from counts of negatives n and positives p
BALANCES = {
    "none": lambda n, p: (np.ones_like(n), np.ones_like(p)),
    "label": lambda n, p: (np.ones_like(n), n / p),  # Bien et al. 2018
    "group": lambda n, p: (p / np.maximum(n + p, 1), n / np.maximum(n + p, 1)),  # Rajpurkar et al. 2017, by body part
    "keras": lambda n, p: ((n + p) / (2 * n), (n + p) / (2 * p)),  # n_samples / (classes * n_class)
    "inverse": lambda n, p: ((n + p) / n, (n + p) / p),  # inverse to prevalence
}


class Loss(nn.Module, HyperparametersMixin):
    """Base class of the losses: from logits and raw labels to one number, and from logits to probabilities.

    Attributes:
        balances: names of the class balances that it knows, of :data:`BALANCES`.
        balance_weights: float32 (G+1,L,2), the weight b of negatives and positives by group and label; the last row is for
            studies of any other group, and the only one of balances that do not look at groups.

    >>> class SquaredError(Loss):
    ...     def total(self, logits, labels, group=None, rows=None):
    ...         return (self.probabilities(logits) - labels)[self.scored(labels)].square().sum()
    ...     def log_odds(self, logits):
    ...         return logits
    >>> loss = SquaredError(balance="none", label_smoothing=0.0)
    >>> float(loss(torch.zeros(1, 2), torch.tensor([[1.0, -1.0]])))  # the uncertain label is not scored
    0.25
    """

    balances: tuple[str, ...] = ("none",)
    exclusive = False
    per_label = 1  # outputs of a label; where there are several, they share a softmax
    knows_uncertain = False  # whether uncertain and unmentioned labels have a meaning in it
    remedy = ""  # for a label of one class, in words
    held_back = 0.0  # of train's patients, kept from training for what the loss adapts by itself
    lr: float | None = None  # of the loss's own parameters, if it has any
    balance_weights: Tensor

    def __init__(self, balance: str, label_smoothing: float) -> None:
        super().__init__()
        if balance not in self.balances:
            raise UserError(f"loss.balance={balance}: it is one of {', '.join(self.balances)}.")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"loss.label_smoothing={label_smoothing}: it is at least 0 and below 1.")
        self.balance, self.label_smoothing = balance, label_smoothing

    def build(self, num_labels: int, num_groups: int = 0) -> None:
        """Make the balance's buffer, all ones."""
        rows = num_groups if self.balance == "group" else 0
        self.register_buffer("balance_weights", torch.ones(rows + 1, num_labels, 2))

    def outputs(self, num_labels: int) -> int:
        """How many logits the network needs for that many labels."""
        return self.per_label * num_labels

    def softmax(self, num_labels: int) -> int:
        """How many outputs in a row share a softmax; 1: each has a sigmoid of its own."""
        return self.per_label

    def fit(
        self, labels: np.ndarray, names: Sequence[str], groups: np.ndarray | None = None, of: str = "studies",
        group_names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Count the class balance, and say where it leaves nothing to learn.

        Args:
            labels: raw labels (studies, L) of the training split, or of its images where those are trained on.
            names: of the labels, for messages.
            groups: number of each study's group (studies,), for a balance by group.
            of: what is counted, for messages.
            group_names: for messages.

        Raises:
            UserError: every label has only one class; or one has, or has in every group, so it cannot be balanced.
        """
        dropped = {"uncertain": int((labels == -1).sum()), "not mentioned": int(np.isnan(labels).sum())}
        if any(dropped.values()) and not self.knows_uncertain:
            words = ", ".join(f"{n:,} {word}" for word, n in dropped.items())
            log.warning("of %d labels of %s in train, this loss ignores %s; loss=uncertainty uses them.", labels.size, of, words)
        negative, positive = self.count(labels)
        counts = zip(names, positive, negative, strict=True)
        one_class = [f"{name} ({p:g} positive, {n:g} negative)" for name, p, n in counts if not (p and n)]
        if one_class and (self.balance != "none" or len(one_class) == len(names)):
            raise UserError(
                f"of {of} in train, there is only one class of {listed(one_class)}: there is nothing to learn, and no balance. "
                f"Leave the label out{self.remedy}, or choose another split (selection, seed, fold)."
            )
        if one_class:
            log.warning("of %s in train, there is only one class of %s: nothing is learned there.", of, listed(one_class, 20))
        if self.balance == "group" and groups is not None:
            single: dict[str, list[str]] = {name: [] for name in names}
            for g in range(len(self.balance_weights) - 1):
                negative, positive = self.count(labels[groups == g])
                self.balance_weights[g] = self._weights(negative, positive)
                for name, n, p in zip(names, negative, positive, strict=True):
                    if not (n and p):
                        single[name].append(f"{group_names[g] if len(group_names) else g} ({n:g} negative, {p:g} positive)")
            for name, found in single.items():
                if len(found) == len(self.balance_weights) - 1:
                    raise UserError(
                        f"loss.balance=group: no group has both classes of {name} in train, so every weight is 0: "
                        f"{listed(found, 5)}. Use loss.balance=label."
                    )
                if found:
                    log.warning("loss.balance=group: %s of one class weigh 0 for %s: %s.", of, name, listed(found))
        elif self.balance != "group":
            self.balance_weights[-1] = self._weights(negative, positive)

    def count(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Negatives and positives that the loss makes of raw labels (N,L), float64 (L,)."""
        return (labels == 0).sum(0).astype(float), (labels == 1).sum(0).astype(float)

    def predictions(self) -> Path | None:
        """The prediction table that :meth:`attach` takes; None: it takes none."""
        return None

    def attach(self, units: StudyTable, predictions: pd.DataFrame | None = None) -> None:
        """Take what the loss needs of each row that is trained on; called after :meth:`fit`.

        Args:
            predictions: the table of :meth:`predictions`.
        """

    def state(self, names: Sequence[str]) -> dict[str, float]:
        """What the loss learned or adapted so far, for ``history.csv``; a device sync."""
        return {}

    def _weights(self, negative: np.ndarray, positive: np.ndarray) -> Tensor:
        """float32 (L,2) of counts (L,)."""
        pair = BALANCES[self.balance](negative, positive)
        return torch.from_numpy(np.stack(pair, axis=1)).float()

    def class_weights(self, group: Tensor | None) -> Tensor:
        """(B,L,2), or (L,2) where the group does not matter."""
        return self.balance_weights[-1] if group is None or len(self.balance_weights) == 1 else self.balance_weights[group]

    def scored(self, labels: Tensor) -> Tensor:
        """bool (B,L), the labels that count in n."""
        return (labels == 0) | (labels == 1)

    def forward(
        self, logits: Tensor, labels: Tensor, n: Tensor | float | None = None, group: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss, a scalar; 0 with gradient 0 where nothing is scored.

        Args:
            logits: (B, outputs).
            labels: raw (B,L).
            n: scored labels in the whole optimiser step; None: those of this batch.
            group: int64 (B,), the number of each study's group, -1 for one without; None: none has one.
            rows: int64 (B,), rows of the attached table, for losses that know something of each.
        """
        n = self.scored(labels).sum() if n is None else n
        return self.total(logits, labels, group, rows) / torch.clamp(torch.as_tensor(n, device=logits.device), min=1)

    def total(self, logits: Tensor, labels: Tensor, group: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """sum(b * w * l) over the batch, a scalar."""
        raise NotImplementedError

    def certain(self, logits: Tensor, labels: Tensor, group: Tensor | None = None) -> Tensor:
        """sum(b * l) over certain labels, without any policy: what ``valid/loss`` averages."""
        raise NotImplementedError

    def log_odds(self, logits: Tensor) -> Tensor:
        """(B,L), the natural log-odds log(p / (1-p)) of each label, finite where p rounds to 0 or 1."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B,L) in [0,1]."""
        return torch.sigmoid(self.log_odds(logits))

    def describe(self, names: Sequence[str], groups: Sequence[str] = ()) -> str:
        """The balance in force, in words."""
        rows = self.balance_weights.tolist()
        shown = [
            (f"{group} " if self.balance == "group" else "") + f"{n} [{w[0]:.3g}, {w[1]:.3g}]"
            for group, row in zip(groups if self.balance == "group" else [""], rows, strict=False)
            for n, w in zip(names, row, strict=True)
        ]
        return f"balance={self.balance}: weights of [negatives, positives]: {', '.join(shown)}"


def spec(component: Any) -> dict[str, Any]:
    """The specification that rebuilds a component: its class and the arguments it was made with."""
    return {"class": lasting_name(type(component)), "arguments": dict(component.hparams)}
