"""The panel engine: a few queries against all their keys at a time, in torch, on any device."""
