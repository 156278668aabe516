"""Losses, by the names that configurations and notebooks use."""

from xraylab.models.losses import __all__, __dir__, __getattr__
