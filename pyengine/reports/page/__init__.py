"""One HTML page of a run, or of several side by side: curves, findings in words, samples."""
