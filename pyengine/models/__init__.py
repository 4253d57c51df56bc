"""Model families, their files and the one decoder they share."""
