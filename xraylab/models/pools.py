"""Pools: from the features of a study's images to one row of logits.

Shapes: I images, B studies, D features, L logits. ``study`` (I,) holds the row 0..B-1 of each image, or B of a blank one that
only fills the batch and belongs to none: pools work on B + 1 rows, of which the last is dropped before anything learns of it.
Each pool ignores the order of images and equals the plain classifier on a bag of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_lightning.core.mixins import HyperparametersMixin
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from xraylab.errors import UserError


class Pool(nn.Module, HyperparametersMixin):
    """Base class of the pools: from features of images to one row of logits a study.

    Attributes:
        softmax: how many logits in a row share a softmax; 1: each has a sigmoid.
        of_features: whether the head sees the pooled features of a study, and not those of each image.

    >>> class SumFeature(Pool):
    ...     of_features = True
    ...     def forward(self, features, study, studies, head):
    ...         return head(segment_sum(features, study, studies + 1)[:studies])
    >>> SumFeature()(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2, nn.Identity())
    tensor([[4.],
            [5.]])
    """

    softmax = 1
    of_features = False

    def build(self, num_features: int, softmax: int = 1) -> None:
        """Create the parameters that depend on the number of features; most pools have none."""
        self.softmax = softmax

    def forward(self, features: Tensor, study: Tensor, studies: int, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (B,L) of features (I,D)."""
        raise NotImplementedError


class MaxFeature(Pool):
    """Pool of the largest value of each feature over the images, then the head (Bien et al. 2018).

    >>> features, of = torch.tensor([[1.0, 5.0], [3.0, 2.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])  # images, and their studies
    >>> MaxFeature()(features, of, 2, nn.Identity())
    tensor([[3., 5.],
            [0., 1.]])
    """

    of_features = True

    def forward(self, features: Tensor, study: Tensor, studies: int, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (B,L) of features (I,D)."""
        return head(segment_max(features, study, studies + 1)[:studies])


class MeanProbability(Pool):
    """Pool of the mean of the images' probabilities, as a logit (Rajpurkar et al. 2017).

    Computed as logmeanexp(logsigmoid x) - logmeanexp(logsigmoid -x), finite where the naive form overflows; outputs that
    share a softmax become the logarithms of their mean probabilities, whose softmax these are.

    >>> logits = torch.tensor([[0.2], [0.6]]).logit()  # of two images of one study
    >>> MeanProbability()(logits, torch.tensor([0, 0]), 1, nn.Identity()).sigmoid()
    tensor([[0.4000]])
    """

    def forward(self, features: Tensor, study: Tensor, studies: int, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (B,L) of features (I,D)."""
        x = head(features)
        if self.softmax > 1:
            x = x.unflatten(1, (-1, self.softmax)).log_softmax(2).flatten(1)
            return segment_logmeanexp(x, study, studies + 1)[:studies]
        positive, negative = (segment_logmeanexp(logsigmoid(s), study, studies + 1) for s in (x, -x))
        return (positive - negative)[:studies]


class MaxProbability(Pool):
    """Pool of the largest of the images' probabilities (Irvin et al. 2019); of a softmax, all outputs of that image.

    Where a label has several outputs, the first is negative and the second positive, and the largest difference of the two is
    the largest probability.

    >>> logits = torch.tensor([[0.2], [0.6]]).logit()  # of two images of one study
    >>> MaxProbability()(logits, torch.tensor([0, 0]), 1, nn.Identity()).sigmoid()
    tensor([[0.6000]])
    """

    def forward(self, features: Tensor, study: Tensor, studies: int, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (B,L) of features (I,D)."""
        x = head(features)
        if self.softmax == 1:
            return segment_max(x, study, studies + 1)[:studies]
        x = x.unflatten(1, (-1, self.softmax))
        difference = (x[..., 1] - x[..., 0]).detach()
        top = ~(difference < segment_max(difference, study, studies + 1)[study])  # what is not a number stays seen
        count = x.shape[0]  # and not len(x), which is a constant to torch.export
        place = torch.arange(count, device=x.device)[:, None].expand_as(difference)
        place = torch.where(top, place, count - 1)
        first = place.new_full((studies + 1, x.shape[1]), count - 1).scatter_reduce(
            0, study[:, None].expand_as(place), place, "amin"
        )
        return x.gather(0, first[:studies, :, None].expand(-1, -1, self.softmax)).flatten(1)


class Attention(Pool):
    """Pool by gated attention: a softmax over the images weighs their features (Ilse et al. 2018, eq. 9).

    Args:
        hidden: width of the gate, at least 1.

    >>> pool = Attention(hidden=4)
    >>> pool.build(num_features=2)
    >>> weights = pool.weights(torch.rand(3, 2), torch.tensor([0, 0, 1]), 2)  # of three images of two studies
    >>> weights.shape, weights[2].tolist()
    (torch.Size([3, 1]), [1.0])
    """

    of_features = True

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        if hidden < 1:
            raise UserError(f"pool.hidden={hidden}: it is at least 1.")
        self.save_hyperparameters()
        self.hidden = hidden

    def build(self, num_features: int, softmax: int = 1) -> None:
        """The two projections and the score."""
        self.value, self.gate = nn.Linear(num_features, self.hidden), nn.Linear(num_features, self.hidden)
        self.score = nn.Linear(self.hidden, 1)

    def weights(self, features: Tensor, study: Tensor, studies: int) -> Tensor:
        """(I,1), positive, with sum 1 over the images of a study."""
        score = self.score(torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features)))
        score = (score - segment_max(score.detach(), study, studies + 1)[study]).exp()
        return score / segment_sum(score, study, studies + 1)[study]

    def forward(self, features: Tensor, study: Tensor, studies: int, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (B,L) of features (I,D)."""
        return head(segment_sum(features * self.weights(features, study, studies), study, studies + 1)[:studies])


def segment_max(x: Tensor, study: Tensor, studies: int) -> Tensor:
    """(B,D) largest values over each study's rows of x (I,D)."""
    index = study[:, None].expand_as(x)
    # from -inf with the initial value included: the form that XLA lowers
    return x.new_full((studies, x.shape[1]), float("-inf")).scatter_reduce(0, index, x, "amax")


def segment_sum(x: Tensor, study: Tensor, studies: int) -> Tensor:
    """(B,D) sums over each study's rows of x (I,D)."""
    return x.new_zeros(studies, x.shape[1]).index_add(0, study, x)


def segment_logmeanexp(x: Tensor, study: Tensor, studies: int) -> Tensor:
    """(B,D) log of the mean of exp over each study's rows of x (I,D)."""
    top = segment_max(x.detach(), study, studies)
    count = segment_sum(torch.ones_like(x[:, :1]), study, studies)
    return (segment_sum((x - top[study]).exp(), study, studies) / count).log() + top
