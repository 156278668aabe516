"""A run on several processes: how they start, meet, and tell each other what they know."""
