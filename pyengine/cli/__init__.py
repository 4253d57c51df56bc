"""The command line: one file a command; errors are one sentence."""
