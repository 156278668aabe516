"""Datasets as published, and a user's own: each a reader that becomes a table of studies."""
