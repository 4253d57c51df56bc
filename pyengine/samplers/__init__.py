"""Ways to sample responses to prompts."""
