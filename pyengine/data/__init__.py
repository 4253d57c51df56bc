"""Data rows, chat templates and the tokenizer: text becomes token ids here, once."""
