"""Callbacks, by the names that configurations and notebooks use."""

from xraylab.training.callbacks import __all__, __dir__, __getattr__
