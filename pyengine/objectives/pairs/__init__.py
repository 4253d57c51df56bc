"""Losses of comparisons between two responses."""
