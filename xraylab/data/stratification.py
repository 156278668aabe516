"""Iterative stratification by patient: patients are dealt into parts that are alike.

The rarest feature (a finding's positives in a group, those in all, …) is dealt first, each of its patients to the part that has
least of it for its size, so that a finding of a few patients is in as many parts as it can be (Sechidis, Tsoumakas and Vlahavas
2011, ECML PKDD, 145-158; Szymański and Kajdanowicz 2017, PMLR 74:22-35). Among parts that have equally little of it, the patient
goes where its other features are rarest, then where a draw says. Parts have exactly the sizes that are asked for. All is counted
in whole numbers: no rounding decides, and a seed is the same parts on every machine.

Of parts of different sizes the larger would always get the first patient of a finding, and the smaller one never any of a
finding of few patients, whatever the seed. So it is drawn, for each feature, where the count of each part begins: a feature of
one patient is in a part as often as the part is large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

HALF = 2**20  # of what comes, that is counted where nothing is drawn


def stratified(
    patients: pd.Series, groups: pd.Series, labels: pd.Series, shares: Sequence[float], seed: int, drawn: bool = True
) -> np.ndarray:  # fmt: skip
    """The part of each row's patient, int64 (N,), 0 to the number of shares less one; the order of rows does not matter.

    Args:
        patients: (N,) names.
        groups: (N,) names.
        labels: (N,) of :func:`written`.
        shares: of the patients, of each part: two, or several that are equal; they sum to 1.
        drawn: where counts begin; False: in the middle, as splits of version 2 have it.
    """
    names, patient = np.unique(patients.to_numpy(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    order, draws = rng.permutation(len(names)), rng.random((len(names), len(shares)))
    sizes = _sizes(len(names), shares)
    features = _features(patient, len(names), groups, labels, sizes)
    begin = np.full((len(sizes), features.shape[1]), HALF)
    if drawn and len(sizes) == 2 and sizes[0] != sizes[1]:
        begin[0] = rng.integers(1, 2 * HALF, features.shape[1])
        begin[1] = 2 * HALF - begin[0]
    return _deal(features, sizes, order, draws, begin.tolist())[patient]


def written(values: pd.DataFrame) -> pd.Series:
    """Raw labels (N,L) as texts of L characters: 1, 0, u uncertain, - anything else."""
    raw = values.to_numpy(np.float64)
    characters = np.select([raw == 1, raw == 0, raw == -1], ["1", "0", "u"], "-")
    return pd.Series(["".join(row) for row in characters.tolist()], values.index, dtype=object)


def _features(patient: np.ndarray, number: int, groups: pd.Series, labels: pd.Series, sizes: Sequence[int]) -> np.ndarray:
    """int32 (P,F), how many studies of each patient have each feature, the rarest first: a label's value, in a group; any.

    A group, and a value in it, counts where each part can have a patient of it. Fewer would all go to the largest part, one
    group after the other, and take the value from the other parts.
    """
    group, of_group = pd.factorize(groups, sort=True)
    kinds, texts = pd.factorize(labels, sort=True)
    table = np.array([list(text) for text in texts]).reshape(len(texts), -1)
    here = [group == k for k in range(len(of_group))]
    values = [(table[:, k] == value)[kinds] for k in range(table.shape[1]) for value in "1u0"]
    both = [value & inside for value in values for inside in here] if len(here) > 1 else []
    least = number / min(size for size in sizes if size)
    narrow = [column for column in (*here, *both) if len(np.unique(patient[column])) >= least]
    columns = [*narrow, *values, np.ones(len(patient), bool)]
    counts = np.stack([np.bincount(patient[column], minlength=number).astype(np.int32) for column in columns], axis=1)
    total = counts.sum(0)
    order = np.argsort(total, kind="stable")
    return counts[:, order[total[order] > 0]]


def _sizes(number: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers near ``number * share`` that sum to ``number``; what is left over goes to the largest remainders."""
    exact = np.round(np.array(shares) * number, 6)
    sizes = np.floor(exact).astype(int)
    sizes[np.argsort(sizes - exact, kind="stable")[: number - sizes.sum()]] += 1
    return [int(size) for size in sizes]


def _deal(
    features: np.ndarray, sizes: Sequence[int], order: np.ndarray, draws: np.ndarray, begin: Sequence[Sequence[int]]
) -> np.ndarray:  # fmt: skip
    """The part of each patient, (P,).

    Args:
        features: of :func:`_features`.
        sizes: of the parts.
        order: (P,), of patients who are alike.
        draws: (P,J), which of equal parts takes a patient.
        begin: (J,F), of ``2 * HALF`` parts of what comes, how many are counted before it is dealt.
    """
    there = features > 0
    rows, columns = np.nonzero(there)
    starts = np.searchsorted(rows, np.arange(len(features) + 1)).tolist()
    every, amounts = columns.tolist(), features[rows, columns].tolist()
    left, part = there.sum(0), np.full(len(features), -1)
    has = [[0] * features.shape[1] for _ in sizes]
    room, still = list(sizes), [j for j, size in enumerate(sizes) if size]
    whole = math.lcm(*(sizes[j] for j in still))
    scale = [whole // size if size else 0 for size in sizes]  # what a part has, for its size
    while (part < 0).any():
        rarest = int(np.argmin(np.where(left > 0, left, len(features) + 1)))
        waiting = np.flatnonzero(there[:, rarest] & (part < 0))
        for p in waiting[np.lexsort((order[waiting], -features[waiting, rarest]))].tolist():
            mine, counts = every[starts[p] : starts[p + 1]], amounts[starts[p] : starts[p + 1]]
            n = counts[mine.index(rarest)]
            least = [(2 * HALF * has[j][rarest] + begin[j][rarest] * n) * scale[j] for j in still]
            tied = [j for j, amount in zip(still, least, strict=True) if amount == min(least)]
            if len(tied) > 1:
                full = {
                    j: [(2 * HALF * has[j][f] + begin[j][f] * n) * scale[j] for f, n in zip(mine, counts, strict=True)]
                    for j in tied
                }
                tied.sort(key=lambda j: (full[j], draws[p, j]))
            best = part[p] = tied[0]
            for f, n in zip(mine, counts, strict=True):
                has[best][f] += n
            room[best] -= 1
            if not room[best]:
                still.remove(best)
        left = left - there[waiting].sum(0)
    return part
