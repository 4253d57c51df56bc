"""Losses of single responses, by label or reward."""
