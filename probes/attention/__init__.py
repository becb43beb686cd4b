"""Attention of a model: intercepted through transformers' interface, and checked at load."""
