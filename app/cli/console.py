"""The two consoles of the command line, and plain text on them."""

from typing import Annotated

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)

Register = Annotated[
    str | None,
    typer.Option(help="wording of built-in tasks, plain or natural; default: as the tokenizer has"),
]


def print_text(text: object, console: Console = out) -> None:
    """Print text as it is: brackets are no markup, numbers have no colour, lines are not broken."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)
