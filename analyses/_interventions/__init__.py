"""Causal measurements: ablation, sweeps over heads, gradients, the loss under edits."""
