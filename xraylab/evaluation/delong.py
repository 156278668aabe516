"""Tests in closed form: DeLong's for AUROCs, McNemar's for two classifiers at a threshold.

Shapes: N rows (studies), S sets of scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def delong(truth: np.ndarray, scores: np.ndarray, clusters: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs and their covariance, by midranks in O(N log N).

    DeLong, DeLong and Clarke-Pearson (1988), computed as by Sun and Xu (2014). With clusters the variance is Obuchowski's
    (1997), for studies that depend on each other within a patient; it is DeLong's where each has one study.

    Args:
        truth: 0/1 (N,).
        scores: (S,N), higher where positive is likelier.
        clusters: (N,) number of each row's patient; None: rows are independent.

    Returns:
        AUROCs (S,) and covariance (S,S); NaN where there are fewer than two clusters with a positive, or with a negative.
    """
    from scipy.stats import rankdata

    positive = truth == 1
    m, n = int(positive.sum()), int((~positive).sum())
    size = len(scores)
    if m == 0 or n == 0:
        return np.full(size, np.nan), np.full((size, size), np.nan)
    everyone = rankdata(scores, axis=1)
    above = (everyone[:, positive] - rankdata(scores[:, positive], axis=1)) / n  # share of negatives below each positive
    below = 1 - (everyone[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / m  # of positives above each negative
    auroc = above.mean(1)
    of = np.arange(len(truth)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    of_positive, of_negative = of[positive], of[~positive]
    with_positive, with_negative = len(np.unique(of_positive)), len(np.unique(of_negative))
    if min(with_positive, with_negative) < 2:
        return auroc, np.full((size, size), np.nan)
    k = int(of.max()) + 1
    p = np.stack([np.bincount(of_positive, row, k) for row in above - auroc[:, None]])
    q = np.stack([np.bincount(of_negative, row, k) for row in below - auroc[:, None]])
    mixed = p @ q.T
    covariance = p @ p.T * (with_positive / (with_positive - 1) / m**2)
    covariance += q @ q.T * (with_negative / (with_negative - 1) / n**2)
    covariance += (mixed + mixed.T) * (k / (k - 1) / (m * n))
    return auroc, covariance


def delong_p(truth: np.ndarray, first: np.ndarray, second: np.ndarray, clusters: np.ndarray | None = None) -> float | None:
    """The two-sided p of DeLong's test that two AUROCs of the same rows are equal; None where their variance is not known or 0.

    Args:
        truth: 0/1 (N,).
        first, second: (N,) scores.
        clusters: see :func:`delong`.
    """
    from scipy.stats import norm

    auroc, covariance = delong(truth, np.stack([first, second]), clusters)
    contrast = np.array([1.0, -1.0])
    variance = float(contrast @ covariance @ contrast)
    return float(2 * norm.sf(abs(float(contrast @ auroc)) / np.sqrt(variance))) if variance > 1e-16 else None


def mcnemar(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """McNemar's test of whether two classifiers are right equally often.

    It takes studies as independent: where patients have several, prefer the interval of accuracy or kappa.

    Args:
        truth: 0/1 (N,).
        first, second: bool (N,), whether each calls a study positive.

    Returns:
        ``first_only, second_only``: studies that only this one gets right; ``exact``: two-sided p by the binomial;
        ``corrected``: p by chi-squared with Edwards' correction, (|b-c|-1)^2/(b+c); ``n``.
    """
    from scipy.stats import binom, chi2

    right = first == (truth == 1), second == (truth == 1)
    b, c = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    exact = min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5)))
    corrected = float(chi2.sf(max(abs(b - c) - 1, 0) ** 2 / (b + c), 1)) if b + c else 1.0
    return {"first_only": b, "second_only": c, "exact": exact, "corrected": corrected, "n": len(truth)}
