"""Changes what serving hosts run, one batch after the other, without losing a request."""
