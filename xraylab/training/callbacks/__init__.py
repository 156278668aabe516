"""Lightning callbacks of a training: at its steps, epochs and checkpoints."""

from xraylab.system.classes import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ExponentialAveraging": "weight_averaging",
        "StochasticWeightAveraging": "weight_averaging",
        "Unfreeze": "unfreeze",
    },
)
