"""Trace models outside transformers' attention interface."""
