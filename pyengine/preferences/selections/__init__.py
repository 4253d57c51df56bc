"""Which comparisons are worth learning from."""
