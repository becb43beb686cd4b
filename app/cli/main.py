"""Entry point of the command line: all commands, and how errors end."""

import sys
from typing import Annotated

import typer

from headscope.app.cli.analyze import analyze
from headscope.app.cli.batch import batch
from headscope.app.cli.bench import bench
from headscope.app.cli.capture import capture, texts
from headscope.app.cli.compare import compare
from headscope.app.cli.console import err, print_text
from headscope.app.cli.dashboard import dashboard
from headscope.app.cli.demo import demo
from headscope.app.cli.export import export, import_headvis
from headscope.app.cli.listing import list_analyses, list_statistics
from headscope.app.cli.models import models
from headscope.app.cli.report import report
from headscope.app.cli.reproduce import reproduce
from headscope.app.cli.sae import sae
from headscope.app.cli.timeline import timeline
from headscope.kernels.errors import HeadscopeError

CANCELLED = 130

app = typer.Typer(
    name="headscope",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See what every attention head of a model does.",
    rich_markup_mode=None,
)


def _version(requested: bool) -> None:
    """Print the version and stop."""
    if requested:
        from importlib.metadata import version

        print_text(f"headscope {version('headscope')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


app.command()(demo)
app.add_typer(models, name="models")
app.add_typer(sae, name="sae")
app.command("analyses")(list_analyses)
app.command("statistics")(list_statistics)
app.command()(texts)
app.command()(capture)
app.command()(analyze)
app.command()(report)
app.command()(export)
app.command("import-headvis")(import_headvis)
app.command()(timeline)
app.command()(compare)
app.command()(reproduce)
app.command()(bench)
app.command()(batch)
app.command("app")(dashboard)


def main() -> None:
    """Run the command line; input that is refused is one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except HeadscopeError as error:
        print_text(f"error: {error}", err)
        sys.exit(2)
    except SystemExit as ended:
        # Typer makes this of Ctrl-C, and says nothing.
        if ended.code == CANCELLED:
            print_text("cancelled; what was finished is kept, run the command again to go on", err)
        raise
