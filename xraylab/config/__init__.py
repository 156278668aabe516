"""What was asked for: composition, help, messages, and settings with types."""
