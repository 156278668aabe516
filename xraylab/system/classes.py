"""Names of classes that last: configurations and checkpoints hold them, wherever the code of a class lies."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

#: faces that classes are named by, and the packages that they show
FACES = {
    "callbacks": "xraylab.training.callbacks",
    "data": "xraylab.data",
    "loggers": "xraylab.training.loggers",
    "losses": "xraylab.models.losses",
    "models": "xraylab.models",
}
#: modules that classes lay in when runs of before were written, and the face that has them
MOVED = {
    **{
        f"xraylab.data.{module}": "xraylab.data"
        for module in (
            "augmentation", "chexpert", "csv_table", "folder", "medmnist", "mimic_cxr", "mimic_tutorial", "mrnet", "mura", "nih",
        )
    },
    **{f"xraylab.models.{module}": "xraylab.models" for module in ("backbones", "cnn", "pools")},
    "xraylab.averaging": "xraylab.callbacks",
    "xraylab.comparison": "xraylab.sweeps",
    "xraylab.uncertainty": "xraylab.losses",
}  # fmt: skip


def lazy(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are imported when they are asked for (PEP 562).

    Args:
        package: its name.
        places: name -> the module under the package that has it.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{places[name]}"), name)

    return find, lambda: sorted(places), sorted(places)


def lasting_name(kind: type) -> str:
    """The name of a class by the face that shows it, ``xraylab.losses.WeightedBCE``; without a face, by where it lies.

    >>> from xraylab.models.losses.cross_entropy import WeightedBCE
    >>> lasting_name(WeightedBCE)
    'xraylab.losses.WeightedBCE'
    """
    name = kind.__qualname__
    for face, package in FACES.items():
        if kind.__module__.startswith(f"{package}.") and name in importlib.import_module(package).__all__:
            return f"xraylab.{face}.{name}"
    return f"{kind.__module__}.{name}"


def renamed(name: str) -> str:
    """Today's name of a class, of one that an older run holds; names of today stay as they are.

    >>> renamed("xraylab.data.mrnet.MRNet")
    'xraylab.data.MRNet'
    """
    module, _, last = name.rpartition(".")
    return f"{MOVED.get(module, module)}.{last}"


def located(name: str) -> Any:
    """The class of a name, today's or an older one.

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, last = renamed(name).rpartition(".")
    return getattr(importlib.import_module(module), last)


def with_todays_names(node: Any) -> Any:
    """A configuration, of plain dictionaries and lists, with today's names in its ``_target_``."""
    if isinstance(node, dict):
        return {k: renamed(v) if k == "_target_" and isinstance(v, str) else with_todays_names(v) for k, v in node.items()}
    return [with_todays_names(v) for v in node] if isinstance(node, list) else node
