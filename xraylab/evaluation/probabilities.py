"""Probabilities and their log-odds."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_expit

from xraylab.errors import UserError

FAR = 25 * float(np.log(2))  # the least logit whose sigmoid is 1 in 32 bits


def logit(probability: np.ndarray) -> np.ndarray:
    """log(p / (1-p)) of (N,) or (N,M), finite: 0 and 1 count as the farthest of their column, and at least as -17.3 and 17.3."""
    p = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore"):
        z = np.log(p) - np.log1p(-p)
    known = np.where(np.isfinite(z), z, 0.0)
    return np.clip(z, known.min(0, initial=-FAR), known.max(0, initial=FAR))


def mean_logit(z: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The logits of mean probabilities, (K,): logmeanexp(logsigmoid z) - logmeanexp(logsigmoid -z), finite where means round.

    Args:
        z: (N,), the logits.
        of: (N,) int, which of the K means each is in; every mean has one.
    """

    def logmeanexp(x: np.ndarray) -> np.ndarray:
        top = np.full(int(of.max(initial=-1)) + 1, -np.inf)
        np.maximum.at(top, of, x)
        return np.log(np.bincount(of, np.exp(x - top[of])) / np.bincount(of)) + top

    return logmeanexp(log_expit(z)) - logmeanexp(log_expit(-z))


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)), without overflow."""
    return np.asarray(expit(z))


def require_finite(logits: np.ndarray, split: str) -> None:
    """Check that a model still gives numbers.

    Raises:
        UserError: some logits are not finite.
    """
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise UserError(
            f"{split}: the model's output is not a number for {bad} of {len(logits)} studies: training has diverged. "
            "Lower optimizer.lr, or set gradient_clip=1.0 or precision=32."
        )
