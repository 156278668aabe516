"""The sections of a run's report. Each is one module here with a ``SECTION``; adding a module adds a section."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraylab.evaluation.result import Evaluation


@dataclass(frozen=True)
class Context:
    """What sections are made from.

    Attributes:
        directory: of the run; figures are written into its ``figures``.
        evaluation, environment: the content of its ``evaluation.json`` and ``environment.json``.
        synthetic: whether its data is the synthetic sample.
    """

    directory: Path
    evaluation: Evaluation
    environment: Mapping[str, Any]
    synthetic: bool


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        order: where it stands; the smallest first.
        html: its HTML, which begins with its ``<h2>``, from a context; empty where it has nothing to say.
    """

    order: int
    html: Callable[[Context], str]


def sections() -> list[Section]:
    """Those of all modules here, in their order.

    Raises:
        AttributeError: a module has no ``SECTION``, and would be left out without a word.
    """
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return sorted((m.SECTION for m in modules), key=lambda section: section.order)
