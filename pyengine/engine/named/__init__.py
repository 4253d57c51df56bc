"""Further models by name: references, snapshots and their combinations."""
