"""The sweeper, where Hydra looks for plugins; it takes them from nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class XraylabSweeper(Sweeper):
    """Hands a sweep to :class:`xraylab.sweeps.sweeper.JobSweeper`, whose arguments it has.

    Hydra imports this file whenever it starts, also for what is no sweep, and makes the sweeper only for one. So that is where
    the rest is imported.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None) -> None:
        from xraylab.sweeps.sweeper import JobSweeper

        self.sweeper = JobSweeper(max_batch_size, params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :meth:`xraylab.sweeps.sweeper.JobSweeper.setup`."""
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """See :meth:`xraylab.sweeps.sweeper.JobSweeper.sweep`."""
        self.sweeper.sweep(arguments)
