"""Orders of responses from comparisons of two."""
