"""What everything else stands on: errors, paths, files, YAML with places, merge."""
