"""What a run's figures say, in sentences: one rule a file, its thresholds at its top."""
