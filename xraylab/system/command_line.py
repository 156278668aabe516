"""Words of a command line, ``key=value``, read and written so that a shell and Hydra's grammar give back what was meant."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xraylab.errors import UserError, listed

# Hydra is imported where it is needed: a checkpoint is loaded without it

OF_FLAGS = ("--cfg", "-c", "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")
#: a text of ``columns`` with columns in braces, as ``images/{ImageId}.png``: Hydra takes a bare brace for a mapping's beginning
BRACES = re.compile(r"^(columns\.\w+)=([^'\"\[]*\{[^{}:,'\"]+(?::(?:name|stem|-?\d+:?))?\}[^'\"]*)$")
PLAIN = re.compile(r"[A-Za-z_./-][A-Za-z0-9_./:@%+-]*")  # of these, what Hydra takes for no text is found by asking it


def word(key: str, value: Any) -> str:
    """``key=value`` as Hydra reads it back: a text exactly, also where it looks like a number, null or an interpolation.

    Args:
        value: a text, a path, a number, a truth value, None, or a list or mapping of such.

    Raises:
        UserError: a text that no line of a terminal can hold.
    """
    return f"{key}={_element(value)}"


def shown(key: str, value: Any) -> str:
    """:func:`word`, quoted for a shell as well: to be typed as it is printed."""
    return shlex.quote(word(key, value))


def command_line(command: str, words: Sequence[str], launcher: str = "python") -> str:
    """``python -m xraylab.<command> <words>``, to be typed again.

    Args:
        words: as :func:`word` makes them, or as they were typed.
    """
    return f"{launcher} -m xraylab.{command} {shlex.join(words)}".strip()


def as_typed(value: Any) -> str:
    """A value in messages, as it would be typed: null, not None."""
    if isinstance(value, str | dict) or not all(leaf is None or isinstance(leaf, bool | int | float) for leaf in _leaves(value)):
        return str(value)
    return _element(value)


def alone(words: Iterable[str]) -> list[str]:
    """The words that run one job of a sweep alone, of those that the job had."""
    kept = [w for w in words if not w.startswith(("sweep.", "fail_fast=", "hydra.", "hydra/"))]
    return [*kept, *["hydra.mode=RUN"] * any(w.startswith("sweep=") for w in kept)]


def flags(hydra: Any = None) -> list[str]:
    """The ``--config-dir`` of the command line, for a command that is to be composed as this one was."""
    from hydra.core.hydra_config import HydraConfig

    if hydra is None and HydraConfig.initialized():
        hydra = HydraConfig.get()
    sources = [] if hydra is None else hydra.runtime.config_sources
    return [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]


def value_of(typed: str) -> Any:
    """The value of ``key=value``, as Hydra reads it.

    Raises:
        HydraException: it cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(typed).value()


def require_recordable(path: str | Path) -> None:
    """Refuse a place that no command, record or page could name again.

    Raises:
        UserError: it has a line break or ``${``, or bytes that are no text.
    """
    if _unwritable(str(path)) or "${" in str(path):
        raise UserError(
            f"{str(path)!r}: records and commands cannot hold a name with a line break, '${{' or bytes that are no "
            "text. Rename the folder, or name another."
        )


def _unwritable(text: str) -> bool:
    return any(c in "\r\n\x00\x85\u2028\u2029" or "\ud800" <= c <= "\udfff" for c in text)


def checked(words: Sequence[str], groups: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """The words of a command line, ``~`` at the beginning of a path written out.

    Args:
        groups: of keys that stand for files, their choices.

    Raises:
        UserError: one that Hydra cannot read, or that says None for null, or null for a choice.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    out: list[str] = []
    for before, typed in zip(["", *words], words, strict=False):
        if typed.startswith("-") or before in OF_FLAGS or re.match(r"~+\w[^=]*$", typed):
            out.append(typed)
            continue
        key, equals, text = typed.partition("=")
        if not equals:
            raise UserError(
                f"{typed}: it is neither key=value nor a flag. A value that holds spaces is quoted, once for Hydra and once "
                "for the shell: " + shown("key", "a b")
            )
        out.append(BRACES.sub(r"\1='\2'", f"{key}={_with_home(text)}"))
        try:
            value = OverridesParser.create().parse_override(out[-1])._value
        except HydraException as error:
            raise UserError(_unreadable(typed, error)) from None
        if choices := (groups or {}).get(key.lstrip("+")):
            if value is None or isinstance(value, bool | int | float):
                raise UserError(f"{typed}: it is one of {listed(choices, 40)}.")
        elif any(type(v) is str and v == "None" for v in _leaves(value)):
            raise UserError(f"{typed}: None is Python's; what is not there is written null here, as {key}=null.")
    return out


def as_text(typed: str) -> str:
    """``key=value``, quoted so that the value, or each element of a list, is taken letter by letter."""
    key, _, text = typed.partition("=")
    return shown(key, text[1:-1].split(",") if text[:1] == "[" and text[-1:] == "]" else text)


def _unreadable(typed: str, error: Exception) -> str:
    from hydra.errors import HydraException

    why = str(error).splitlines()[0].rstrip(".")
    why = re.sub(r"^Lexer\w+: .*", "it has a character that its grammar does not know", why)
    message = f"{typed}: Hydra cannot read it as it is: {why}."
    try:
        again = as_text(typed)
        value_of(shlex.split(again)[0])
    except (HydraException, UserError):  # it is the key
        return message
    return f"{message} Where it is a text, as a path, quote it once for Hydra and once for the shell:\n  {again}"


def _leaves(value: Any) -> Iterator[Any]:
    from hydra.core.override_parser.types import ChoiceSweep

    if isinstance(value, ChoiceSweep):
        value = value.list
    if isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _with_home(text: str) -> str:
    """A value in Hydra's grammar, ``~/…`` and ``~user/…`` as the paths that they are, alone, quoted, and in lists."""
    if not re.search(r"(?:^|[\[,:'\"])~", text):
        return text

    def whole(found: re.Match[str]) -> str:
        return _element(os.path.expanduser(found[0]))

    text = re.sub(r"(?<![^\[,])~[\w.-]*(?:/[^,\[\]{}()'\"=#]*)?(?=$|[,\]])", whole, text)
    quoted = r"(?<![^\[,])(['\"])~(?:\\.|(?!\1).)*\1"
    return re.sub(quoted, lambda found: _element(os.path.expanduser(value_of(f"key={found[0]}"))), text)


def _element(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_element(part)}' for key, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_element, value))}]"
    from hydra.core.override_parser.types import Quote, QuotedString

    text = str(value)
    if _unwritable(text) or text == "???":
        raise UserError(f"{text!r}: a name that cannot be typed in a command: it has a line break, or is no text. Rename it.")
    if PLAIN.fullmatch(text):
        read = value_of(f"key={text}")
        if type(read) is str and read == text:
            return text
    # OmegaConf would resolve ${…}; of backslashes before it, each counts
    text = re.sub(r"(\\*)\$\{", lambda found: "\\" * (2 * len(found[1]) + 1) + "${", text)
    return QuotedString(text, Quote.double).with_quotes()
