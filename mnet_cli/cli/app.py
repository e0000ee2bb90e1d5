"""The Typer application, its commands, and the options that every command has."""

import inspect
import signal
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from mnet_cli import __version__
from mnet_cli.cli import console
from mnet_cli.cli.bench import bench
from mnet_cli.cli.cache import clear, fill, show_cache
from mnet_cli.cli.data import check, fetch, pack, sample, split
from mnet_cli.cli.embed import embed
from mnet_cli.cli.evaluate import evaluate
from mnet_cli.cli.export import export
from mnet_cli.cli.info import info
from mnet_cli.cli.predict import predict
from mnet_cli.cli.recipes import list_recipes, schema, show
from mnet_cli.cli.train import train
from mnet_cli.errors import MachineError
from mnet_cli.system.signals import StopSignal

Command = Callable[..., None]


def shared_options(
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors only.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the Python traceback of an error.")
    ] = False,
) -> None:
    """Apply the options that every command has."""
    console.settings.json = json
    console.settings.quiet = quiet
    console.settings.traceback = traceback


def with_shared_options(command: Command) -> Command:
    """Give `command` the options of `shared_options` besides its own.

    Errors that Typer would turn into its own exit codes become errors that `run` handles.
    """
    shared = inspect.signature(shared_options).parameters

    @wraps(command)
    def with_settings(**values: Any) -> None:
        shared_options(**{name: values.pop(name) for name in shared})
        # Hours of training must not end as if successful when nobody reads the result.
        console.settings.needs_reader = command is train
        try:
            command(**values)
        except KeyboardInterrupt as error:
            raise StopSignal(signal.SIGINT) from error
        except OSError as error:
            raise MachineError(
                str(error.filename or "mnet"),
                error.strerror or str(error),
                next_step="Add --traceback to see where it happened",
            ) from error

    own = inspect.signature(command)
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*own.parameters.values(), *shared.values())
    ]
    with_settings.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_settings


def _group(help_text: str, commands: dict[str, Command]) -> typer.Typer:
    group = typer.Typer(help=help_text)
    for name, command in commands.items():
        group.command(name)(with_shared_options(command))
    return group


def _print_version(value: bool) -> None:
    if value:
        console.line(f"mnet {__version__}")
        raise typer.Exit


app = _group(
    "Transfer learning for the MobileNet family.",
    {
        "train": train,
        "eval": evaluate,
        "predict": predict,
        "embed": embed,
        "export": export,
        "bench": bench,
        "info": info,
    },
)
app.add_typer(
    _group(
        "Create, download, split, pack and check data sets.",
        {"sample": sample, "fetch": fetch, "split": split, "pack": pack, "check": check},
    ),
    name="data",
)
app.add_typer(
    _group(
        "Show, fill and clear the cache of features.",
        {"info": show_cache, "fill": fill, "clear": clear},
    ),
    name="cache",
)
app.add_typer(
    _group(
        "List, show and describe recipes.", {"list": list_recipes, "show": show, "schema": schema}
    ),
    name="recipes",
)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Transfer learning for the MobileNet family: train, evaluate, predict, export."""
