"""Models outside transformers' attention interface, read by following the steps of their code."""
