"""The loss of labels that may be uncertain or unmentioned; what those are worth is configuration.

With x the logit of a finding and p its probability, a label's loss is

    l(x, t) = t * l1(x) + (1 - t) * l0(x),    l1 = -log p, l0 = -log(1 - p) for cross-entropy,

t its target: 1 and 0 for certain labels, **u** for uncertain ones, 0 for unmentioned ones where those count. The loss of a
step is sum(b * w * l) / n: **w** the weight of uncertain labels (1 for certain ones), b the class balance, for a target
between the classes b1 on t and b0 on 1 - t. So u=0 is the policy *zeros* of Irvin et al. 2019 (arXiv:1901.07031), u=1 *ones*,
w=0 *ignore*, and u ~ U(low, high) the label smoothing of Pham et al. 2019 (arXiv:1911.06475).

Learning u. Cross-entropy is linear in u: its own gradient, -sum(w * x), drives u to 0 or 1. Instead u_k = sigmoid(a_k) is the
share of finding k's uncertain labels that are positive, as far as images tell, where what images show depends on the truth
alone and not on whether the label is certain. With r = P(image | positive) / P(image | negative), N and P the certain
negatives and positives of train, U the uncertain labels, and q = u * r + 1 - u, a model that fits says

    m = (C * r + D) / (A * r + B),   C = b1 * (P + w * U * u^2),       D = b1 * w * U * u * (1 - u),
                                     A = C + b0 * w * U * u * (1 - u), B = D + b0 * (N + w * U * (1 - u)^2),

because b1 * (P * r + w * U * u * q) of its weight at an image is on positive and b0 * (N + w * U * (1 - u) * q) on negative. So
r = (B * m - D) / (C - A * m), and the label itself is positive with p' = u * r / q, whatever constant target it was trained on.
With p' held fixed, u minimises sum(KL(p' || u)), whose gradient in a is u - p': at rest u is the mean of p', the fixed point
of EM for a shift of priors (Saerens et al. 2002, Neural Computation 14). The mean of m itself lies nearer to u, wherever that
is, and to the share of certain labels; and the minimum of KL(u || m) is the sigmoid of a mean logit, which is no share.

Adapting w: see :mod:`xraylab.models.losses.adaptive_weight`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from xraylab.data.findings import CHEXPERT, NIH, finding
from xraylab.errors import UserError, did_you_mean, listed
from xraylab.models.losses.cross_entropy import WeightedBCE

if TYPE_CHECKING:
    import pandas as pd

    from xraylab.data.study_table import StudyTable

log = logging.getLogger(__name__)

Range = tuple[float, float]
LEARNED, ADAPTED = "learned", "adapted"
REDUCTIONS = ("scored", "all")


class Uncertainty(WeightedBCE):
    """Binary cross-entropy in which an uncertain label weighs w and has the target u.

    Args:
        u: target of uncertain labels, 0 to 1; or [low, high], drawn evenly for each label, once; or one of the two by finding,
            ``default`` for the others; or ``learned`` by finding.
        w: weight of uncertain labels, at least 0; or by finding, ``default`` for the others; or ``adapted`` by finding.
        blank: what unmentioned labels count: ``negative``, ``ignore``, or a weight as negatives, at least 0.
        balance, label_smoothing: as of WeightedBCE; the balance counts targets and weights, not labels.
        reduction: ``scored`` divides by the labels that weigh anything; ``all`` by studies times findings.
        u_start, u_lr: of a learned u: its first value, and the learning rate of its logit.
        w_start, w_rate: of an adapted w: its first value, and the largest change in an epoch.
        held_back: of train's patients, not trained on but used to adapt w; at most ``ADAPT`` studies of the data module.
        seed: of the draws of a range.

    >>> loss = Uncertainty(u=1.0, w=0.5)  # uncertain labels count as positive, with half a weight
    >>> loss.build(num_labels=1)
    >>> loss.fit(np.array([[1.0], [0.0], [-1.0]]), ["edema"])
    >>> round(float(loss.total(torch.tensor([[0.0]]), torch.tensor([[-1.0]]))), 4)  # half of log 2
    0.3466
    """

    knows_uncertain = True
    targets_by_study = False  # whether uncertain labels of each study have a target of their own, without which there is none

    def __init__(
        self, u: float | str | Sequence[float] | Mapping[str, Any] = 0.5, w: float | str | Mapping[str, Any] = 1.0,
        blank: str | float = "negative", balance: str = "none", label_smoothing: float = 0.0, reduction: str = "scored",
        u_start: float = 0.5, u_lr: float = 0.02, w_start: float = 0.5, w_rate: float = 0.25, held_back: float = 0.1,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(balance, label_smoothing)
        self.save_hyperparameters()
        self.learns, self.adapts = u == LEARNED, w == ADAPTED
        if reduction not in REDUCTIONS:
            raise UserError(f"loss.reduction={reduction}: it is {' or '.join(REDUCTIONS)}.")
        for name, value in (("u_start", u_start), ("w_start", w_start), ("w_rate", w_rate)):
            if not 0 < number_of(f"loss.{name}", value) <= 1 or (name == "u_start" and value == 1):
                raise UserError(f"loss.{name}={value}: it is above 0 and {'below' if name == 'u_start' else 'at most'} 1.")
        if not 0 < number_of("loss.held_back", held_back) <= 0.5:
            raise UserError(f"loss.held_back={held_back}: it is above 0 and at most .5.")
        if number_of("loss.u_lr", u_lr) <= 0:
            raise UserError(f"loss.u_lr={u_lr}: it is above 0.")
        if self.learns and (balance == "group" or label_smoothing):
            raise UserError("loss.u=learned goes with loss.balance=none, label, keras or inverse, and without label_smoothing.")
        named: dict[Any, float] = {"negative": 1.0, "ignore": 0.0}
        self.blank_weight = number_of("loss.blank", named.get(str(blank), blank), "negative, ignore or a weight")
        if self.blank_weight < 0:
            raise UserError(f"loss.blank={blank}: a weight is at least 0.")
        self.ranges = {} if self.learns else _by_finding("loss.u", u, _range)
        self.weights = {} if self.adapts else _by_finding("loss.w", w, _weight)
        self.remedy = "" if self.blank_weight else ", count unmentioned labels as negative (loss.blank=negative)"
        self.reduction, self.u_start, self.w_start, self.w_rate, self.seed = reduction, u_start, w_start, w_rate, seed
        self.held_back = held_back if self.adapts else 0.0
        self.lr = u_lr if self.learns else None
        self.given = LEARNED if self.learns else ""  # where u comes from, if not from the configuration
        self._rows: Tensor | None = None

    def build(self, num_labels: int, num_groups: int = 0) -> None:
        """Make the buffers of the balance, of u's range and of w, and a learned u's parameter."""
        super().build(num_labels, num_groups)
        self.register_buffer("w", torch.full((num_labels,), self.w_start if self.adapts else 1.0))
        self.register_buffer("low", torch.full((num_labels,), self.u_start))
        self.register_buffer("high", torch.full((num_labels,), self.u_start))
        if self.learns:
            self.register_buffer("counts", torch.ones(3, num_labels))  # negatives, positives, uncertain
            start = float(np.log(self.u_start / (1 - self.u_start)))
            self.u_logit = nn.Parameter(torch.full((num_labels,), start))

    def fit(
        self, labels: np.ndarray, names: Sequence[str], groups: np.ndarray | None = None, of: str = "studies",
        group_names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Resolve u and w by finding, and count the class balance.

        Raises:
            UserError: a finding that there is not; or a label with nothing to learn.
        """
        if not self.learns:
            ranges = _of_each("loss.u", self.ranges, names)
            self.low, self.high = (torch.tensor([r[side] for r in ranges], dtype=torch.float32) for side in (0, 1))
        if not self.adapts:
            self.w = torch.tensor(_of_each("loss.w", self.weights, names), dtype=torch.float32)
        uncertain, blank = (labels == -1).sum(0), np.isnan(labels).sum(0)
        if self.learns:
            self.counts = torch.from_numpy(np.stack([*WeightedBCE.count(self, labels), uncertain])).float()
            self.counts[0] += self.blank_weight * torch.from_numpy(blank)
        counts = [f"{n} {a}/{b}" for n, a, b in zip(names, uncertain.tolist(), blank.tolist(), strict=True)]
        log.info("uncertain/unmentioned %s of train: %s", of, listed(counts, 20))
        for value, words in ((1, "positive"), (0, "negative")):
            rare = [n for n, any_of, u in zip(names, (labels == value).any(0), uncertain, strict=True) if not any_of and u]
            if rare and (value == 1 or not self.blank_weight):
                log.warning("no certain %s %s in train for %s: uncertain ones alone say so.", words, of, listed(rare, 20))
        super().fit(labels, names, groups, of, group_names)

    def count(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Negatives and positives, targets and weights counted, float64 (L,); of a range its middle."""
        target, weight = self._plain(torch.from_numpy(labels))
        positive = (target * weight).double().sum(0)
        return (weight.double().sum(0) - positive).numpy(), positive.numpy()

    def attach(self, units: StudyTable, predictions: pd.DataFrame | None = None) -> None:
        """Draw u for every label of every study, once; images of a study share it."""
        if bool((self.low < self.high).any()):
            studies = units.frame["id"].factorize()[0]
            drawn = np.random.default_rng([self.seed, 0x75]).random((int(studies.max()) + 1, len(self.low)), np.float32)
            self._rows = self.low + torch.from_numpy(drawn[studies]) * (self.high - self.low)

    def scored(self, labels: Tensor) -> Tensor:
        """bool (B,L): certain labels, and others that can weigh anything."""
        if self.reduction == "all":
            return torch.ones_like(labels, dtype=torch.bool)
        # an adapted w may be 0 now and not later, and n was counted before training
        uncertain, blank = (labels == -1) & (self.adapts | (self.w > 0)), torch.isnan(labels) & bool(self.blank_weight)
        return (labels == 0) | (labels == 1) | uncertain | blank

    def targets(self, labels: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Target in [0,1] and weight of raw labels, both (B,L).

        Raises:
            UserError: the targets of uncertain labels are not the same for all, and rows, or :meth:`attach`, are missing.
        """
        if self._rows is None or rows is None:
            if self.targets_by_study or self._rows is not None:
                raise UserError("this loss has a target for each study: call attach(table), and pass rows.")
            return self._plain(labels)
        if self._rows.device != labels.device:
            self._rows = self._rows.to(labels.device)
        return self._plain(labels, self._rows[rows])

    def _plain(self, labels: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Target and weight with u (L,) or (B,L), else with the middle of its range or what was learned."""
        if u is None:
            u = torch.sigmoid(self.u_logit.detach()) if self.learns else (self.low + self.high) / 2
        uncertain, blank = labels == -1, torch.isnan(labels)
        zero = labels.new_zeros(())
        target = torch.where(uncertain, u.to(labels.dtype), torch.where(blank, zero, labels))
        weight = torch.where(uncertain, self.w.to(labels.dtype), torch.where(blank, zero + self.blank_weight, zero + 1))
        return target, weight

    def total(self, logits: Tensor, labels: Tensor, group: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """sum(b * w * l); a learned u adds its gradient, and nothing to the value."""
        total = super().total(logits, labels, group, rows)
        if not self.learns:
            return total
        p = self._positive(torch.sigmoid(self.difference(logits).detach()))
        # cross-entropy of p and u: KL(p || u) and a constant
        divergence = binary_cross_entropy_with_logits(self.u_logit.to(p.dtype).expand_as(p), p, reduction="none")
        learning = torch.where(labels == -1, divergence, 0).sum()
        return total + learning - learning.detach()

    def _positive(self, m: Tensor) -> Tensor:
        """p' (B,L), the probability that uncertain labels are positive, of the model's m (B,L); see the head of this module."""
        u, (negative, positive, uncertain) = torch.sigmoid(self.u_logit.detach()), self.counts
        b0, b1 = self.balance_weights[-1].unbind(1)
        extra = self.w * uncertain
        c, d = b1 * (positive + extra * u**2), b1 * extra * u * (1 - u)
        a, b = c + b0 * extra * u * (1 - u), d + b0 * (negative + extra * (1 - u) ** 2)
        # as odds, finite where r is not
        likely, unlikely = (b * m - d).clamp(min=0) * u, (c - a * m).clamp(min=0) * (1 - u)
        return torch.where(likely + unlikely > 0, likely / (likely + unlikely).clamp(min=torch.finfo(m.dtype).tiny), u)

    def state(self, names: Sequence[str]) -> dict[str, float]:
        """u and w by finding, those that move; of an epoch, the w that was in force in it."""
        values: dict[str, Tensor] = {}
        if self.learns:
            values["u"] = torch.sigmoid(self.u_logit.detach())
        if self.adapts:
            values["w"] = self.w
        return {f"{key}/{name}": v for key, of in values.items() for name, v in zip(names, of.tolist(), strict=True)}

    def describe(self, names: Sequence[str], groups: Sequence[str] = ()) -> str:
        """The policy and the balance in force, in words."""
        u = self.given or shown_value(names, list(zip(self.low.tolist(), self.high.tolist(), strict=True)))
        w = ADAPTED if self.adapts else shown_value(names, [(v, v) for v in self.w.tolist()])
        policy = f"uncertain labels: u={u}, w={w}; unmentioned ones weigh {self.blank_weight:g} as negatives"
        return policy if self.balance == "none" else f"{policy}; {super().describe(names, groups)}"

    @torch.no_grad()
    def adapt(self, derivatives: Tensor) -> None:
        """Move w; see :mod:`xraylab.models.losses.adaptive_weight`.

        Args:
            derivatives: (N,L), of each held-back study's loss along a step that lowers that of a finding's uncertain labels.
        """
        n = max(len(derivatives), 1)
        mean = derivatives.sum(0) / n
        error = ((derivatives - mean).square().sum(0) / max(n - 1, 1) / n).sqrt()
        change = torch.where(error > 0, torch.tanh(-mean / error.clamp(min=torch.finfo(mean.dtype).tiny) / 2), 0)
        self.w = (self.w + self.w_rate * change.to(self.w.dtype)).clamp(0, 1)

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,L), the loss of uncertain labels without weight and balance; 0 for others."""
        target, _ = self._plain(labels)
        positive, negative = self.curves(self.difference(logits))
        return torch.where(labels == -1, target * positive + (1 - target) * negative, 0)


def refuse_learned(loss: Uncertainty, name: str) -> None:
    if loss.learns:
        raise UserError(f"loss={name}: its outputs are no probabilities to learn u from. Give loss.u, or use loss=learned.")


# ---- values by finding ----------------------------------------------------------------------------------------------


def number_of(where: str, value: Any, what: str = "a number") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise UserError(f"{where}={value}: it is {what}.")
    return float(value)


def _range(where: str, value: Any) -> Range:
    """A target, or the two ends of its range."""
    ends = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(ends) != 2:
        raise UserError(f"{where}={value}: it is a number, or [low, high].")
    what = (
        f"a number, [low, high] or {LEARNED}, or one of the first two by finding"
        if where == "loss.u"
        else "a number, or [low, high]"
    )
    low, high = (number_of(where, end, what) for end in ends)
    if not 0 <= low <= high <= 1:
        raise UserError(f"{where}={value}: targets are 0 to 1, the lower first.")
    return low, high


def _weight(where: str, value: Any) -> float:
    what = f"a number, a number by finding, or {ADAPTED}" if where == "loss.w" else "a number"
    if number_of(where, value, what) < 0:
        raise UserError(f"{where}={value}: a weight is at least 0.")
    return float(value)


def _by_finding(where: str, value: Any, check: Any) -> dict[str, Any]:
    """Checked values by name; ``default`` for all that are not named."""
    if isinstance(value, Mapping):
        return {str(name): check(f"{where}.{name}", v) for name, v in value.items()}
    return {"default": check(where, value)}


def _of_each(where: str, values: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The value of each label.

    Raises:
        UserError: one has none, or a value is for a label that there is not.
    """
    given = {finding(name): v for name, v in values.items()}
    known = {finding(name): name for name in names}
    for name in given:
        if name not in (*known, "default", *CHEXPERT, *NIH):
            raise UserError(f"{where}.{name}: there is no such label.{did_you_mean(name, known)} There are: {listed(names, 20)}.")
    missing = [name for key, name in known.items() if key not in given and "default" not in given]
    if missing:
        raise UserError(f"{where}: no value for {listed(missing, 20)}. Give them, or one for all others: {where}.default=...")
    return [given.get(key, given.get("default")) for key in known]


def shown_value(names: Sequence[str], ranges: Sequence[Range]) -> str:
    """One value, or one a finding."""
    words = [f"{low:g}" if low == high else f"U({low:g}, {high:g})" for low, high in ranges]
    return words[0] if len(set(words)) == 1 else ", ".join(f"{n} {word}" for n, word in zip(names, words, strict=True))
