"""Retrieval heads: which heads copy a fact from far back, and when they fail to."""
