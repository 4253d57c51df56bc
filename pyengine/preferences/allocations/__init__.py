"""How many samples each prompt is worth."""
