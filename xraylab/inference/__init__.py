"""Finished runs on studies: their own splits, or new ones."""
