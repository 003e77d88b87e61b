"""Reports over all recipes: support matrix, cloud table, upgrade, checks."""
