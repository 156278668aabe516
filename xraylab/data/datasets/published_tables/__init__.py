"""Chest X-rays that are published as CSVs beside their pictures."""
