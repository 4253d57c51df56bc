"""Sources of feedback: what judges the responses of groups."""
