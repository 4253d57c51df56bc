"""Where a run's rows go while it runs: one writer a file."""
