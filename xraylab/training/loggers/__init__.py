"""Dashboards of a run: TensorBoard, and Weights & Biases."""

import os

from xraylab.system.classes import lazy

os.environ.setdefault("WANDB_SILENT", "true")  # before wandb is imported, which Lightning's loggers do

__getattr__, __dir__, __all__ = lazy(__name__, {"TensorBoard": "tensorboard", "Wandb": "wandb"})
