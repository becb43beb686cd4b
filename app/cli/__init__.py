"""The command line: one module a command; ``main`` puts them together."""

from headscope.app.cli.main import app, main

__all__ = ["app", "main"]
