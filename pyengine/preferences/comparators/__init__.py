"""What says which of two responses is preferred."""
