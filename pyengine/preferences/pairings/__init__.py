"""Pairings: which responses of a group are compared."""
