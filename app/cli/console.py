"""The two consoles of the command line, and plain text on them."""

from rich.console import Console

out = Console()
err = Console(stderr=True)


def say(text: object, console: Console = out) -> None:
    """Print text as it is: brackets are no markup, numbers have no colour, lines are not broken."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)
