"""The models behind a run: itself, or the members of a combination and how much each of them weighs, study by study."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from xraylab.evaluation.ensembles.combination import Combination, read_combination
from xraylab.evaluation.predictions import PredictionTable
from xraylab.inference.inputs import Files
from xraylab.inference.predictor import (
    Predicted,
    joined,
    member_run,
    member_tables,
    predict_opened,
    require_joinable,
)
from xraylab.inference.studies import Opened, Options, open_studies

EITHER = frozenset(("logit", "probability"))


@dataclass(frozen=True)
class Member:
    """A model, and what it weighs in the whole.

    Attributes:
        name: in the combination; empty: it is the whole.
        opened: the model, and where the studies lie.
        weights: what the whole weighs its logits, or probabilities, by, (id, finding), see :func:`weights_of`.
        biases: of a finding, what the whole adds: the intercept of a stack, which its first model has.
        sums: of a finding, what the whole is a weighted sum of: logits, or probabilities; not named: of either, as one model is.
    """

    name: str
    opened: Opened
    weights: pd.DataFrame
    biases: dict[str, float] = field(default_factory=dict)
    sums: dict[str, frozenset[str]] = field(default_factory=dict)

    def keeps(self, finding: str) -> frozenset[str]:
        """``logit`` and ``probability``, as far as the whole is a weighted sum of it."""
        return self.sums.get(finding, EITHER)

    def weight(self, study: str, finding: str) -> float:
        """Of a study and a finding; 0 where it does not have them."""
        there = study in self.weights.index and finding in self.weights
        return float(self.weights[finding].to_numpy()[self.weights.index.get_loc(study)]) if there else 0.0


def members_of(
    run: Path, studies: str | Files, options: Options, only: Collection[str] | None = None
) -> tuple[Predicted, list[Member]]:  # fmt: skip
    """Predict with a run, and say which models did it.

    Args:
        run, studies, options: as of predicting.
        only: names of the studies that are wanted; None: all.

    Returns:
        What the run predicts; and the models, of a combination of combinations those at its ends.

    Raises:
        UserError: as of :func:`xraylab.inference.predictor.predict`.
    """
    found = read_combination(run) if run.is_dir() else None
    if found is None:
        opened = _restricted(open_studies(run, studies, options), only)
        done = predict_opened(opened, studies, options)
        labels = PredictionTable(done.table).predicted
        return done, [Member("", opened, pd.DataFrame(1.0, index=pd.Index(done.table["id"]), columns=pd.Index(labels)))]
    combination, paths = found
    require_joinable(run, combination, studies, options)
    inner = [members_of(member_run(run, path), studies, options, only) for path in paths]
    predicted = [done for done, _ in inner]
    weights = weights_of(combination, member_tables(combination, predicted)[0])
    intercepts = {label: float(of["intercept"] or 0) for label, of in (combination.labels or {}).items()}
    sums = {label: _sums(combination, label) for label in weights[0].columns}
    members: list[Member] = []
    for name, weight, (_, ends) in zip(combination.names, weights, inner, strict=True):
        for end in ends:
            path = "/".join(word for word in (name, end.name) if word)
            biases = {label: value * float(weight[label].iloc[0]) for label, value in end.biases.items() if label in weight}
            if not members:
                biases = {label: biases.get(label, 0.0) + intercepts.get(label, 0.0) for label in {**biases, **intercepts}}
            of = {label: end.keeps(label) & kept for label, kept in sums.items()}
            members.append(replace(end, name=path, weights=end.weights * weight, biases=biases, sums=of))
    return joined(combination, predicted), members


def _sums(combination: Combination, label: str) -> frozenset[str]:
    """What a combination is a weighted sum of; where each study, or finding, is one member's, of either."""
    if combination.method == "vote":
        return frozenset()
    fitted = (combination.labels or {}).get(label)
    if fitted is not None and fitted["coefficients"] is not None:
        return frozenset(("logit",))
    return frozenset(("probability",)) if combination.method in ("stack", "mean", "union") else EITHER


def _restricted(opened: Opened, only: Collection[str] | None) -> Opened:
    if only is None:
        return opened
    wanted = opened.table.frame["id"].iloc[opened.rows].isin(set(only)).to_numpy()
    return opened._replace(rows=opened.rows[wanted], paths=[p for p, keep in zip(opened.paths, wanted, strict=True) if keep])


def weights_of(combination: Combination, tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """What a combination weighs each member by, (id, finding): the coefficients of a stack, which are of members' logits; else
    parts of 1, of their probabilities: equal ones of a mean or a vote, all of it for the member of a study's group or a finding.

    Args:
        tables: of the members, as :meth:`Combination.join` takes them.
    """
    labels = PredictionTable(tables[0]).predicted
    having = pd.concat([table["id"] for table in tables]).value_counts()
    weights = []
    for k, (name, table) in enumerate(zip(combination.names, tables, strict=True)):
        of = pd.DataFrame({label: 1 / having[table["id"]].to_numpy(float) for label in labels}, index=pd.Index(table["id"]))
        if combination.groups is not None:
            of = of * 0 + (table["group"] == combination.groups[k]).to_numpy(float)[:, None]
        for label, chosen in (combination.chosen or {}).items():
            of[label] = float(chosen["member"] == name)
        for label, fitted in (combination.labels or {}).items():
            if fitted["coefficients"] is not None:
                of[label] = fitted["coefficients"][name]
        weights.append(of)
    return weights
