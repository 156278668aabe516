"""The evaluation: what ``evaluation.json`` of a run holds, as types, and what is asked of it everywhere.

Evaluations are plain dictionaries, so that what is in memory is what is in the file. A key that is not required is one that some
evaluations do not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NotRequired, TypedDict


class Bounds(TypedDict):
    """Bounds of an AUROC, and where two are compared the p of DeLong's test."""

    low: float | None
    high: float | None
    reason: str | None
    p: NotRequired[float | None]


class Value(Bounds):
    """A number as it leaves the program: null with a reason where it is undefined, without bounds where it has no interval.

    ``delong`` is of an AUROC; ``labels``, of a mean, those for which the number is defined.
    """

    value: float | None
    n: int
    delong: NotRequired[Bounds]
    labels: NotRequired[list[str]]


Values = dict[str, Value]  # by metric, and of a label the counts of its raw labels


class Choice(TypedDict):
    """A threshold or a temperature that validation chose: null with a reason where it chose none."""

    value: float | None
    reason: str | None
    note: NotRequired[str]


Decision = dict[str, Any]  # see operating_points.at_threshold: beside three keys it has one for every metric of RATES


class Checkpoint(TypedDict):
    """The checkpoint that predicted: its file, epoch (from 0), step, what it was chosen by, and of which weights it is."""

    file: str
    epoch: int
    step: int
    monitor: str
    weights: NotRequired[str]


class LabelChosen(TypedDict):
    """What validation chose for a label: thresholds by rule and a temperature, of n scored studies, so many of them positive."""

    n: int
    positives: int
    thresholds: dict[str, Choice]
    temperature: Choice


class Chosen(TypedDict, total=False):
    """What ``operating_points.json`` holds: where it was chosen (null: nowhere), the rules by name, and what they chose.

    Empty where nothing is known.
    """

    chosen_on: str | None
    rules: dict[str, str]
    labels: dict[str, LabelChosen]
    checkpoint: Checkpoint


class OperatingPoint(TypedDict):
    """A rule, where its thresholds were chosen (null: nowhere, they are fixed), and what each label's calls are worth there."""

    rule: str
    chosen_on: str | None
    labels: dict[str, Decision]


class Reading(TypedDict):
    """What one reader's calls are worth: how many studies were read, and by label."""

    n: int
    labels: dict[str, Decision]


class ReaderStudy(TypedDict):
    """The file of the readings, and what each reader's are worth."""

    file: str
    readers: dict[str, Reading]


class LabelCalibration(TypedDict):
    """The calibration of a label, see :func:`xraylab.evaluation.calibration.calibration`; ``after``: with its temperature."""

    n: int
    ece: Value
    brier: Value
    parts: dict[str, float] | None
    bins: list[dict[str, float]]
    temperature: NotRequired[Choice]
    after: NotRequired[LabelCalibration | None]


class Calibration(TypedDict):
    """The calibration of every label, over ``bins`` bins; ``chosen_on``: where temperatures were fitted, null: nowhere."""

    bins: int
    chosen_on: str | None
    labels: dict[str, LabelCalibration]


class Bootstrap(TypedDict):
    """What intervals take as independent, and what was asked for: 0 resamples, no intervals."""

    over: str
    resamples: int
    level: float
    seed: int


class Intervals(TypedDict):
    """How intervals were made, and the least number of positives and negatives that they take."""

    over: str
    level: float
    least: int
    how: str


class Results(TypedDict):
    """Every metric by label, and their means over labels."""

    labels: dict[str, Values]
    macro: Values


class GroupResult(Results):
    """The results of one group of studies; patients null where they are not known."""

    n: int
    patients: int | None


#: studies of both classes, ``[positives, negatives]``, that tie at probabilities of 0 and of 1, and the AUROCs that are possible
Ties = TypedDict("Ties", {"0": list[int], "1": list[int], "auroc": list[float]})


class SplitResult(GroupResult):
    """The results of a split, by study or by image; ``selected_on``: whether choices were made on it; null: not known."""

    unit: str
    selected_on: bool | None
    threshold: float
    bootstrap: Bootstrap
    groups: dict[str, GroupResult]
    intervals: NotRequired[Intervals | None]
    ties: NotRequired[dict[str, Ties]]
    exclusive: NotRequired[Values]
    images: NotRequired[SplitResult]
    operating_points: NotRequired[dict[str, OperatingPoint]]
    calibration: NotRequired[Calibration]
    readers: NotRequired[ReaderStudy]


class TrainedOn(TypedDict):
    """Studies, patients (null: not known) and raw labels of train."""

    n: int
    patients: int | None
    labels: dict[str, dict[str, int]]


class StackFit(TypedDict):
    """A label's coefficients in a stack, see :func:`xraylab.evaluation.ensembles.stacking.fit_stack`."""

    intercept: float | None
    coefficients: dict[str, float] | None
    n: int
    positives: int
    reason: str | None
    certain: NotRequired[dict[str, int]]


class Evaluation(TypedDict):
    """The content of ``evaluation.json``: of a run, of a combination of runs (``members``), or of a table.

    Attributes:
        data: what the studies are of.
        splits: the results of each split by study, or by image where there is no table by study.
        selection: by what the splits were made.
        scored: what blank and uncertain labels count as.
        skipped: faults in the data, the names of each kind.
        left_out: of a combination, tables that could not be joined, and why.
        table: of a table, its file.
        evaluated: how an evaluation anew was asked for.
    """

    data: str
    splits: dict[str, SplitResult]
    selection: NotRequired[str]
    checkpoint: NotRequired[Checkpoint]
    loss: NotRequired[dict[str, Any]]
    skipped: NotRequired[dict[str, list[str]]]
    trained_on: NotRequired[TrainedOn]
    scored: NotRequired[dict[str, str]]
    members: NotRequired[list[str]]
    left_out: NotRequired[dict[str, str]]
    combination: NotRequired[dict[str, Any]]
    members_of_studies: NotRequired[dict[str, dict[str, int]]]
    table: NotRequired[str]
    evaluated: NotRequired[dict[str, Any]]


class Differences(TypedDict):
    """One result minus another of the same studies, see :func:`xraylab.evaluation.paired_tests.compare`."""

    labels: dict[str, dict[str, Any]]
    macro: Values


def all_selected_on(known: Iterable[bool | None]) -> bool | None:
    """Whether choices were made on studies of which several say it: on those of any; None: not known."""
    said = set(known)
    return True if True in said else None if None in said else False


def choices(selected_on: bool | None) -> str:
    """Whether choices were made on studies, in words."""
    if selected_on is None:
        return "not known whether choices were made on these studies"
    return "choices were made on these studies" if selected_on else "held out from all choices"


def in_sample(evaluation: Evaluation) -> bool:
    """Whether what an ``evaluation.json`` is of was fitted on predictions of studies that its members were trained on."""
    return bool(evaluation.get("combination", {}).get("in_sample"))


def by_unit(evaluation: Evaluation) -> Iterator[tuple[str, SplitResult]]:
    """Split and result, of every split and unit in the content of an ``evaluation.json``."""
    for split, by_study in evaluation["splits"].items():
        yield split, by_study
        if "images" in by_study:
            yield split, by_study["images"]


def with_macro(result: Results) -> dict[str, Values]:
    """The metrics of each label; of several also their mean, as ``macro``."""
    return result["labels"] if len(result["labels"]) == 1 else {**result["labels"], "macro": result["macro"]}


def last_split(evaluation: Evaluation) -> tuple[str, SplitResult]:
    """The split whose results count most: test, or what there is."""
    splits = evaluation["splits"]
    name = "test" if "test" in splits else list(splits)[-1]
    return name, splits[name]
