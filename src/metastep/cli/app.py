"""The application: its commands, and one clear line for every error that a user can cause."""

import sys

import typer

from metastep.cli import compare, inspect, listing, report, train
from metastep.cli.options import Stopped

app = typer.Typer(
    name="metastep",
    help="Learning rates that learn: train with a schedule, learn one, carry it to another task, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("meta-train")(train.meta_train)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("list")(listing.listing)


@app.callback(invoke_without_command=True)
def version_option(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Learning rates that learn: train with a schedule, learn one, carry it to another task, compare."""
    if version:
        from metastep.version import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; exit code 0 done, 2 bad input, 130 stopped by Ctrl-C."""
    try:
        app()
    except Stopped as stopped:
        typer.echo(str(stopped), err=True)
        sys.exit(stopped.code)
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
