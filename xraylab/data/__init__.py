"""Datasets as tables of studies, and the way from a row to a packed batch."""
