"""Where a run is recorded beside its own directory."""

from xraylab.system.classes import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "TensorBoard": "tensorboard",
        "Wandb": "wandb",
    },
)
