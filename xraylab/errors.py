"""Errors that are messages to the user, and their exit codes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

EXIT_USER, EXIT_RESUMABLE = 2, 75


class UserError(Exception):
    """The user's mistake: the message says what was given, where, and what to do next. Exit code 2."""


class Stopped(Exception):
    """The job was stopped, lost nothing and can be resumed as the message says. Exit code 75."""


class Pruned(Exception):
    """A job of a sweep that was given up, as the message says; the sweep goes on."""


class Lost(Exception):
    """Another process of the run is gone, and nothing can be resumed. Exit code 1."""


@contextmanager
def refusing(words: str, *kinds: type[Exception], end: str = ".") -> Iterator[None]:
    """Context in which errors of some kinds become the user's: ``<words>: <what the system or a library says><end>``.

    Raises:
        UserError: such an error; one that is a message already stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        why = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise UserError(f"{words}: {why.splitlines()[0]}{end}") from error


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence that starts with a space and names the nearest choices, or an empty string."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    last = word.rsplit(".", 1)[-1]
    near += [c for c in choices if c.rsplit(".", 1)[-1] == last and c not in near][: 3 - len(near)]
    if not near:
        near = difflib.get_close_matches(word, [c for c in choices if "." not in c], n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def require_each_once(names: Sequence[str], known: Sequence[str], words: str) -> None:
    """Refuse a list of names that is empty, or has one that is not known, or one twice.

    Args:
        words: what was given, and what it is.

    Raises:
        UserError: it is such a list.
    """
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise UserError(words + (did_you_mean(str(unknown[0]), known) if unknown else ""))


def listed(items: Iterable[object], most: int = 10) -> str:
    """The first items, comma-separated, and how many more there are."""
    words = [str(i) for i in items]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def printable(name: str) -> str:
    """A file's name with what is not UTF-8 in it as ``\\xf6``; the name itself where nothing is."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
