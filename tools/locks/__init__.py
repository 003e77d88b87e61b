"""Writes the locks of engines: packages with digests, for each Python, for one machine."""
