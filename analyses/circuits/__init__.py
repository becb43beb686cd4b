"""Circuits: through which heads and edges an answer comes."""
