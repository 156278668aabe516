"""What happens at the steps and epochs of a training."""

from xraylab.system.classes import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ExponentialAveraging": "weight_averaging",
        "StochasticWeightAveraging": "weight_averaging",
        "Unfreeze": "unfreeze",
    },
)
