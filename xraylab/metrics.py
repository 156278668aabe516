"""Metrics of one label, for notebooks: names, values and intervals."""

from xraylab.evaluation.metrics import METRICS, point, undefined

__all__ = ["METRICS", "point", "undefined"]
