"""The command line: one module per command, named after it.

Read `arguments` (flags and help from a signature; the only user of tyro), `output` (tables, JSON),
then any command. Each command is a typed function that imports everything heavy inside, so that `alexnet --help` takes
a fraction of a second. `run` turns errors into one sentence and an exit code: 0 done, 2 bad input, 1 a failure while
running, 128 + the number of a signal that stopped it (130 Ctrl-C, 143 SIGTERM), after a checkpoint where it trains.
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable

from alexnet.cli.ablate import ablate
from alexnet.cli.arch import arch
from alexnet.cli.arguments import command
from alexnet.cli.bench import bench
from alexnet.cli.check import check
from alexnet.cli.code import code
from alexnet.cli.doctor import doctor
from alexnet.cli.eval import evaluate
from alexnet.cli.export import export
from alexnet.cli.features import features
from alexnet.cli.output import ImportNotice, LogFormatter, is_main_process
from alexnet.cli.pack import pack
from alexnet.cli.predict import predict
from alexnet.cli.report import report
from alexnet.cli.resume import resume
from alexnet.cli.serve import serve
from alexnet.cli.show import show
from alexnet.cli.train import train
from alexnet.errors import ProcessLost, TrainingFailed, UserError, unknown_name
from alexnet.signals import Stopped, raise_on_signals
from alexnet.text import escape

COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "resume": command(resume, "RUN"),
    "eval": command(evaluate, "RUN [RUN…]", "eval"),
    "predict": command(predict, "RUN IMAGE…"),
    "arch": command(arch, "[NAME]"),
    "code": command(code, "NAME"),
    "check": command(check, "DATA"),
    "pack": command(pack, "DATA FOLDER"),
    "report": command(report, "RUN [RUN…]"),
    "show": command(show, "KIND WHAT…"),
    "features": command(features, "RUN DATA"),
    "export": command(export, "RUN FORMAT"),
    "serve": command(serve, "RUN…"),
    "ablate": command(ablate, "CLAIM"),
    "bench": command(bench, "[PART…]"),
    "doctor": command(doctor),
}


def _help() -> str:
    commands = [f"  {name:<9} {(call.__doc__ or '').strip().splitlines()[0]}" for name, call in COMMANDS.items()]
    return "\n".join([
        "usage: alexnet COMMAND …",
        "",
        "Every AlexNet, verified: train it, evaluate it, look inside it, use it.",
        "Run 'alexnet COMMAND --help' for details.",
        "",
        *commands,
        "",
        "  --version    print the version",
        "  --completion bash|zsh|fish    print a script with which that shell completes this command",
        "  --debug      after any command: show tracebacks",
    ])  # fmt: skip


def run(arguments: list[str]) -> int:
    """Run a command line (without the program's name) and return its exit code; print errors as one sentence."""
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        if not arguments or arguments[0] in ("--help", "-h", "help"):
            print(_help())
            return 0
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(f"alexnet {version('alexnet')}")
            return 0
        if arguments[0] == "--completion":
            from alexnet.cli.completion import script

            print(script(" ".join(arguments[1:]), COMMANDS), end="")
            return 0
        if arguments[0] not in COMMANDS:
            raise unknown_name("command", arguments[0], COMMANDS)
        code = COMMANDS[arguments[0]](arguments[1:]) or 0
        sys.stdout.flush()  # here, where a reader that has left is expected
        return code
    except SystemExit as stop:  # tyro's --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        if debug:
            raise
        print("Interrupted.", file=sys.stderr)
        return 130
    except Stopped as stop:
        if is_main_process():
            print(f"alexnet: {stop}", file=sys.stderr)
        return stop.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 0
        if debug:
            raise
        if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):  # raised by tempfile
            error = UserError("There is no writable folder for temporary files; set TMPDIR to one.")
        if is_main_process() or not _same_on_all_ranks(error):
            print(escape(_message(error)), file=sys.stderr)
        return getattr(error, "exit_code", 2 if isinstance(error, UserError) else 1)


def _reader_left() -> bool:
    """Return whether the reader of stdout has left, as in 'alexnet … | head', and then discard the rest of the output.

    Another pipe may break too, such as the one to a worker process; that is an error.
    """
    try:
        stdout = sys.stdout.fileno()
    except OSError:  # not a file
        return False
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # reports errors only
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


def _same_on_all_ranks(error: Exception) -> bool:
    """Return whether every rank raises this sentence; any other error may concern this rank alone."""
    return _is_sentence(error) and not isinstance(error, ProcessLost)


def _is_sentence(error: Exception) -> bool:
    return isinstance(error, (UserError, TrainingFailed)) or hasattr(error, "exit_code")


def _message(error: Exception) -> str:
    if _is_sentence(error):
        return f"alexnet: {error}"
    return f"alexnet: internal error: {type(error).__name__}: {error} (--debug shows where)"


def main() -> None:
    """Run the program `alexnet`."""
    for stream in (sys.stdout, sys.stderr):  # escape what the terminal cannot encode, such as a file name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters about an image, its own sentence says
    warnings.formatwarning = lambda message, *_: f"{escape(str(message))}\n"  # a sentence, not a line of code
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LogFormatter())
    raise_on_signals()
    sys.meta_path.insert(0, ImportNotice())
    sys.exit(run(sys.argv[1:]))
