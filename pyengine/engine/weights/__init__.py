"""Weights as kernels read them: packed, in large pages, with adapters added."""
