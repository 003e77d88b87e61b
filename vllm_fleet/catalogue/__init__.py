"""The recipes as one catalogue: host classes, engines with what they read, models, clouds, locks."""
