"""Many runs of one command: their search space, their order, their record and their comparison."""

from xraylab.system.classes import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {"Comparison": "comparison"})
