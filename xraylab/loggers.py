"""Dashboards that can never stop a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xraylab.evaluation import by_unit
from xraylab.metrics import METRICS

log = logging.getLogger(__name__)
os.environ.setdefault("WANDB_SILENT", "true")

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger  # noqa: E402
from pytorch_lightning.loggers.logger import DummyLogger  # noqa: E402


def send_results(loggers: Sequence[Logger], evaluation: Mapping[str, Any], directory: Path) -> None:
    """Send what a run ends with to its loggers: the metrics by study of the checkpoint that was evaluated, and the curves.

    ``test/<label>/<metric>`` and ``test/macro/<metric>``; those of valid, which also have a history, as ``best/valid/...``;
    pictures as ``test/roc``, ``test/pr`` and, by image, ``test/roc_images``.

    Args:
        evaluation: the content of ``evaluation.json``.
        directory: of the run, with ``figures``.
    """
    metrics = {
        f"{'best/' * (split == 'valid')}{split}/{name}/{metric}": values[metric]["value"]
        for split, result in by_unit(evaluation)
        for name, values in {**result["labels"], "macro": result["macro"]}.items()
        for metric in METRICS
        if result["unit"] == "study" and values[metric]["value"] is not None
    }
    step = int(evaluation["checkpoint"]["step"])
    pictures = {path.stem.replace("_", "/", 1): path for path in sorted((directory / "figures").glob("*.png"))}
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.summarise(metrics)
        else:
            logger.log_metrics(metrics, step)
        for key, path in pictures.items():
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(key, _pixels(path), step, dataformats="HWC")
            elif hasattr(logger, "log_image"):
                logger.log_image(key, [str(path)])


def finish(loggers: Sequence[Logger]) -> None:
    """Close what Lightning leaves open after its last ``finalize``."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.finalize("finished")
        elif hasattr(logger, "finish"):
            logger.finish()


def _pixels(path: Path) -> Any:
    """uint8 (H,W,3)."""
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).round().astype("uint8")


class Wandb(WandbLogger):
    """Lightning's Weights & Biases logger; on its first failure it is turned off with one warning.

    Args:
        offline: record on disk, for a later ``wandb sync``.
        options: of ``WandbLogger``.
    """

    def __init__(self, offline: bool = True, **options: Any) -> None:
        if offline:
            os.environ["WANDB_DATA_DIR"] = str(options.get("save_dir", "."))  # else it stages under the home
        super().__init__(offline=offline, **options)
        self._broken = False

    @property
    def experiment(self) -> Any:
        """The W&B run, or a stand-in that takes every call once W&B has failed."""
        found: list[Any] = []
        self._safely(lambda: found.append(super(Wandb, self).experiment))
        return found[0] if found else DummyLogger().experiment

    def _safely(self, call: Callable[[], Any]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception as error:  # whatever a dashboard raises, training goes on
            self._broken = True
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("W&B is off for the rest of this run: %s. Training goes on; history.csv is complete.", reason)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As in Lightning."""
        self._safely(lambda: super(Wandb, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        """As in Lightning."""
        self._safely(lambda: super(Wandb, self).log_hyperparams(params))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """As in Lightning."""
        self._safely(lambda: super(Wandb, self).after_save_checkpoint(checkpoint_callback))

    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        """As in Lightning."""
        self._safely(lambda: super(Wandb, self).log_image(key, images, step, **options))

    def summarise(self, metrics: Mapping[str, float]) -> None:
        """Set the numbers that stand for the whole run."""
        self._safely(lambda: self.experiment.summary.update(dict(metrics)))

    def finalize(self, status: str) -> None:
        """Upload or close what Lightning closes."""
        self._safely(lambda: super(Wandb, self).finalize(status))

    def finish(self) -> None:
        """End the W&B run, so that the next job of a sweep gets its own."""
        run, self._experiment = self._experiment, None
        if run is not None:
            self._broken = False  # even where W&B failed, the next job must not go on in this run
            self._safely(run.finish)
