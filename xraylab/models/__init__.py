"""Backbones, pools and the network that joins them."""

from xraylab.models.backbones.alexnet import AlexNet
from xraylab.models.backbones.base import Backbone
from xraylab.models.backbones.cnn import CNN
from xraylab.models.backbones.timm import Timm
from xraylab.models.pools import Attention, MaxFeature, MaxProbability, MeanProbability, Pool
from xraylab.models.study_net import StudyNet

__all__ = [
    "CNN", "AlexNet", "Attention", "Backbone", "MaxFeature", "MaxProbability", "MeanProbability", "Pool", "StudyNet", "Timm",
]  # fmt: skip
