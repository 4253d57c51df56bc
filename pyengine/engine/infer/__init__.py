"""Sampling and scoring without gradients, on C++ sessions."""
