"""Gradients of attention with statistics: the custom operation, its backward pass, attributions."""
