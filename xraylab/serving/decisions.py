"""What a run makes of a logit: the calibrated probability, the call at its operating points, and what such calls are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xraylab.errors import UserError, did_you_mean, listed
from xraylab.evaluation.calibration import scaled
from xraylab.evaluation.intervals import Clusters
from xraylab.evaluation.operating_points import FIXED, VALID, at_threshold
from xraylab.evaluation.predictions import PredictionTable, Scoring
from xraylab.evaluation.probabilities import logit, sigmoid
from xraylab.evaluation.result import Decision, SplitResult, last_split
from xraylab.inference.predictor import chosen_of
from xraylab.run import Run, home_of

SHOWN = ("sensitivity", "specificity", "ppv", "npv")


class Decisions:
    """The operating points of a run, as one study meets them.

    Args:
        run: its directory, or a checkpoint, of which nothing may be known.
        labels: its findings.
        point: the name of the operating point that calls are made at; ``0.5`` where the run has none.

    Attributes:
        split: whose results are shown, ``test`` where there is one; None: none are known.

    Raises:
        UserError: the run has operating points, and none of that name.
    """

    def __init__(self, run: Path, labels: Sequence[str], point: str) -> None:
        self.labels, self.chosen = list(labels), chosen_of(run)
        home = home_of(run)
        self.split: str | None = None
        self._result: SplitResult | None = None
        evaluation = Run(home).evaluation if home is not None and Run(home).evaluation_file.is_file() else None
        if evaluation is not None:
            self.split, self._result = last_split(evaluation)
        self.rules = {FIXED: "fixed", **(self.chosen["rules"] if self.chosen else {})}
        if self.chosen and point not in self.rules:
            raise UserError(f"point={point}: it is one of {listed(self.rules)}.{did_you_mean(point, self.rules)}")
        self.point = point if self.chosen else FIXED
        scored = (evaluation or {}).get("scored", {})
        self._scoring = Scoring(**{key: scored[key] for key in ("blank", "uncertain") if key in scored})
        valid = None if home is None else Run(home).predictions(VALID)
        self._valid = PredictionTable.read(valid) if valid is not None and valid.is_file() else None

    def temperature(self, label: str) -> float | None:
        """By which a label's logits are divided; None: not known."""
        return self.chosen["labels"][label]["temperature"]["value"] if label in self.chosen.get("labels", {}) else None

    def of(self, label: str, z: float) -> dict[str, Any]:
        """What a study's logit for a label means.

        Returns:
            ``probability`` (calibrated where ``calibrated``), ``uncalibrated``, ``logit``, ``call`` and ``threshold`` at
            ``operating_point``, and ``points``: the same of every operating point. Thresholds are on the probability's scale.
        """
        p = float(sigmoid(np.array(z)))
        points = {name: self._point(label, name, p) for name in self.rules}
        name = self.point if points[self.point]["threshold"] is not None else FIXED
        return {
            "probability": self.shown(label, p, z), "calibrated": self.temperature(label) is not None, "uncalibrated": p,
            "logit": z, "call": points[name]["call"], "operating_point": name, "threshold": points[name]["threshold"],
            "points": points,
        }  # fmt: skip

    def _point(self, label: str, name: str, p: float) -> dict[str, Any]:
        if name == FIXED:
            threshold: float | None = float(FIXED)
            reason = None
        else:
            choice = self.chosen["labels"][label]["thresholds"][name]
            threshold, reason = choice["value"], choice["reason"]
        worth = self._worth(label, name)
        return {
            "rule": self.rules[name], "threshold": None if threshold is None else self.shown(label, threshold),
            "call": None if threshold is None else p >= threshold, "reason": reason, "split": self.split if worth else None,
            "selected_on": self._result["selected_on"] if worth and self._result else None, **worth,
        }  # fmt: skip

    def _worth(self, label: str, name: str) -> dict[str, Any]:
        """Sensitivity and the like of an operating point in :attr:`split`, each a metric; empty: not known."""
        points = {} if self._result is None else self._result.get("operating_points", {})
        of: Any = points[name]["labels"].get(label) if name in points else None
        return {} if of is None or of["threshold"] is None else {metric: of[metric] for metric in SHOWN}

    def shown(self, label: str, p: float, z: float | None = None) -> float:
        """A probability as the model gives it, on the scale that is shown: calibrated where that is known."""
        t = self.temperature(label)
        if t is None:
            return p
        return float(scaled(np.array(z if z is not None else logit(np.array(min(p, 1.0)))), t))

    def would_have(self, label: str, threshold: float) -> dict[str, Any]:
        """What another threshold would have done on validation.

        Args:
            threshold: 0 to 1, on the scale that is shown.

        Returns:
            ``split``, ``n``, ``confusion`` and every rate as a metric; ``split`` None with a ``reason`` where it is not known.
        """
        if self._valid is None or label not in self._valid.labels:
            return {"split": None, "reason": "the predictions of validation are not with this run"}
        truth, p, rows = self._valid.scored(label, self._scoring)
        if not len(truth):
            return {"split": None, "reason": "no study of validation has this label"}
        t = self.temperature(label)
        shown = p if t is None else scaled(self._valid.log_odds(label)[rows], t)
        found: Decision = at_threshold(truth, shown, {"value": threshold, "reason": None}, rows, Clusters(self._valid.clusters))
        return {"split": VALID, "n": len(truth), **found}
