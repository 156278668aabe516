"""Whether an objective means the same over the keys of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from xraylab.config.dataset import resolved
from xraylab.config.launch import normalised
from xraylab.errors import UserError
from xraylab.evaluation.objective import of_objective, reason
from xraylab.sweeps.search_space import Dimension, one_at_a_time

# keys and groups by which a job is not measured otherwise
UNMEASURED = ("accelerator", "accumulate", "augmentation", "backbone", "batch_size", "bootstrap", "cache", "callbacks", "cases",
              "checkpoint_every", "early_stopping", "gradient_clip", "head", "image", "log_every", "logger", "max_epochs",
              "monitor", "name", "num_workers", "operating", "optimizer", "pool", "precision", "profiler", "readers",
              "save_top_k", "save_train_predictions", "scheduler", "upload")  # fmt: skip


def incomparable_over(
    space: Mapping[str, Dimension], objectives: Sequence[str], compose: Callable[[list[str]], DictConfig], method: str
) -> list[str]:
    """Why objectives are not comparable over the keys of a sweep, in sentences without a full stop, before its first job.

    Each value of a key is composed with the first of the others, the ends of an interval likewise.

    Args:
        compose: overrides to a configuration with Hydra's own.

    Raises:
        UserError: there is a reason, and the method is ``tpe``, which would follow it.
    """
    from xraylab.training.experiment import to_be_measured  # torch, which a record of a sweep does not need

    said = []
    for key, points in one_at_a_time(space).items():
        found = []
        for words in points if key.split(".")[0].lstrip("+") not in UNMEASURED else ():
            try:
                record = {"measured": to_be_measured(resolved(*of_job(compose(words))))}
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


def of_job(config: DictConfig) -> tuple[DictConfig, list[str]]:
    """A job's configuration, composed with Hydra's own, without that; and the overrides that it was composed of."""
    typed = list(config.hydra.overrides.task)
    with open_dict(config):
        del config["hydra"]
    return normalised(config) if HydraConfig.initialized() else config, typed


def deciding_keys(jobs: Sequence[Mapping[str, str]], groups: Sequence[Any]) -> list[str]:
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
