"""Makes the locks of engines: which packages, for which Python, with which digests, for one machine."""
