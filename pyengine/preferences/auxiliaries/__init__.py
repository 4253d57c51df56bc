"""Further responses of comparisons, for objectives that take more than the two."""
