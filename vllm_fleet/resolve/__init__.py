"""One question to the recipes -> one deployment, with the origin of each value."""
