"""Hashes in the place of ids: who has the secret finds a study again, and who has only the results does not."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from pathlib import Path

import pandas as pd

from xraylab.data.study_table import StudyTable
from xraylab.errors import UserError, refusing

LEAST = 16  # bytes of a secret
DIGITS = 16  # hexadecimal, of a hash: of a million ids two are alike once in 30 million tables


def pseudonym(secret: bytes, name: str, kind: str = "id") -> str:
    """The hash of a name: HMAC-SHA256 (RFC 2104), cut to 16 hexadecimal digits.

    Args:
        kind: ``id``, ``patient`` or ``image``, whose hashes differ, so that of a study called as its patient nothing is told.

    >>> pseudonym(b"0123456789abcdef", "study 1") == pseudonym(b"0123456789abcdef", "study 1")
    True
    >>> pseudonym(b"0123456789abcdef", "study 1", "patient") == pseudonym(b"0123456789abcdef", "study 1")
    False
    """
    return hmac.new(secret, f"{kind}:{name}".encode(), hashlib.sha256).hexdigest()[:DIGITS]


def read_secret(path: str) -> bytes:
    """The secret that a file holds.

    Raises:
        UserError: it cannot be read, or is too short.
    """
    make = f"Make one: head -c 32 /dev/urandom > {path}"
    with refusing(f"hash_ids={path}: cannot be read", OSError, end=f". {make}"):
        secret = Path(path).expanduser().read_bytes()
    if len(secret.strip()) < LEAST:
        raise UserError(f"hash_ids={path}: it holds {len(secret.strip())} bytes, and {LEAST} are needed. {make}")
    return secret


def pseudonymised(table: StudyTable, path: str) -> StudyTable:
    """The table with hashes in the place of ids, patients and what results call images, and of the names of what was left out.

    Args:
        path: of the file with the secret.

    Raises:
        UserError: see :func:`read_secret`.
    """
    secret = read_secret(path)
    frame = table.frame.assign(
        id=[pseudonym(secret, str(name)) for name in table.frame["id"]],
        patient=[pseudonym(secret, str(name), "patient") if name else "" for name in table.frame["patient"]],
    )
    names = [tuple(pseudonym(secret, image, "image") for image in images) for images in table.frame["images"]]
    frame["called"] = pd.Series(names, index=frame.index, dtype=object)
    problems = {kind: [pseudonym(secret, name) for name in names] for kind, names in table.problems.items()}
    return replace(table, frame=frame, problems=problems)
