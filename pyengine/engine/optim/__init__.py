"""Optimizers: what moves the weights, and what it keeps between steps."""
