"""Backbones, pools and the network that joins them."""

from xraylab.models.backbones import AlexNet, Backbone, Timm
from xraylab.models.cnn import CNN
from xraylab.models.pools import Attention, MaxFeature, MaxProbability, MeanProbability, Pool
from xraylab.models.studynet import StudyNet

__all__ = [
    "CNN", "AlexNet", "Attention", "Backbone", "MaxFeature", "MaxProbability", "MeanProbability", "Pool", "StudyNet", "Timm",
]  # fmt: skip
