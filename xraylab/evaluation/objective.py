"""What an objective is measured on, so that jobs are compared by it only where it means the same.

``environment.json`` of a run has ``measured``: ``{"valid": {label: digest}, "test": {...}, "loss": digest}``: of each label, the
studies in which it is scored with what counts as its truth there; of ``valid/loss``, these of all labels, how much each weighs,
and what they are scored by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xraylab.config.settings import Sweep
from xraylab.errors import UserError, did_you_mean, listed
from xraylab.evaluation.metrics import METRICS
from xraylab.run import Run

WEIGHS = "its labels weigh otherwise (classes are balanced otherwise, or it is another loss)"
STUDIES = "it is of other studies or labels"


def of_objective(record: Mapping[str, Any], objective: str) -> str | None:
    """What an objective of a run is measured on, from its ``environment.json``; None: that is not recorded.

    Of ``valid/loss`` that of its studies and labels, a slash, and its own.
    """
    of = record.get("measured")
    if of is None:
        return None
    split, _, rest = objective.partition("/")
    labels, label = of.get(split, {}), rest.rpartition("/")[0]
    if label in labels:
        return str(labels[label])
    macro = hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:12]
    return f"{macro}/{of['loss']}" if rest == "loss" else macro


def of_run(run: Path, objective: str) -> str | None:
    """The same of a run directory."""
    return of_objective(Run(run).environment, objective)


def said_of(run: Path) -> str | None:
    """Why a job of a sweep cannot be compared with others so far, by the sweep's objective; None where it can, or is in none."""
    path = run.parent / "sweep.json"
    if not path.is_file():
        return None
    for objective in json.loads(path.read_text(encoding="utf-8"))["objectives"]:
        mine = of_run(run, objective)
        found = {p.parent.name: of_run(p.parent, objective) for p in sorted(run.parent.glob("[0-9]*/environment.json"))}
        if other := [name for name, of in found.items() if of != mine]:
            return f"{objective} is not comparable with that of jobs {listed(other)}: {reason(mine, found[other[0]])}"
    return None


def require_alike(runs: Sequence[Path], objective: str) -> None:
    """Refuse to choose among runs by an objective that is not measured alike in all.

    Raises:
        UserError: it is not.
    """
    found = {run.name: of_run(run, objective) for run in runs}
    first = next(iter(found.values()), None)
    if other := [name for name, of in found.items() if of != first]:
        names = f"{next(iter(found))} and {other[0]}"
        raise UserError(f"{objective} of {names} is not comparable: {reason(first, found[other[0]])}")


def reason(one: str | None, other: str | None) -> str:
    """Why two of :func:`of_objective` cannot be compared, in words."""
    if one is None or other is None:
        return "what it was measured on was not recorded in a run of before"
    return WEIGHS if one.partition("/")[0] == other.partition("/")[0] else STUDIES


def objectives_of(sweep: Sweep, monitor: str) -> list[str]:
    """What chooses the best job.

    Raises:
        UserError: there is no such metric, or it is of test and that was not allowed, or it cannot prune.
    """
    given = [sweep.objective] if isinstance(sweep.objective, str) else sweep.objective or [monitor]
    key = "sweep.objective" if sweep.objective else "monitor"
    for objective in given:
        split, _, rest = objective.partition("/")
        label, _, metric = rest.rpartition("/")
        if objective != "valid/loss" and not (split in ("valid", "test") and label and metric in METRICS):
            known = ["valid/loss", *(f"valid/macro/{m}" for m in METRICS)]
            raise UserError(
                f"{key}={objective}: there is no such metric.{did_you_mean(objective, known)} It is "
                f"<split>/<label or macro>/<metric>, and metrics are {', '.join(METRICS)}; or valid/loss."
            )
        if split == "test" and not sweep.objective_on_test:
            raise UserError(
                f"{key}={objective}: a job that is chosen on test is not judged by it any more. "
                f"Choose on valid (valid/{rest}), or say sweep.objective_on_test=true."
            )
    if len(set(given)) < len(given):
        raise UserError(f"sweep.objective={given}: one is there twice.")
    if sweep.prune and (len(given) > 1 or not given[0].startswith("valid/")):
        raise UserError(f"sweep.prune: jobs are given up by one objective of valid, not by {' and '.join(given)}.")
    return given
