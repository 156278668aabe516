"""What an objective is measured on, so that jobs are compared by it only where it means the same.

``environment.json`` of a run has ``measured``: ``{"valid": {label: digest}, "test": {...}, "loss": digest}``: of each label, the
studies in which it is scored with what counts as its truth there; of ``valid/loss``, these of all labels, how much each weighs,
and what they are scored by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xraylab.errors import UserError, listed

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from xraylab.data.study_table import StudyTable
    from xraylab.models.losses.base import Loss
    from xraylab.space import Dimension

WEIGHS = "its labels weigh otherwise (classes are balanced otherwise, or it is another loss)"
STUDIES = "it is of other studies or labels"
# keys and groups by which a job is not measured otherwise
UNMEASURED = ("accelerator", "accumulate", "augmentation", "backbone", "batch_size", "bootstrap", "cache", "callbacks", "cases",
              "checkpoint_every", "early_stopping", "gradient_clip", "head", "image", "log_every", "logger", "max_epochs",
              "monitor", "name", "num_workers", "operating", "optimizer", "pool", "precision", "profiler", "readers",
              "save_top_k", "save_train_predictions", "scheduler", "upload")  # fmt: skip


def measured(table: StudyTable, loss: Loss, blank: str, uncertain: str, unit: str) -> dict[str, Any]:
    """What validation and test of a run are about, see the head of this module.

    Args:
        loss: with its balance counted.
        blank, uncertain: what such labels count as, see :func:`xraylab.evaluation.scored_labels`.
        unit: what ``valid/loss`` is by, study or image.
    """

    import torch

    from xraylab.evaluation import scored_labels

    def truth_of(of: StudyTable, rows: np.ndarray) -> np.ndarray:
        truth = scored_labels(of.label_values()[rows], blank, uncertain)
        return np.where((truth == 0) | (truth == 1), truth, -1).astype(np.int8)

    out: dict[str, Any] = {}
    for split in ("valid", "test"):
        rows = np.flatnonzero((table.frame["split"] == split).to_numpy())
        ids, truth = table.frame["id"].to_numpy(str)[rows], truth_of(table, rows)
        known = truth >= 0
        if len(rows):
            out[split] = {la: _digest(ids[known[:, i]], truth[known[:, i], i]) for i, la in enumerate(table.labels)}
    units = table.by_image() if unit == "image" else table
    rows = np.flatnonzero((units.frame["split"] == "valid").to_numpy())
    truth = truth_of(units, rows)
    groups = None if loss.exclusive else torch.from_numpy(units.group_numbers()[rows])
    both = np.broadcast_to(loss.class_weights(groups).numpy(), (*truth.shape, 2))
    weight = np.where(truth < 0, 0, np.where(truth == 1, both[..., 1], both[..., 0])).astype(np.float32)
    kind = "softmax" if loss.exclusive else "sigmoid"
    out["loss"] = _digest(units.frame["id"].to_numpy(str)[rows], truth, weight, f"{unit} {kind} {' '.join(table.labels)}")
    return out


def _digest(ids: np.ndarray, *values: np.ndarray | str) -> str:
    """12 hexadecimal digits of ids (N,) and what is known of each (N,...), in any order of rows."""
    order = np.argsort(ids, kind="stable")
    found = hashlib.sha256("\n".join(ids[order]).encode())
    for value in values:
        found.update(value.encode() if isinstance(value, str) else np.ascontiguousarray(value[order]).tobytes())
    return found.hexdigest()[:12]


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
    path = run / "environment.json"
    return of_objective(json.loads(path.read_text(encoding="utf-8")), objective) if path.is_file() else None


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


def over(
    space: Mapping[str, Dimension], objectives: Sequence[str], compose: Callable[[list[str]], DictConfig], method: str
) -> list[str]:  # fmt: skip
    """Why objectives are not comparable over the keys of a sweep, in sentences without a full stop, before its first job.

    Each value of a key is composed with the first of the others, the ends of an interval likewise.

    Args:
        compose: overrides to a configuration with Hydra's own.

    Raises:
        UserError: there is a reason, and the method is ``tpe``, which would follow it.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from xraylab.assemble import to_be_measured
    from xraylab.config.launch import settled
    from xraylab.space import around

    said = []
    for key, points in around(space).items():
        found = []
        for words in points if key.split(".")[0].lstrip("+") not in UNMEASURED else ():
            try:
                config = compose(words)
                typed = list(config.hydra.overrides.task)
                with open_dict(config):
                    del config["hydra"]
                config = settled(config) if HydraConfig.initialized() else config
                record = {"measured": to_be_measured(config, typed)}
            except UserError:
                continue  # the job says it
            found.append([of_objective(record, objective) for objective in objectives])
        for objective, of in zip(objectives, zip(*found, strict=True), strict=False):
            if other := [x for x in of if x != of[0]]:
                said.append(f"{objective} is not comparable over {key}: {reason(of[0], other[0])}")
                if method == "tpe":
                    raise UserError(
                        f"sweep.method=tpe: {said[-1]}. What is drawn would follow the measure, not the models. Choose by what "
                        f"is measured alike (as sweep.objective=valid/macro/auroc, split_seed=0), or do not vary {key}."
                    )
    return said


def deciding(jobs: Sequence[Mapping[str, str]], groups: Sequence[Any]) -> list[str]:
    """The keys by which jobs differ in what they are measured on: each alone tells it, where one does; else all that vary.

    Args:
        jobs: of each job, key to value.
        groups: of each job, what it is measured on.
    """
    values = {k: [job.get(k) for job in jobs] for k in dict.fromkeys(k for job in jobs for k in job)}
    count = {k: len(set(of)) for k, of in values.items() if len(set(of)) > 1}
    telling = [k for k in count if len(set(zip(values[k], groups, strict=True))) == count[k]]
    fewest = min((count[k] for k in telling), default=0)  # a key that is another one in every job tells everything
    return [k for k in telling if count[k] == fewest] or list(count)
