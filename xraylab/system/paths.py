"""Folders: the configuration that ships, the caches, and what archives and systems leave in a folder of data."""

from __future__ import annotations

import os
import re
from pathlib import Path

from xraylab.errors import UserError

ENVIRONMENT = "XRAYLAB_DATA"
#: hidden files and folders, and what archives, desktops and disks leave
LEAVINGS = re.compile(r"\.|(?:__MACOSX|@eaDir|lost\+found|\$RECYCLE\.BIN|System Volume Information)$", re.IGNORECASE)


def conf_dir() -> Path:
    """The folder of shipped YAML files: the packaged copy, else the checkout's."""
    here = Path(__file__).resolve().parents[1]
    packaged = here / "conf"
    return packaged if packaged.is_dir() else here.parent / "conf"


def cache_dir() -> Path:
    """``$XRAYLAB_CACHE``, else the user's cache folder.

    Raises:
        UserError: the user has none, as in a container that knows no such user.
    """
    if base := os.environ.get("XRAYLAB_CACHE"):
        return Path(base).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xraylab"
    except RuntimeError:
        raise UserError(
            f"there is no home folder for the cache: $HOME is not set, and user {os.getuid()} has none. Name a folder for it: "
            "XRAYLAB_CACHE=<folder>"
        ) from None


def tree(path: Path, depth: int = 2, most: int = 8) -> str:
    """The first entries of a folder, indented, two levels deep."""
    if path.is_file():
        return f"  {path.name} (a file of {path.stat().st_size} bytes)"
    lines = [f"  {path.name or path}/"]

    def walk(folder: Path, level: int) -> None:
        try:
            entries = sorted(folder.iterdir(), key=lambda p: (p.is_file(), p.name))
        except OSError as error:
            lines.append("  " * (level + 1) + f"(cannot be listed: {error.strerror})")
            return
        for entry in entries[:most]:
            lines.append("  " * (level + 1) + entry.name + ("/" if entry.is_dir() else ""))
            if entry.is_dir() and level < depth:
                walk(entry, level + 1)
        if len(entries) > most:
            lines.append("  " * (level + 1) + f"... and {len(entries) - most} more")
        if not entries:
            lines.append("  " * (level + 1) + "(empty)")

    walk(path, 1)
    return "\n".join(lines)
