"""The values that a sweep varies, from Hydra's overrides: for a grid, for Optuna and for W&B."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from xraylab.errors import UserError


@dataclass(frozen=True)
class Choice:
    """One of some values, each as Hydra reads it."""

    words: tuple[str, ...]  # whole overrides, as seed=1
    texts: tuple[str, ...]  # the values alone, as 1
    numbers: range | None = None  # the same, where they are whole numbers in equal steps


@dataclass(frozen=True)
class Interval:
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool  # drawn evenly in its logarithm
    whole: bool


Dimension = Choice | Interval


def search_space(overrides: Iterable[Override]) -> dict[str, Dimension]:
    """Key -> what it can be; of a key that is given twice, the later one. A fixed value is a choice of one.

    Raises:
        UserError: an interval without an order, or one that cannot be logarithmic.
    """
    space: dict[str, Dimension] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            text = override.get_value_element_as_str() if override.value() is not None else "null"
            space[key] = Choice((override.input_line or f"{key}={text}",), (text,))
            continue
        value = override.value()
        if isinstance(value, IntervalSweep):
            space[key] = _interval(override, value)
            continue
        texts = tuple(override.sweep_string_iterator())
        if not texts:
            raise UserError(f"{override.input_line}: there is no value in it.")
        numbers = value.range() if isinstance(value, RangeSweep) and not value.shuffle else None
        steps = numbers if isinstance(numbers, range) and numbers.step > 0 else None
        space[key] = Choice(tuple(f"{key}={text}" for text in texts), texts, steps)
    return space


def _interval(override: Override, value: IntervalSweep) -> Interval:
    assert value.start is not None
    assert value.end is not None
    log, whole = "log" in value.tags, "int" in value.tags or isinstance(value.start, int)  # of int(interval(…))
    if wrong := value.tags - {"log", "int"}:
        raise UserError(f"{override.input_line}: the tag {min(wrong)} is not known. There are: int, log.")
    if not value.start < value.end or (log and value.start <= 0):
        raise UserError(
            f"{override.input_line}: it is interval(low, high) with low < high" + ", and low > 0 for log." * log + "." * (not log)
        )
    return Interval(value.start, value.end, log, whole)


def varied(space: Mapping[str, Dimension]) -> dict[str, Dimension]:
    """The part of a space that has more than one value."""
    return {key: d for key, d in space.items() if isinstance(d, Interval) or len(d.texts) > 1}


def grid(space: Mapping[str, Dimension]) -> Iterator[list[str]]:
    """The overrides of every combination, the last key the fastest.

    Raises:
        UserError: an interval has no combinations.
    """
    lists = {key: dimension.words for key, dimension in space.items() if isinstance(dimension, Choice)}
    if intervals := [key for key in space if key not in lists]:
        key = intervals[0]
        raise UserError(
            f"{key}: an interval has no grid. List its values ({key}=a,b,c), or draw them: sweep.method=random or tpe."
        )
    return map(list, itertools.product(*lists.values()))


def words_of(space: Mapping[str, Dimension], params: Mapping[str, Any]) -> list[str]:
    """The overrides of one point: its ``params`` for what varies, and what is fixed."""
    fixed = {key: d.words[0] for key, d in space.items() if isinstance(d, Choice)}
    return [f"{key}={params[key]}" if key in params else fixed[key] for key in space]


def corners(space: Mapping[str, Dimension]) -> list[list[str]]:
    """The overrides of two points that differ in all that varies, to compose them before any is drawn."""
    values = _values(space)
    return [words_of(space, {key: of[end] for key, of in values.items()}) for end in (0, -1)]


def one_at_a_time(space: Mapping[str, Dimension]) -> dict[str, list[list[str]]]:
    """For each key that varies, a point for each value (or end of an interval), as overrides; other keys are at their first."""
    values = _values(space)
    first = {key: of[0] for key, of in values.items()}
    return {key: [words_of(space, {**first, key: value}) for value in of] for key, of in values.items()}


def _values(space: Mapping[str, Dimension]) -> dict[str, Sequence[Any]]:
    """The values of what varies, or the ends of its interval."""
    return {key: d.texts if isinstance(d, Choice) else (d.low, d.high) for key, d in varied(space).items()}


def distributions(space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Optuna's distributions of what varies."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # an optional extra

    out: dict[str, Any] = {}
    for key, d in varied(space).items():
        if isinstance(d, Interval):
            out[key] = IntDistribution(int(d.low), int(d.high), d.log) if d.whole else FloatDistribution(d.low, d.high, d.log)
        elif d.numbers:
            out[key] = IntDistribution(d.numbers[0], d.numbers[-1], step=d.numbers.step)
        else:
            out[key] = CategoricalDistribution(d.texts)
    return out


def wandb_parameters(space: Mapping[str, Dimension]) -> dict[str, Any]:
    """The ``parameters`` of a W&B sweep; its agent writes ``key=value`` with Python's ``str``, which Hydra reads back."""
    out: dict[str, Any] = {}
    for key, d in varied(space).items():
        if isinstance(d, Choice):
            out[key] = {"values": [_number(text) for text in d.texts]}
        elif d.whole and d.log:
            out[key] = {"distribution": "q_log_uniform_values", "min": int(d.low), "max": int(d.high), "q": 1}
        elif d.whole:
            out[key] = {"distribution": "int_uniform", "min": int(d.low), "max": int(d.high)}
        else:
            out[key] = {"distribution": "log_uniform_values" if d.log else "uniform", "min": float(d.low), "max": float(d.high)}
    return out


def _number(text: str) -> str | int | float:
    """A number where Python writes it as Hydra would read it, else the text."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if value == value and "_" not in text:
            return value
    return text
