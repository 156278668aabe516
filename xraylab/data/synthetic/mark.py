"""The mark of synthetic data, and how it is found."""

from __future__ import annotations

from pathlib import Path

from xraylab.errors import UserError

SAMPLE_VERSION = 2  # of what the generators draw; a new one leaves old caches unread
SYNTHETIC_MARK = "SYNTHETIC_SAMPLE.txt"


def is_synthetic(path: Path) -> bool:
    """Whether a dataset's folder, or the folder of its file, carries the mark of the sample generator."""
    return ((path if path.is_dir() else path.parent) / SYNTHETIC_MARK).is_file()


def new_root(root: Path) -> None:
    """Make the folder of a synthetic dataset.

    Raises:
        UserError: something is in the way.
    """
    if root.exists() and (root.is_file() or any(root.iterdir())):
        raise UserError(f"{root} exists and is not empty; name another folder, or delete it first.")
    root.mkdir(parents=True, exist_ok=True)


def mark_synthetic(folder: Path, made_by: str) -> Path:
    """Leave the mark that :func:`is_synthetic` finds; returns the folder."""
    (folder / SYNTHETIC_MARK).write_text(
        f"Synthetic sample data, written by xraylab ({made_by}). Not medical images; results on it mean nothing.\n",
        encoding="utf-8",
    )
    return folder
