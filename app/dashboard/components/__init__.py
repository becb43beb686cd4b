"""Components of the screens, one module each."""
