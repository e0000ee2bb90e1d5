"""The command line: its entry point, and the one place where errors become exit codes."""

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from typer.exceptions import TyperException

from mnet_cli.cli import console
from mnet_cli.cli.app import app
from mnet_cli.errors import MachineError, MnetError, UsageError
from mnet_cli.system.signals import StopSignal, die_on_signals, raise_on_signals

BUG = 1


def main() -> None:
    """Run the command line of this process and exit with its code."""
    # Imports create hundreds of thousands of objects that stay. Searching them for garbage
    # takes half a second with torch, and the same again at the exit.
    gc.set_threshold(100_000)
    raise_on_signals()
    if sys.stderr is None:
        sys.exit(MachineError.exit_code)  # closed by the caller: no message is possible
    if sys.stdout is None:
        advice = f"Send it to {os.devnull} instead"
        sys.exit(_fail(MachineError("stdout", "closed", next_step=advice)))
    # No file name and no encoding of a terminal may stop a command.
    if sys.stdin is not None:
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = run(sys.argv[1:])
    die_on_signals()
    gc.freeze()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error is printed as one line."""
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="mnet", standalone_mode=False)
        console.flush()
        return code if isinstance(code, int) else 0
    except console.OutputClosedError:
        return 0
    except MnetError as error:
        return _fail(error)
    except TyperException as error:
        return _fail(_usage_error(error))
    except StopSignal as stop:
        die_on_signals()
        console.error(MnetError(stop.number.name, "stopped", next_step=stop.next_step))
        return stop.exit_code
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        return 0  # Typer and rich, which print the help, exit so when stdout is closed
    except OSError as error:  # commands raise MnetErrors: this one is from printing the help
        return _fail(console.lost_stream(sys.stdout, error))
    except Exception as error:
        console.error(
            MnetError(
                "internal",
                f"{type(error).__name__}: {error}",
                next_step="This is a bug in mnet: report it with the output of --traceback",
            )
        )
        _show_traceback()
        return BUG


def _fail(error: MnetError) -> int:
    _show_traceback()
    console.error(error)
    return error.exit_code


def _show_traceback() -> None:
    if console.settings.traceback:
        with suppress(OSError):
            traceback.print_exc()


def _usage_error(error: TyperException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "mnet"
    message = error.format_message().rstrip(".?")
    message = message.replace("Input should be", "it must be")
    advice = f'Run "{command} --help"'
    return UsageError(command, message[:1].lower() + message[1:], next_step=advice)
