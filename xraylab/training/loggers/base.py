"""Loggers whose faults do not end a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)


class Unfailing(Logger):
    """Mixin for loggers of Lightning: the first failure turns the logger off, with one warning. The first of a class's bases.

    >>> class Dashboard(Unfailing, DummyLogger):
    ...     called = "the dashboard"
    >>> Dashboard().safely(lambda: 1 / 0)  # warns; training goes on
    """

    called = "the logger"
    _broken = _warned = False

    @property
    def experiment(self) -> Any:
        """What the logger writes to, or a stand-in that takes every call once it has failed."""
        found: list[Any] = []
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.safely(lambda: found.append(self._opened()))
        return found[0] if found else DummyLogger().experiment

    def _opened(self) -> Any:
        return super().experiment  # type: ignore[misc]

    def safely(self, call: Callable[[], Any]) -> None:
        """Do something; where it fails, warn and do nothing from then on."""
        if self._broken:
            return
        try:
            call()
        except Exception as error:  # whatever a dashboard raises, training goes on
            self._broken = True
            if not self._warned:  # by what was called inside, or before the end
                self._warned = True
                reason = f"{self.called} is off for the rest of this run: {in_a_line(error)}"
                log.warning("%s. Training goes on; history.csv is complete.", reason)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As in Lightning."""
        self.safely(lambda: super(Unfailing, self).log_metrics(dict(metrics), step))  # type: ignore[safe-super]

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """As in Lightning."""
        self.safely(lambda: super(Unfailing, self).log_hyperparams(params, *args, **kwargs))  # type: ignore[safe-super]

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """As in Lightning."""
        self.safely(lambda: super(Unfailing, self).after_save_checkpoint(checkpoint_callback))

    def save(self) -> None:
        """As in Lightning."""
        self.safely(lambda: super(Unfailing, self).save())

    def finalize(self, status: str) -> None:
        """As in Lightning."""
        self.safely(lambda: super(Unfailing, self).finalize(status))


def in_a_line(error: BaseException) -> str:
    error = error.__cause__ or error  # of what Lightning's TensorBoard logger makes of it
    return " ".join((str(error) or type(error).__name__).split())[:300].rstrip(".")
