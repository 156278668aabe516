"""Checkpoint files: written as a whole or not at all, within an epoch by a thread while training goes on."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from xraylab.errors import UserError
from xraylab.run import Run, refuse_foreign
from xraylab.system.files import write_bytes

LATER = {"later": True}  # as storage_options of Trainer.save_checkpoint: written while training goes on


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's plugin for checkpoint files: each is written as a whole or not at all.

    Lightning's own goes by way of a file in the system's folder for temporary files, which may be on another disk.

    What is written later is copied first, so that it is the state of its step; there is one such copy at most.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint, or begin to.

        Raises:
            CannotWrite: this one, or the one before it, cannot be written.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        self.wait()
        self._writing = self._thread.submit(write_bytes, Path(path), content.getbuffer())
        if storage_options != LATER:
            self.wait()

    def wait(self) -> None:
        """Wait until what was begun is written.

        Raises:
            CannotWrite: it cannot be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, after what was begun is written."""
        self.wait()
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Wait for what was begun, at the end of a fit, however it ends."""
        self.wait()


FORMAT = 2  # of the "xraylab" entry of a checkpoint


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint file that a path names: itself, or a run's best, else its last.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    refuse_foreign(path)
    if path.is_file():
        return path
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    raise UserError(f"{path}: neither a checkpoint file nor a run directory with checkpoints/best.ckpt or last.ckpt.")


def checkpoint_named(run: Path, name: str) -> Path:
    """A run's ``best`` or ``last`` checkpoint, or the file that ``name`` is; ``run`` may be a checkpoint itself.

    Raises:
        UserError: there is none.
    """
    if name == "best":
        return checkpoint_of(run)
    if name == "last" and run.is_file():
        raise UserError(f"checkpoint=last: {run} is a checkpoint itself. Leave it out, or give the run's directory.")
    return checkpoint_of(Run(run).checkpoint("last") if name == "last" else Path(name))


def read_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """A checkpoint, read without executing anything in it.

    Raises:
        UserError: it is not a whole checkpoint of xraylab.
    """
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        words = str(error).splitlines() or ["it ends too early"]
        raise UserError(f"{path}: not a whole checkpoint: {words[0].split('. ')[0][:200]}.") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("xraylab", {}).get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this version of xraylab (format {FORMAT}).")
    return checkpoint


def require_splits(digest: str, checkpoint: Path, called: str = "") -> None:
    """Refuse a checkpoint of a model that was trained on other studies, or other splits.

    Args:
        digest: of the studies and splits now, see :meth:`xraylab.data.study_table.StudyTable.split_digest`.
        called: the checkpoint, in words.

    Raises:
        UserError: studies came, went, or are in another split: some of those scored could have been trained on.
    """
    if read_checkpoint(checkpoint)["xraylab"]["splits"] != digest:
        raise UserError(
            f"{called or checkpoint}: the data has other studies, or other splits, than when it was trained, so what is scored "
            "could have been trained on. Give the data and the splits of then, with the same files missing (split_version=1 "
            "or 2 splits as runs of before do), or train anew."
        )
