"""The command line: one module a command; ``main`` registers them."""

from headscope.app.cli.main import app, main

__all__ = ["app", "main"]
