"""Checkpoints and the files of Hugging Face and peft."""
