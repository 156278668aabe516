"""Loggers, by the names that configurations and notebooks use."""

from xraylab.training.loggers import __all__, __dir__, __getattr__
