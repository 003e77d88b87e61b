"""The edge: the only part of the package that reaches other machines."""
