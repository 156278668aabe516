"""The mark of synthetic data, and how it is found."""

from __future__ import annotations

from pathlib import Path

SAMPLE_VERSION = 2  # of what the generators draw; a new one leaves old caches unread
SYNTHETIC_MARK = "SYNTHETIC_SAMPLE.txt"


def is_synthetic(path: Path) -> bool:
    """Whether a dataset's folder, or the folder of its file, carries the mark of the sample generator."""
    return ((path if path.is_dir() else path.parent) / SYNTHETIC_MARK).is_file()


def mark_synthetic(folder: Path, made_by: str) -> None:
    """Leave the mark that :func:`is_synthetic` finds."""
    (folder / SYNTHETIC_MARK).write_text(
        f"Synthetic sample data, written by xraylab ({made_by}). Not medical images; results on it mean nothing.\n",
        encoding="utf-8",
    )
