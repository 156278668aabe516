"""Which of several results are of the same studies, and what one is better at than another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from xraylab.errors import UserError, listed
from xraylab.evaluation.ensembles.alignment import aligned
from xraylab.evaluation.paired_tests import compare
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.result import Differences, Evaluation, Value
from xraylab.run import Run

LONG = 60  # characters of a run's overrides in a line or a legend
RULES = ("kappa", "youden")  # of thresholds at which runs are compared, the first that both have


class Result(NamedTuple):
    """A run, or an ensemble of runs, the content of its ``evaluation.json``, and where it lies."""

    job: str
    overrides: str
    evaluation: Evaluation
    directory: Path


class Pair(NamedTuple):
    """A result against another of the same n studies, which was ``picked`` for its score, or named.

    ``found`` is of :func:`xraylab.evaluation.paired_tests.compare`, None of the other itself; ``chosen`` the name of a rule, and
    the same at the thresholds that both chose by it.
    """

    reference: str
    found: Differences | None
    chosen: tuple[str, Differences] | None
    n: int
    picked: bool

    def at(self) -> list[tuple[str, Differences]]:
        """What was found, by what the thresholds are."""
        return ([("0.5", self.found)] if self.found else []) + ([self.chosen] if self.chosen else [])

    def macro(self) -> Value:
        """The difference of macro AUROC."""
        itself: Value = {"value": 0.0, "low": None, "high": None, "n": self.n, "reason": "the reference"}
        return self.found["macro"]["auroc"] if self.found else itself


def own_words(overrides: str, shared: set[str]) -> str:
    """The overrides that not all runs have."""
    return " ".join(word for word in overrides.split(" ") if word not in shared)


def named(job: str, overrides: str, shared: set[str]) -> str:
    """What a result is called where there is little room: its name, and the first of the overrides that not all runs have."""
    own = own_words(overrides, shared)
    return f"{job}: {own[:LONG]}{'…' * (len(own) > LONG)}"


def paired(results: Sequence[Result], reference: str | None = None) -> tuple[dict[tuple[str, str], Pair], list[str]]:
    """Each result against another of the same studies, by job and split; and which could not be paired, and why.

    Results are paired where their prediction tables by study hold the same studies, labels and scoring. The other is the
    reference where one is named, else the run of highest macro AUROC; a combination is that only where no run is.
    """
    out: dict[tuple[str, str], Pair] = {}
    left_out = []
    for split in dict.fromkeys(s for r in results for s in r.evaluation["splits"]):
        of = {r.job: r for r in results if split in r.evaluation["splits"]}
        files = {job: Run(r.directory).predictions(split) for job, r in of.items()}
        without = [job for job in of if not files[job].is_file()]
        if without and len(of) > 1:
            left_out.append(f"{split}: {listed(without)} not compared: there is no table predictions/{split}.csv")
        if reference is not None and (reference not in of or reference in without):
            left_out.append(f"{split}: nothing is compared with {reference}, which has no predictions of it")
            continue
        value = {job: r.evaluation["splits"][split]["macro"]["auroc"]["value"] for job, r in of.items()}
        order = sorted(
            (r for job, r in of.items() if job not in without),
            key=lambda r: (r.job != reference, value[r.job] is None, "members" in r.evaluation, -(value[r.job] or 0)),
        )
        why: dict[str, str] = {}
        others: list[tuple[Result, Scoring, PredictionTable]] = []  # what is compared with, one of each set of studies
        for r in order:
            table, scored = PredictionTable.read(files[r.job]), Scoring.of(r.evaluation)
            for other, scoring, theirs in others:
                try:
                    if scoring != scored:
                        raise UserError(f"runs {other.job} and {r.job} score labels otherwise")
                    ours = PredictionTable(aligned(theirs.frame, table.frame, r.job, other.job))
                    found = _compare(r, other, split, ours, theirs, scored)
                except UserError as error:
                    why.setdefault(r.job, str(error))
                    continue
                out[r.job, split] = Pair(other.job, *found, len(theirs), reference is None)
                out.setdefault((other.job, split), Pair(other.job, None, None, len(theirs), reference is None))
                break
            else:
                if reference is None or not others:
                    others.append((r, scored, table))
        left_out += [f"{split}: {j} is not paired with another run: {w}" for j, w in why.items() if (j, split) not in out]
    return out, left_out


def _compare(
    r: Result, other: Result, split: str, table: PredictionTable, theirs: PredictionTable, scored: Scoring
) -> tuple[Differences, tuple[str, Differences] | None]:  # fmt: skip
    """What a result is better at than another, at 0.5; and at the thresholds that each chose by one rule, with its name."""
    b = other.evaluation["splits"][split]["bootstrap"]
    found = compare(table, theirs, b["resamples"], scored)
    points = [x.evaluation["splits"][split].get("operating_points", {}) for x in (r, other)]
    for rule in RULES:
        if all(rule in p for p in points):
            chosen = {la: [p[rule]["labels"].get(la, {}).get("threshold") for p in points] for la in found["labels"]}
            if cuts := {label: (a, b) for label, (a, b) in chosen.items() if a is not None and b is not None}:
                columns = [c for c in map(str, table.frame) if c[:2] not in ("p_", "y_") or c[2:] in cuts]
                pair = (PredictionTable(table.frame[columns]), PredictionTable(theirs.frame[columns]))
                return found, (rule, compare(*pair, b["resamples"], scored, cuts))
    return found, None
