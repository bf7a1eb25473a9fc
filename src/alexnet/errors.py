"""The one error that a user caused, and the sentences that help them out of it.

Everything that is wrong with what the user gave us (a path, a name, a size, a file) is raised as `UserError`
from wherever it is noticed. The command line prints its text, one sentence, and exits with 2; in Python it is
a `ValueError` like any other. Whatever else escapes is a failure of ours and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is one sentence: what is wrong, where, and how to put it right."""


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """The error for a name that is not in `known`, with the nearest ones first; `where` it stands, as " in x.json".

    >>> str(unknown_name("architecture", "ccode2012", ["paper", "code2012"]))
    "There is no architecture 'ccode2012'; did you mean 'code2012'?"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return UserError(f"There is no {kind} '{name}'{where}; did you mean {' or '.join(repr(n) for n in near)}?")
    return UserError(f"There is no {kind} '{name}'{where}; choose one of {', '.join(names)}.")


class TrainingFailed(RuntimeError):
    """Training cannot go on (the loss is NaN, the disk is full). The message says what to change; exit code 1."""


class ProcessLost(TrainingFailed):
    """Another of several processes that train together is gone. Each that is left says so, for itself."""


class ReaderDied(TrainingFailed):
    """A process that reads pictures for this one was killed, from outside or by the kernel."""
