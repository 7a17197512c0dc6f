"""The interpreter as a target: slow, and right by definition."""
