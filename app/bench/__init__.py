"""Benchmarks: side by side in one run, as ratios, and only when the numbers are right."""
