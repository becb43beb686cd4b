"""Batch: one job over many models, tasks, analyses and seeds, to be trusted and run again."""
