"""What a run's metrics say: tables, plots."""
