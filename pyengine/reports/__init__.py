"""What a run's metrics say: tables, plots, and writers of rows as they come."""
