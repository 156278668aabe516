"""The logger of TensorBoard."""

from __future__ import annotations

from pytorch_lightning.loggers import TensorBoardLogger

from xraylab.training.loggers.base import Unfailing


class TensorBoard(Unfailing, TensorBoardLogger):
    """Lightning's TensorBoard logger, which never stops a run.

    >>> TensorBoard("outputs/mine", name="", version="tensorboard").log_dir
    'outputs/mine/tensorboard'
    """

    called = "TensorBoard"

    def resume_after(self, step: int) -> None:
        """Hide what an earlier session wrote behind optimiser step ``step``, of the checkpoint. Before anything is logged."""
        self._kwargs["purge_step"] = step + 1  # the first that is hidden
