"""Losses of ranked or rewarded groups of any size."""
