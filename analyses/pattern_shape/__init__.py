"""Pattern shape: how sharp, how far and how sparse attention is, and whether that matters."""
