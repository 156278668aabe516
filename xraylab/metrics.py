"""Metrics of one label, for notebooks: names, values and intervals."""

from xraylab.evaluation.metrics import METRICS, RATES, Metric, point, undefined

__all__ = ["METRICS", "RATES", "Metric", "point", "undefined"]
