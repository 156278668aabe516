"""Which Weights & Biases run belongs to a run's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from xraylab.data.study_table import SYNTHETIC
from xraylab.system.files import read_json

RECORD = "wandb.json"


def read_record(directory: Path) -> dict[str, Any] | None:
    """Which W&B run a run directory is; None where it was not logged, or that cannot be read."""
    return read_json(directory / RECORD)


def group_of(directory: Path) -> str | None:
    """The name of the multirun that a run directory belongs to; None where it belongs to none."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).name
    directory = directory.absolute()
    return directory.parent.name if directory.parent.parent.name == "multirun" else None


def tags_of(data: str, *words: str) -> list[str]:
    """Tags of a W&B run: what is given, and that the data are synthetic where they are."""
    return [*words, *(["synthetic"] if data == SYNTHETIC else [])]
