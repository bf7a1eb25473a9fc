"""The command line: what each word does, and how errors become a sentence and an exit code.

Here a command line is carried out: 0 done, 2 bad input, 1 a failure while running, 130 interrupted, 143 stopped by
SIGTERM after a checkpoint. Each command is a typed function of `commands`, `checking`, `packing`, `looking` or
`measuring`; `arguments`, which alone knows tyro, makes flags and help of its signature.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from alexnet.cli.ablate import ablate
from alexnet.cli.arch import arch
from alexnet.cli.arguments import _typed
from alexnet.cli.bench import bench
from alexnet.cli.check import check
from alexnet.cli.doctor import doctor
from alexnet.cli.eval import evaluate
from alexnet.cli.export import export
from alexnet.cli.features import features
from alexnet.cli.output import _speaks
from alexnet.cli.pack import pack
from alexnet.cli.predict import predict
from alexnet.cli.report import report
from alexnet.cli.resume import resume
from alexnet.cli.serve import serve
from alexnet.cli.show import show
from alexnet.cli.train import command_train
from alexnet.errors import ProcessLost, TrainingFailed, UserError, unknown_name

COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": command_train,
    "resume": _typed(resume),
    "eval": _typed(evaluate),
    "predict": _typed(predict),
    "arch": _typed(arch),
    "check": _typed(check),
    "pack": _typed(pack),
    "report": _typed(report),
    "show": _typed(show),
    "features": _typed(features),
    "export": _typed(export),
    "serve": _typed(serve),
    "ablate": _typed(ablate),
    "bench": _typed(bench),
    "doctor": _typed(doctor),
}


def _help() -> str:
    lines = [f"  {name:<9} {(call.__doc__ or '').strip().splitlines()[0]}" for name, call in COMMANDS.items()]
    return "\n".join([
        "usage: alexnet COMMAND …      'alexnet COMMAND --help' tells more",
        "",
        "Every AlexNet, verified: train it, test it, look inside it, use it.",
        "",
        *lines,
        "",
        "  --version    the version",
        "  --debug      after any command: show tracebacks",
    ])  # fmt: skip


def run(arguments: list[str]) -> int:
    """Carry out a command line (without the program's name); the exit code. Errors become a sentence on stderr."""
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
        if arguments[0] not in COMMANDS:
            raise unknown_name("command", arguments[0], COMMANDS)
        return COMMANDS[arguments[0]](arguments[1:]) or 0
    except SystemExit as stop:  # tyro's --help
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:  # 'alexnet … | head' has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        if debug:
            raise
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        if _speaks() or not _told_alike(error):
            print(_message(error), file=sys.stderr)
        return getattr(error, "exit_code", 2 if isinstance(error, UserError) else 1)


def _told_alike(error: Exception) -> bool:
    """Whether every process has this sentence for the user; anything else may have struck this one only."""
    return _is_sentence(error) and not isinstance(error, ProcessLost)


def _is_sentence(error: Exception) -> bool:
    return isinstance(error, (UserError, TrainingFailed)) or hasattr(error, "exit_code")


def _message(error: Exception) -> str:
    if _is_sentence(error):
        return f"alexnet: {error}"
    return f"alexnet: this failed and should not have: {type(error).__name__}: {error} (--debug shows where)"


def main() -> None:
    """The program `alexnet`."""
    for stream in (sys.stdout, sys.stderr):  # a file name or class that the terminal cannot show must not stop us
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))
