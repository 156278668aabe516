"""A run behind a page and a JSON interface."""
