"""A study's pictures to its probabilities as one network: preprocessing, models, combination and calibration.

Shapes: N pictures, height H, width W, L labels, M members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from xraylab.errors import UserError, listed
from xraylab.evaluation.ensembles.alignment import VOTES_AT
from xraylab.evaluation.ensembles.combination import CLIPPED, Combination
from xraylab.exporting.resizing import prepared
from xraylab.training.study_module import StudyModule

#: combinations that look at more than a study's pictures, and what a file of them would have to know
NOT_OF_PICTURES = {
    "own": "each study is judged by the member of its group, which is not in its pictures",
    "union": "a study is the mean of those members that have it, and which have it is not in its pictures",
}


class Model(nn.Module):
    """One model with its preprocessing: pictures of a study to the log-odds of its labels.

    Args:
        module: whose network, loss and preprocessing these are.
        inputs: the places, among the program's inputs, of what the model sees: one, or one a part.
        steps: see :func:`xraylab.exporting.resizing.fixed_point`.
    """

    def __init__(self, module: StudyModule, inputs: Sequence[int], steps: bool) -> None:
        super().__init__()
        self.net, self.loss, self.labels = module.net, module.loss, module.labels
        self.inputs, self.steps = tuple(inputs), steps
        self.size, self.rescale, self.resize = (module.preprocessing[key] for key in ("size", "rescale", "resize"))
        self.together = of_volumes(module)

    def forward(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Probabilities and log-odds, both float64 (L,), of uint8 (N,H,W) or (N,H,W,3)."""
        bags = []
        for images in (pictures[k] for k in self.inputs):
            pixels = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
            bags.append(prepared(pixels.double(), self.size, self.rescale, self.resize, self.together, self.steps))
        study = torch.cat([torch.full((bag.shape[0],), part, dtype=torch.int64) for part, bag in enumerate(bags)])
        outputs = self.net(torch.cat(bags).float(), study, 1)
        (z,) = self.loss.log_odds(outputs.double())
        return torch.sigmoid(z), z


class Combined(nn.Module):
    """Several models as one: what a combination makes of its members' probabilities and log-odds.

    Args:
        combination: of a method that looks at nothing but these, see :func:`require_of_pictures`.
        members: its own, in its order.

    Raises:
        UserError: members have other labels.
    """

    labels: tuple[str, ...]
    weights: Tensor
    intercepts: Tensor
    fitted: Tensor

    def __init__(self, combination: Combination, members: Sequence[Model | Combined]) -> None:
        super().__init__()
        self.members, self.method, self.labels = nn.ModuleList(members), combination.method, members[0].labels
        for name, member in zip(combination.names, members, strict=True):
            if set(member.labels) != set(self.labels):
                raise UserError(f"{name} has other labels ({listed(member.labels)}) than {listed(self.labels)}: combine anew.")
        self.orders = [[member.labels.index(label) for label in self.labels] for member in members]
        self.has_logits = self.method != "vote" and all(getattr(member, "has_logits", True) for member in members)
        if self.method == "stack" and not self.has_logits:
            raise UserError("a stack on votes, whose log-odds depend on the other studies of a table, cannot be one file.")
        chosen = combination.chosen or {}
        self.best = [combination.names.index(chosen[label]["member"]) if label in chosen else 0 for label in self.labels]
        self.farthest = math.log(1e6 - 1) if combination.inputs == CLIPPED else math.inf
        weights, intercepts, fitted = _stacked(combination, self.labels)
        for name, value in (("weights", weights), ("intercepts", intercepts), ("fitted", fitted)):
            self.register_buffer(name, value)

    def forward(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Probabilities and log-odds, both float64 (L,); of votes, which have none, log-odds are 0."""
        found = [member(pictures) for member in self.members]
        p, z = (
            torch.stack([of[k][torch.tensor(order)] for of, order in zip(found, self.orders, strict=True)]) for k in (0, 1)
        )  # both (M,L)
        if self.method == "vote":
            p = (p >= VOTES_AT).double().mean(0)
            return p, torch.zeros_like(p)
        if self.method == "best":
            at = torch.tensor(self.best)[None]
            return p.gather(0, at)[0], z.gather(0, at)[0]
        mean, mean_z = p.mean(0), _logmeanexp(logsigmoid(z)) - _logmeanexp(logsigmoid(-z))
        if self.method == "mean":
            return mean, mean_z
        near = z if math.isinf(self.farthest) else z.clamp(-self.farthest, self.farthest)
        stacked = torch.where(self.fitted, (near * self.weights).sum(0) + self.intercepts, mean_z)
        return torch.where(self.fitted, torch.sigmoid(stacked), mean), stacked


class StudyProgram(nn.Module):
    """What a file holds: pictures of a study to probabilities.

    Args:
        whole: the model, or the combination.
        temperatures: by label; empty: none is applied.
    """

    def __init__(self, whole: Model | Combined, temperatures: Mapping[str, float]) -> None:
        super().__init__()
        self.whole, self.labels = whole, tuple(whole.labels)
        self.calibrated, self.has_logits = bool(temperatures), getattr(whole, "has_logits", True)
        if self.calibrated and not self.has_logits:
            raise UserError("calibrate: votes have no log-odds of a study alone, which a temperature is of. Leave calibrate out.")
        self.register_buffer("temperatures", torch.tensor([temperatures.get(la, 1.0) for la in self.labels], dtype=torch.float64))

    def forward(self, *pictures: Tensor) -> tuple[Tensor, ...]:
        """``probabilities`` and, where there are any, ``logits``, which are before calibration: float32 (L,)."""
        p, z = self.whole(pictures)
        if self.calibrated:
            p = torch.sigmoid(z / self.temperatures)
        return (p.float(), z.float()) if self.has_logits else (p.float(),)


def of_volumes(module: StudyModule) -> bool:
    """Whether a study's pictures are slices of one volume, whose range is stretched together, as files of the run were read."""
    return bool(module.images.get("volumes", not module.images["views"]))


def require_of_pictures(combination: Combination, run: Any) -> None:
    """Refuse a combination that looks at more than pictures.

    Raises:
        UserError: it does.
    """
    if why := NOT_OF_PICTURES.get(combination.method):
        raise UserError(
            f"{run}: a combination by {combination.method} cannot be one file: {why}. Export its members, each on its own; "
            "mean, stack, best and vote can be exported."
        )


def _stacked(combination: Combination, labels: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients float64 (M,L), intercepts (L,), and which labels have any, bool (L,)."""
    weights = torch.zeros(len(combination.names), len(labels), dtype=torch.float64)
    intercepts, fitted = torch.zeros(len(labels), dtype=torch.float64), torch.zeros(len(labels), dtype=torch.bool)
    if combination.method != "stack":
        return weights, intercepts, fitted
    for k, label in enumerate(labels):
        fit = (combination.labels or {}).get(label)
        if fit is None:
            raise UserError(f"{label} has no coefficients in this stack; there are those of {listed(combination.labels or ())}.")
        if fit["coefficients"] is not None and fit["intercept"] is not None:
            weights[:, k] = torch.tensor([fit["coefficients"][name] for name in combination.names], dtype=torch.float64)
            intercepts[k], fitted[k] = fit["intercept"], True
    return weights, intercepts, fitted


def _logmeanexp(x: Tensor) -> Tensor:
    """(L,) of (M,L)."""
    top = x.amax(0, keepdim=True)
    return (x - top).exp().mean(0).log() + top[0]
