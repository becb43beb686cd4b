"""Storage: Datasets as safetensors, captures on their way to disk, run folders."""
