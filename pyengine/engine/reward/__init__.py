"""Reward models: heads on a decoder's last hidden state, and their training."""
