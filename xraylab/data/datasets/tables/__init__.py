"""Tables of other hands: what their columns are, what their words mean, and what can be told of both by looking."""
