"""Operating points: thresholds chosen on validation by rule, and what a classifier does at them.

A study is called positive at or above a threshold. Thresholds lie halfway between two neighbouring probabilities of
validation, so a last digit that differs on another machine changes no call.

``operating_points.json`` of a run holds what was chosen on validation: ``{"data", "checkpoint", "chosen_on", "rules", "labels":
{label: {"n", "positives", "thresholds": {name: {"value", "reason"[, "note"]}}, "temperature": {"value", "reason"}}}}``.
Thresholds are of probabilities as the model gives them, without the temperature; a note says where none lies between studies
that logits tell apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylab.config.settings import Operating
from xraylab.errors import UserError, did_you_mean, listed, refusing
from xraylab.evaluation.calibration import BINS, calibration, fit_temperature, scaled
from xraylab.evaluation.intervals import Clusters
from xraylab.evaluation.metrics import AUROC, RATES, intervals_of, rates, result, undefined
from xraylab.evaluation.predictions import CERTAIN, PredictionTable, Scoring
from xraylab.evaluation.result import Choice, Chosen, Decision, LabelCalibration, LabelChosen, OperatingPoint, SplitResult
from xraylab.system.command_line import command_line, word

VALID = "valid"  # the split that chooses
CHOSEN = "operating_points.json"
FIXED = "0.5"  # the name of the point that nothing chose
NOT_THERE = (
    f"{CHOSEN} of the run does not lie beside its checkpoints folder, or is of another checkpoint. Name the run directory, or "
    "write it anew by python -m xraylab.evaluate run=<run>; of a combination, by combining anew."
)
CELLS = ("tp", "fp", "fn", "tn")


class Rules(Operating):
    """Which thresholds are chosen, by the settings of a run.

    Attributes:
        youden: the largest sensitivity + specificity (Youden 1950).
        sensitivity: the largest specificity with at least this sensitivity; None: not chosen.
        specificity: the largest sensitivity with at least this specificity; None: not chosen.
        kappa: the largest Cohen's kappa.
    """

    @property
    def names(self) -> dict[str, str]:
        """Name to what it says, e.g. ``sensitivity_0.9``: the largest specificity with sensitivity at least 0.9."""
        out = {}
        if self.youden:
            out["youden"] = "largest sensitivity + specificity"
        if self.sensitivity is not None:
            out[f"sensitivity_{self.sensitivity:g}"] = f"largest specificity with a sensitivity of at least {self.sensitivity:g}"
        if self.specificity is not None:
            out[f"specificity_{self.specificity:g}"] = f"largest sensitivity with a specificity of at least {self.specificity:g}"
        if self.kappa:
            out["kappa"] = "largest kappa"
        return out


STANDARD = Rules()


def candidates(truth: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every threshold that calls other studies positive than the next, by falling value, (T,), with the tp and fp of each.

    The first calls nobody positive, the last everybody.

    Args:
        truth: 0/1 (N,), N at least 1.
        probability: (N,) in [0,1].
    """
    order = np.argsort(-probability, kind="stable")
    p = probability[order]
    last = np.r_[np.flatnonzero(np.diff(p)), len(p) - 1]  # of each tie
    tp, fp = (np.r_[0, np.cumsum(truth[order] == k)[last]] for k in (1, 0))
    edges = np.r_[max(1.0, float(np.nextafter(p[0], 2))), p[last], 0.0]
    above, below = edges[:-1], edges[1:]
    halfway = (above + below) / 2
    return np.where(halfway > below, halfway, above), tp, fp  # neighbouring floats have no number between them


def choose(
    truth: np.ndarray, probability: np.ndarray, rules: Rules, z: np.ndarray | None = None
) -> dict[str, Choice]:  # fmt: skip
    """The thresholds of all rules, ``{name: {"value", "reason"[, "note"]}}``; of equally good ones the highest.

    Args:
        truth: 0/1 (N,).
        probability: (N,) in [0,1].
        z: (N,), the logits; None: not known.

    Returns:
        Value null with a reason where there is one class only; a value with a reason where it calls everybody positive, or
        nobody, as nothing else does what the rule asks for; a note where logits tell studies apart whose probabilities are one
        number, 1 as a rule, and the rule would cut between them.
    """
    missing = undefined(AUROC, truth)
    if missing:
        return {name: {"value": None, "reason": f"{missing} in validation"} for name in rules.names}
    out: dict[str, Choice] = {}
    finer = _best(truth, z, rules) if z is not None and len(np.unique(z)) > len(np.unique(probability)) else {}
    for name, (value, tp, fp, reason) in _best(truth, probability, rules).items():
        out[name] = {"value": value, "reason": reason}
        if name in finer and finer[name][1:3] != (tp, fp):
            _, right, wrong, reason = finer[name]
            note = (
                f"no probability lies between studies that logits tell apart: it calls {tp} positives and {fp} negatives of "
                f"validation positive, where a cut by logits would call {right} and {wrong}"
            )
            out[name] = {"value": value, "reason": reason, "note": note}
    return out


def _best(truth: np.ndarray, score: np.ndarray, rules: Rules) -> dict[str, tuple[float, int, int, str | None]]:
    """The threshold of each rule, the positives and negatives that it calls positive, and why it is trivial, if it is."""
    threshold, tp, fp = candidates(truth, score)
    positives, negatives = tp[-1], fp[-1]
    found = rates(tp, fp, positives, negatives)
    sensitivity, specificity = found["sensitivity"], found["specificity"]
    best = {}
    for name in rules.names:
        if name == "youden":
            best[name] = int(np.argmax(tp * negatives - fp * positives))  # in whole numbers, for ties are ties there
        elif name == "kappa":
            best[name] = int(np.argmax(np.round(found["kappa"], 12)))
        elif name.startswith("sensitivity"):
            best[name] = int(np.argmax(sensitivity >= (rules.sensitivity or 0.0) - 1e-12))
        else:
            least = int(np.flatnonzero(specificity >= (rules.specificity or 0.0) - 1e-12)[-1])
            best[name] = int(np.argmax(tp == tp[least]))  # as sensitive, and no positive less specific
    calls = {0: "no", len(threshold) - 1: "every"}
    why = {k: f"only calling {word} study positive does that in validation" for k, word in calls.items()}
    return {name: (float(threshold[k]), int(tp[k]), int(fp[k]), why.get(k)) for name, k in best.items()}


def trivial(points: Mapping[str, OperatingPoint]) -> list[str]:
    """The operating points that call every study of validation positive, or none, in words without a full stop."""
    found = [(name, point["rule"], label, of) for name, point in points.items() for label, of in point["labels"].items()]
    return [
        f"{name} of {label} ({rule}): {of['reason']}"
        for name, rule, label, of in found
        if of["threshold"] is not None and of["reason"]
    ]


def at_threshold(
    truth: np.ndarray, probability: np.ndarray, found: Choice, rows: np.ndarray | None = None,
    clusters: Clusters | None = None,
) -> Decision:  # fmt: skip
    """What a label's calls are worth at a threshold.

    Args:
        truth: 0/1 (N,).
        probability: (N,).
        found: ``{"value", "reason"}`` of the threshold, as :func:`choose` gives it.
        rows, clusters: (N,) the places of the studies, and whose they are; None: no intervals.

    Returns:
        ``threshold, reason, confusion {tp,fp,fn,tn}`` and every one of ``RATES`` as a metric with value, interval and n.
    """
    threshold, reason = found["value"], found["reason"]
    if threshold is None:
        none = {metric: result(None, len(truth), None, f"no threshold: {reason}") for metric in RATES}
        return {"threshold": None, "reason": reason, "confusion": None, **none}
    counts = cells(truth, probability, threshold).sum(0)
    of_calls = {k: float(v) for k, (v,) in rates(*counts[:, None]).items()}
    values = {k: v if np.isfinite(v) and not undefined(RATES[k], truth) else None for k, v in of_calls.items()}
    intervals = {} if clusters is None or rows is None else intervals_of(values, clusters, rows, truth, probability >= threshold)
    out = {m: result(v, len(truth), intervals.get(m), undefined(RATES[m], truth, v)) for m, v in values.items()}
    tp, fp, p, n = (int(v) for v in counts)
    confusion = dict(zip(CELLS, (tp, fp, p - tp, n - fp), strict=True))
    note = {"note": found["note"]} if "note" in found else {}
    return {"threshold": threshold, "reason": reason, **note, "confusion": confusion, **out}


def cells(truth: np.ndarray, probability: np.ndarray, threshold: float) -> np.ndarray:
    """Whether each study is a true positive, a false positive, positive, negative: bool (N,4)."""
    called, positive = probability >= threshold, truth == 1
    return np.stack([called & positive, called & ~positive, positive, ~positive], axis=1)


def judge(
    splits: Mapping[str, SplitResult], tables: Mapping[str, PredictionTable], rules: Rules = STANDARD, scoring: Scoring = CERTAIN,
) -> Chosen:  # fmt: skip
    """Choose thresholds and temperatures on validation, and say what they are worth in every split.

    Adds two blocks to the result of each split: ``operating_points``: ``{name: {"rule", "chosen_on", "labels": {label: ...}}}``,
    the fixed 0.5 first, see :func:`at_threshold`; and ``calibration``: ``{"bins": 15, "chosen_on", "labels": {label: {...,
    "temperature", "after"}}}``, see :func:`xraylab.evaluation.calibration.calibration`, ``after`` being the same with the
    temperature.

    Args:
        splits: results of :func:`xraylab.evaluation.evaluator.evaluate_split`, by study.
        tables: the prediction tables that they are of.
        rules: what is chosen.
        scoring: what blank and uncertain labels count as, as in the results.

    Returns:
        What was chosen: ``{"chosen_on", "rules", "labels"}`` of ``operating_points.json``.
    """
    labels = next(iter(tables.values())).labels
    chosen: Chosen = {"chosen_on": VALID if VALID in tables else None, "rules": rules.names, "labels": {}}
    for label in labels:
        none: Choice = {"value": None, "reason": "there is no validation split"}
        found: LabelChosen = {"n": 0, "positives": 0, "thresholds": dict.fromkeys(rules.names, none), "temperature": none}
        if VALID in tables:
            truth, probability, rows = tables[VALID].scored(label, scoring)
            z = tables[VALID].log_odds(label)[rows]
            temperature = fit_temperature(truth, z)
            thresholds = choose(truth, probability, rules, z)
            found = {"n": len(truth), "positives": int(truth.sum()), "thresholds": thresholds, "temperature": temperature}
        chosen["labels"][label] = found
    for split, evaluated in splits.items():
        clusters = Clusters(tables[split].clusters, evaluated["bootstrap"]["resamples"] > 0)
        points: dict[str, OperatingPoint] = {FIXED: {"rule": "fixed", "chosen_on": None, "labels": {}}}
        points |= {n: {"rule": rule, "chosen_on": chosen["chosen_on"], "labels": {}} for n, rule in rules.names.items()}
        calibrated: dict[str, LabelCalibration] = {}
        for label in labels:
            truth, probability, rows = tables[split].scored(label, scoring)
            fixed: Choice = {"value": float(FIXED), "reason": None}
            of = {FIXED: fixed, **chosen["labels"][label]["thresholds"]}
            temperature = chosen["labels"][label]["temperature"]
            ways = {"as they are": probability}
            if temperature["value"] is not None:
                ways["after"] = scaled(tables[split].log_odds(label)[rows], temperature["value"])
            for name, t in of.items():
                points[name]["labels"][label] = at_threshold(truth, probability, t, rows, clusters)
            scores = {way: calibration(truth, p, rows, clusters) for way, p in ways.items()}
            calibrated[label] = {**scores["as they are"], "temperature": temperature, "after": scores.get("after")}
        evaluated["operating_points"] = points
        evaluated["calibration"] = {"bins": BINS, "chosen_on": chosen["chosen_on"], "labels": calibrated}
    return chosen


def read_chosen(path: Path, step: int | None) -> Chosen:
    """The content of a run's ``operating_points.json``; empty where there is none for the checkpoint of that step.

    Args:
        step: None: of a combination, which has no checkpoint.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return {}
    anew = f". Write it anew by:\n  {command_line('evaluate', [word('run', path.parent)])}"
    with refusing(f"{path}: cannot be read", OSError, ValueError, AttributeError, end=anew):
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return content if content.get("checkpoint", {}).get("step") == step else {}


def temperatures_of(chosen: Chosen, labels: Iterable[str]) -> dict[str, float]:
    """The temperature of each label, from the content of ``operating_points.json``.

    Raises:
        UserError: there is none, with the reason.
    """
    if not chosen:
        raise UserError(f"calibrate: no temperature is known: {NOT_THERE}")
    found, missing = _values({label: of["temperature"] for label, of in chosen["labels"].items()}, labels)
    if missing:
        raise UserError(f"calibrate: no temperature for {listed(missing)}. Leave calibrate out.")
    return found


def thresholds_of(chosen: Chosen, labels: Iterable[str], name: str) -> dict[str, float]:
    """The threshold of each label that a rule chose, from the content of ``operating_points.json``.

    Args:
        name: of the rule, as ``youden``.

    Raises:
        UserError: there is none, with the reason.
    """
    if not chosen:
        raise UserError(f"threshold={name}: no threshold is known: {NOT_THERE}")
    if name not in chosen["rules"]:
        there = list(chosen["rules"])
        raise UserError(
            f"threshold={name}: it is a probability, 0 to 1, or a rule that this run chose by.{did_you_mean(name, there)} "
            f"There are: {listed(there)}."
        )
    thresholds = {label: of["thresholds"][name] for label, of in chosen["labels"].items() if name in of["thresholds"]}
    found, missing = _values(thresholds, labels)
    if missing:
        raise UserError(f"threshold={name}: there is none for {listed(missing)}. Give a probability, or leave threshold out.")
    return found


def _values(chosen: Mapping[str, Choice], labels: Iterable[str]) -> tuple[dict[str, float], list[str]]:
    """The value of each label, and labels without one, each with the reason."""
    none: Choice = {"value": None, "reason": "not in the file"}
    of = {label: chosen.get(label, none) for label in labels}
    found = {label: choice["value"] for label, choice in of.items() if choice["value"] is not None}
    return found, [f"{label} ({choice['reason']})" for label, choice in of.items() if label not in found]


def decided(
    table: pd.DataFrame, threshold: float | Mapping[str, float] | None, temperatures: Mapping[str, float]
) -> pd.DataFrame:  # fmt: skip
    """A prediction table with its probabilities calibrated, its logits as they were, and a column ``call_<label>``, 1 from the
    threshold on and else 0.

    Args:
        threshold: a probability, as the table has it in the end; or by label, of probabilities as the model gives them;
            None: no calls.
        temperatures: by label; none: nothing is calibrated.
    """
    labels = PredictionTable(table).predicted
    out = table.assign(**{f"p_{la}": scaled(PredictionTable(table).log_odds(la), t) for la, t in temperatures.items()})
    if threshold is None:
        return out
    if isinstance(threshold, Mapping):
        return out.assign(**{f"call_{la}": (table[f"p_{la}"] >= threshold[la]).astype(int) for la in labels})
    return out.assign(**{f"call_{la}": (out[f"p_{la}"] >= threshold).astype(int) for la in labels})


def cut(threshold: float, temperature: float | None) -> float:
    """A threshold of probabilities as a model gives them, as one of calibrated ones; None: they are not.

    >>> cut(0.5, 2.0), round(cut(0.2, 2.0), 4)  # a temperature leaves a half where it is
    (0.5, 0.3333)
    """
    if temperature is None or not 0 < threshold < 1:
        return threshold
    return float(scaled(np.log(threshold) - np.log1p(-threshold), temperature))


def threshold_text(threshold: float | None) -> str:
    """A threshold to read, which is neither 0 nor 1 where it is only near them."""
    if threshold is None:
        return "-"
    near_1 = 0.9995 < threshold < 1
    return f"1 - {1 - threshold:.2g}" if near_1 else f"{threshold:.4f}" if threshold >= 0.0005 else f"{threshold:.2g}"
