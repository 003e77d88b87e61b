"""Fixtures of several tests."""

from init_hosts import home, loop, start  # noqa: F401
