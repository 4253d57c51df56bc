"""Running a recipe: its folder, its signals, its rounds."""
