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
from torch.nn.functional import log_softmax, logsigmoid

from xraylab.errors import UserError, listed

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
    """Interface of a loss.

    Attributes:
        balances: the kinds of class balance it knows, by option.
        balance_weights: float32 (G+1,L,2), the weight b of negatives and positives by group and label; the last row is for
            studies of any other group, and the only one of balances that do not look at groups.
    """

    balances: tuple[str, ...] = ("none",)
    exclusive = False
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
        return num_labels

    def softmax(self, num_labels: int) -> int:
        """How many outputs in a row share a softmax; 1: each has a sigmoid of its own."""
        return 1

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
        one_class = [
            f"{name} ({p:g} positive, {n:g} negative)"
            for name, p, n in zip(names, positive, negative, strict=True)
            if not (p and n)
        ]
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

    def total(
        self, logits: Tensor, labels: Tensor, group: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:  # fmt: skip
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


class WeightedBCE(Loss):
    """Binary cross-entropy by label.

    Args:
        balance: weights of [negatives, positives], from the n and p of train: ``label`` [1, n/p]; ``group`` [p/(n+p),
            n/(n+p)] by group (Rajpurkar et al. 2017); ``keras`` [(n+p)/2n, (n+p)/2p]; ``inverse`` [(n+p)/n, (n+p)/p]; ``none``.
        label_smoothing: s; targets become s/2 and 1 - s/2 in training.
    """

    balances = tuple(BALANCES)

    def __init__(self, balance: str = "label", label_smoothing: float = 0.0) -> None:
        super().__init__(balance, label_smoothing)
        self.save_hyperparameters()

    def total(
        self, logits: Tensor, labels: Tensor, group: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:  # fmt: skip
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
    ) -> Tensor:  # fmt: skip
        """sum(w * (b1 * t * l1 + b0 * (1 - t) * l0)); smoothing s moves s/2 of each class's share to the other curve."""
        b = self.class_weights(group)
        positive, negative = weight * target * b[..., 1], weight * (1 - target) * b[..., 0]
        keep, move = 1 - smoothing / 2, smoothing / 2
        return (curves[0] * (keep * positive + move * negative) + curves[1] * (keep * negative + move * positive)).sum()

    def difference(self, logits: Tensor) -> Tensor:
        """(B,L), the logit of each label."""
        return logits

    def log_odds(self, logits: Tensor) -> Tensor:
        """The logit itself, whose sigmoid is the probability."""
        return self.difference(logits)


class TwoSoftmax(WeightedBCE):
    """Cross-entropy of two softmax outputs a label, negative and positive.

    It is binary cross-entropy of their difference, and is computed so. Arguments as of :class:`WeightedBCE`.
    """

    def __init__(self, balance: str = "none", label_smoothing: float = 0.0) -> None:
        super().__init__(balance, label_smoothing)
        self.save_hyperparameters()

    def outputs(self, num_labels: int) -> int:
        """Two a label."""
        return 2 * num_labels

    def softmax(self, num_labels: int) -> int:
        """Two."""
        return 2

    def difference(self, logits: Tensor) -> Tensor:
        """(B,L), positive minus negative of (B,2L)."""
        return logits[:, 1::2] - logits[:, 0::2]


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

    def softmax(self, num_labels: int) -> int:
        """All."""
        return num_labels

    def _weights(self, negative: np.ndarray, positive: np.ndarray) -> Tensor:
        weight = positive.sum() / (len(positive) * positive) if self.balance == "label" else np.ones(len(positive))
        return torch.from_numpy(np.stack([np.ones_like(weight), weight], axis=1)).float()

    def scored(self, labels: Tensor) -> Tensor:
        """bool (B,L): the positive label of each study that has exactly one."""
        return (labels == 1) & ((labels == 1).sum(1, keepdim=True) == 1)

    def total(
        self, logits: Tensor, labels: Tensor, group: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:  # fmt: skip
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


def spec(component: Any) -> dict[str, Any]:
    """What rebuilds a component: its class and the arguments it was made with."""
    kind = type(component)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "arguments": dict(component.hparams)}
