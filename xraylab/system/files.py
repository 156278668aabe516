"""Writing of files as a whole or not at all, folders for results, and locks."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xraylab.errors import UserError, refusing

log = logging.getLogger(__name__)
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR)


@contextmanager
def locked(path: Path, what: str | None) -> Iterator[None]:
    """Hold a lock that ends with its process; its file goes when the block ends.

    Args:
        what: another process does there, for the log, as ``packs MURA``; None: do not wait.

    Raises:
        BlockingIOError: another process holds it and ``what`` is None.
    """
    while True:
        with path.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if what is None:
                    raise
                log.info("waiting for another process that %s", what)
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = path.stat().st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                current = False
            if not current:  # its last holder deleted the file that this waited for
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


class CannotWrite(UserError):
    """Error of a file of the run that cannot be written; the one before it is untouched."""


def new_folder(path: str | Path, key: str = "output") -> Path:
    """Make an empty folder for results.

    Raises:
        UserError: there is a file, or a folder that holds something; or it cannot be made.
    """
    folder = Path(path).expanduser()
    with refusing(f"{key}={path}: cannot create the folder", OSError, end=". Name another."):
        folder.mkdir(parents=True, exist_ok=True)
        full = any(folder.iterdir())
    if full:
        raise UserError(f"{key}={path}: the folder is not empty. Name a new one.")
    return folder


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` when the block ends well, and vanishes when not."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """As :func:`replaced`, of a file of a run.

    Raises:
        CannotWrite: the disk is full, or nothing may be written there.
    """
    try:
        with replaced(path) as partial:
            yield partial
    except OSError as error:
        if error.errno not in NO_PLACE or (error.filename and Path(error.filename).parent != path.parent):
            raise
        kept = " What was there before is whole." if path.exists() else ""
        raise CannotWrite(f"cannot write {path}: {error.strerror}.{kept}") from error


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file as a whole or not at all, and to the disk itself: it outlives a loss of power."""
    with beside(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    with beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file of JSON holds; None where it is not there, or holds no dictionary."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
