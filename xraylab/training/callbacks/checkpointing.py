"""Checkpoints: the best, the best few, the last, and copies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from xraylab.system.remote import RunUpload


class Best(ModelCheckpoint):
    """Callback that writes ``best.ckpt``. A class each, for Lightning tells the states of two ModelCheckpoints apart by class."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score back, also where the run's directory was moved, which Lightning takes for another run."""
        here = Path(str(self.dirpath))
        paths = {k: str(here / Path(v).name) for k, v in state_dict.items() if k.endswith("_path") and v}
        best = {str(here / Path(k).name): v for k, v in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class Top(Best):
    """Callback that writes the checkpoints of ``save_top_k``."""


class Last(Best):
    """Callback that writes ``last.ckpt``: ``save_last`` leaves an old one after an epoch that is no best (Lightning 2.6)."""


class Upload(Checkpoint):
    """Callback that copies the run elsewhere after every epoch. A Checkpoint, for Lightning calls those last, in their order."""

    def __init__(self, upload: RunUpload) -> None:
        self.upload = upload

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.upload.sync()
