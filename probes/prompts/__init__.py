"""Prompts: texts, token ids and tasks, read into the tokens of one model."""
