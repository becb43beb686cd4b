"""Sparse autoencoders on head outputs: activations, training, evaluation, SAELens files."""
