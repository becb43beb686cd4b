"""Models: loading them, their checkpoints, encoders with decoders, and vision models."""
