"""Exporting: a run as one file that other programs read, from a study's pictures to its probabilities."""

from __future__ import annotations

#: the formats, and the suffix of their files
FORMATS = {"onnx": ".onnx", "torch_export": ".pt2"}
