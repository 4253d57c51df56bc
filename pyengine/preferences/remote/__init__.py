"""Judges behind an endpoint: calls at a time, repeated, paid for, and kept on disk."""
