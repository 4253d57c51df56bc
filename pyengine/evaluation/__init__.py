"""Measures of responses, each with a standard error."""
