"""Exceptions that carry a message for the user, and the exit code each leads to.

Invalid input (a path, a name, a size, a file) raises `UserError` wherever it is found: the command line prints its one
sentence and exits with 2; in Python it is an ordinary `ValueError`. Any other exception exits with 1.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec


class ShownAsMessage(Exception):
    """An exception that a notebook shows as its message alone; `%tb Verbose` shows the whole traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows, which calls this method of an exception that has one."""
        formatter = sys.modules["IPython"].get_ipython().InteractiveTB
        if formatter.mode not in ("Context", "Minimal"):  # Context is the default
            lines: list[str] = formatter.structured_traceback(type(self), self, self.__traceback__)
            return lines
        return [f"{type(self).__name__}: {self}"]


class UserError(ShownAsMessage, ValueError):
    """Invalid input. The message is one sentence: what is wrong, where, and how to fix it.

    >>> try:
    ...     alexnet.create_model("papr")
    ... except alexnet.UserError as error:
    ...     print(error)
    There is no architecture 'papr'; did you mean 'paper' or 'paper-six'?
    """


class NoSuchName(ShownAsMessage, AttributeError):
    """A name that the package does not have."""


class TrainingFailed(ShownAsMessage, RuntimeError):
    """Training cannot continue (the loss is NaN, the disk is full). The message says what to change; exit code 1."""


class ProcessLost(TrainingFailed):
    """Another rank of a distributed training is gone. Raised on every remaining rank."""


class WorkerDied(TrainingFailed):
    """A worker process that loads images was killed, by a user or by the kernel."""


def missing_package(user: str, package: str, extra: str = "") -> UserError:
    """Return the error for a `package` that `user` needs, which the `extra` of alexnet installs, or else pip alone.

    >>> str(missing_package("Saliency", "captum", "show"))
    "Saliency needs captum, which is not installed; install it with: pip install 'alexnet[show]'."
    """
    name = f"'alexnet[{extra}]'" if extra else package
    return UserError(f"{user} needs {package}, which is not installed; install it with: pip install {name}.")


def check_package(user: str, package: str, extra: str) -> None:
    """Raise `missing_package` unless the package is installed, without importing it."""
    if find_spec(package) is None:
        raise missing_package(user, package, extra)


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """Return the error for a `name` that is not in `known`, suggesting the closest ones.

    `where` says where the name was found, e.g. " in x.json".

    >>> str(unknown_name("architecture", "ccode2012", ["paper", "code2012"]))
    "There is no architecture 'ccode2012'; did you mean 'code2012'?"
    """
    names = list(known)
    if close := suggest(name, names):
        return UserError(f"There is no {kind} '{name}'{where}{close}")
    return UserError(f"There is no {kind} '{name}'{where}; choose one of {', '.join(names)}.")


def suggest(name: str, known: Iterable[str], shown: Mapping[str, str] | None = None) -> str:
    """Return the end of a sentence that suggests the names in `known` that are close to `name`; "" if none is.

    They are shown as `shown` says, by default as they are.

    >>> suggest("trian", ["train", "resume"])
    "; did you mean 'train'?"
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    names = dict.fromkeys(shown[one] if shown else one for one in close)
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""
