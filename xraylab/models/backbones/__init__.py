"""Backbones: networks from an image to its features, and where their weights come from."""
