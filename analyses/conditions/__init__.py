"""Conditions: which heads differ between two sets of prompts, and whether they cause it."""
