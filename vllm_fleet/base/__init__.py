"""What all other packages use: errors, paths, files, YAML with places, merge."""
