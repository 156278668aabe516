"""Drawings in the layouts of real datasets, with findings to learn. They are marked, and mean nothing for patients."""
