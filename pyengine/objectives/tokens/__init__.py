"""Losses of tokens: policy gradients, weighted and unlikely tokens."""
