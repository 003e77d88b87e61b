"""The contents of a mirror of artifacts, and what its hosts read from it."""
