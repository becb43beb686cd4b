"""`headscope/induction`: checkpoints of a two-layer Llama in which induction emerges."""
