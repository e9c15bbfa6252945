"""The scenarios, by name."""
