"""Attention sinks: which heads attend to a few tokens whatever the text, and what that does."""
