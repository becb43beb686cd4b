"""Statistics of results: bootstrap intervals, rank correlation, effect sizes, classification."""
