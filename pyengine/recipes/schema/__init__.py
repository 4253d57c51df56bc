"""What a recipe may say, and the files that it names."""
