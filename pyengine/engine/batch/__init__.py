"""Groups as packed trees, and what a loss takes of a batch."""
