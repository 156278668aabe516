"""Losses: from the logits of a batch and its labels, some of them uncertain, to one number."""

from xraylab.system.classes import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Asymmetric": "focal",
        "CrossEntropy": "cross_entropy",
        "Focal": "focal",
        "Loss": "base",
        "MultiClass": "multiclass",
        "SelfTrained": "self_trained",
        "TwoSoftmax": "cross_entropy",
        "Uncertainty": "uncertain_labels",
        "WeightedBCE": "cross_entropy",
    },
)
