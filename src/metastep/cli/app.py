"""The application: its commands, and one clear line for every error that a user can cause."""

import os
import re
import sys
from contextlib import suppress
from itertools import pairwise

import typer
from typer.main import get_command

from metastep.cli import compare, experiment, inspect, listing, meta_train, new, report, train
from metastep.cli.options import SETTINGS, Stopped

app = typer.Typer(
    name="metastep",
    help="Learning rates that learn: train with a schedule, learn one, carry it to another task, compare.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("meta-train")(meta_train.meta_train)
app.command("compare")(compare.compare)
app.command("experiment")(experiment.experiment)
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("new")(new.new)
app.command("list")(listing.listing)

#: What a command line that cannot be read raises; typer does not export its name.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


@app.callback(invoke_without_command=True)
def metastep(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    """Learning rates that learn: train with a schedule, learn one, carry it to another task, compare."""
    if version:
        from metastep.version import __version__

        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; exit code 0 done or stopped by SIGTERM or SIGHUP, 2 bad input, 130 stopped by Ctrl-C.

    Every error is one line. One that nobody foresaw says its type, too, and where it happened with
    ``METASTEP_TRACEBACK=1``.
    """
    try:
        code = app(prog_name="metastep", standalone_mode=False)
    except Stopped as stopped:
        _say(str(stopped))
        sys.exit(stopped.code)
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped.")
        sys.exit(130)
    except _UsageError as error:
        message = _in_words(error.format_message())  # type: ignore[attr-defined]
        _refuse(message + _moved(getattr(error, "option_name", "")))
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("METASTEP_TRACEBACK") and type(error).__name__ == "OwnCodeError":
            raise
        _refuse(_as_typed(str(error)))
    except Exception as error:
        if os.environ.get("METASTEP_TRACEBACK"):
            raise
        _refuse(
            f"{type(error).__name__}: {error}; nobody foresaw this: a file is damaged, or metastep has a fault. "
            "METASTEP_TRACEBACK=1 shows where."
        )
    if code == 130:  # Ctrl-C where nothing was begun; newer versions of typer return it
        _say("stopped.")
    sys.exit(code if isinstance(code, int) else 0)


def _in_words(message: str) -> str:
    """Say what a value must be, where typer tells how it failed to read it."""
    found = re.fullmatch(r"Invalid value for '(--[\w-]+)': (.*)", message, re.DOTALL)
    if found is None:
        return message
    option, reason = found.groups()
    pairs = [*pairwise(sys.argv), *(word.split("=", 1) for word in sys.argv if "=" in word)]
    given = next((value for flag, value in pairs if flag == option), "")
    expected = "a whole number" if "integer" in reason else "a number" if "number" in reason else ""
    if choices := re.search(r"is not one of (.*?)\.?$", reason):
        expected = f"one of {choices[1]}".replace("'", "")
    return f"{option} must be {expected}, got {given!r}." if expected else message


def _moved(option: str) -> str:
    """Say where an option is that ``--set`` has taken in."""
    name = option.lstrip("-").replace("-", "_")
    return f" Write --set {name}=VALUE." if name in SETTINGS else ""


def _as_typed(message: str) -> str:
    """Name an argument as it is typed: an error begins with its name, such as ``total_steps must be``."""
    name, must, rest = message.partition(" must ")
    typed = {"total_steps": "--steps", "warmup_steps": "--set warmup", **{name: f"--set {name}" for name in SETTINGS}}
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        for option in command.params:
            if option.param_type_name == "option":
                typed[option.name] = option.opts[0]
    if re.fullmatch(r"\w+((?: and | \+ )\w+)*", name):
        name = re.sub(r"\w+", lambda word: typed.get(word[0], word[0]), name)
    return name + must + rest


def _refuse(message: str) -> None:
    _say(f"error: {' '.join(message.split())}")
    sys.exit(2)


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        typer.echo(line, err=True)
