"""Dashboards that can never stop a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)
os.environ.setdefault("WANDB_SILENT", "true")

from pytorch_lightning.loggers import WandbLogger  # noqa: E402
from pytorch_lightning.loggers.logger import DummyLogger  # noqa: E402


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

    def finalize(self, status: str) -> None:
        """Upload or close what Lightning closes."""
        self._safely(lambda: super(Wandb, self).finalize(status))

    def finish(self) -> None:
        """End the W&B run, so that the next job of a sweep gets its own."""
        run, self._experiment = self._experiment, None
        if run is not None:
            self._broken = False  # even where W&B failed, the next job must not go on in this run
            self._safely(run.finish)
