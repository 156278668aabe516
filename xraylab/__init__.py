"""xraylab: config-driven experiments with classifiers of radiology images.

>>> import xraylab
>>> model = xraylab.load("outputs/mrnet/2026-01-31_12-00-00")  # doctest: +SKIP
>>> model.predict(slices)                                      # doctest: +SKIP
{'acl': 0.87}
>>> xraylab.Run.open("outputs/mrnet/2026-01-31_12-00-00").evaluation["splits"]["test"]["n"]  # doctest: +SKIP
120
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xraylab.training.study_module import StudyModule

__version__ = "0.1.0"
__all__ = [
    "Run",
    "StudyDataModule",
    "StudyModule",
    "__version__",
    "callbacks",
    "data",
    "load",
    "loggers",
    "losses",
    "metrics",
    "models",
]


def __getattr__(name: str) -> Any:
    """What comes with torch or Lightning, imported when it is asked for."""
    if name in ("callbacks", "data", "loggers", "losses", "metrics", "models"):
        return importlib.import_module(f"xraylab.{name}")
    if name == "Run":
        return importlib.import_module("xraylab.run").Run
    if name == "StudyModule":
        return importlib.import_module("xraylab.training.study_module").StudyModule
    if name == "StudyDataModule":
        return importlib.import_module("xraylab.data.datamodule").StudyDataModule
    raise AttributeError(f"module 'xraylab' has no attribute {name!r}")


def load(path: str | Path, device: str = "cpu") -> StudyModule:
    """The trained LightningModule of a run, in evaluation mode.

    Args:
        path: a checkpoint file, or a run directory (its ``checkpoints/best.ckpt``, else ``last.ckpt``). The thresholds and
            temperatures of the run come as ``model.operating`` where they were chosen for this checkpoint.
        device: where its weights go.

    Raises:
        xraylab.errors.UserError: no checkpoint there, or the file is not a whole checkpoint of xraylab.
    """
    from xraylab.training.study_module import load_module

    return load_module(path, device)
