"""Benchmarks against peers, side by side on real SSH."""
