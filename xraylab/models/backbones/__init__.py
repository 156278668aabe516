"""From an image to its features: networks, and where their weights come from."""
