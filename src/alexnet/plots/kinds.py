"""The kinds of figures that `alexnet show` draws, and the check of its arguments, before anything is loaded.

This module imports neither torch nor matplotlib, so that a misspelled kind, run or image is answered at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alexnet.errors import UserError, check_package, unknown_name
from alexnet.files import check_image_exists
from alexnet.models.architectures import TORCHVISION, architecture
from alexnet.run_dir import check_runs

MAX_IMAGES = 24  # in one figure


@dataclass(frozen=True)
class Kind:
    """A kind of figure."""

    usage: str
    """Its arguments, for the usage line: RUN, IMAGE, or NAME of an architecture; with … for several."""
    min_args: int
    max_args: int
    options: tuple[str, ...] = ()
    """The options that it accepts, of those that not every kind does."""


KINDS = {
    "filters": Kind("RUN", 1, 1, ("layer",)),
    "activations": Kind("RUN IMAGE", 2, 2),
    "saliency": Kind("RUN IMAGE", 2, 2, ("method", "label")),
    "similar": Kind("RUN IMAGE…", 2, 99, ("top", "layer")),
    "top5": Kind("RUN IMAGE…", 2, 99),
    "mistakes": Kind("RUN", 1, 1, ("split", "top")),
    "curves": Kind("RUN…", 1, 20),
    "lrn": Kind("RUN [IMAGE…]", 1, 1 + MAX_IMAGES),
    "architecture": Kind("NAME", 1, 1),
    "receptive-field": Kind("NAME [IMAGE]", 1, 2),
}


def check_arguments(kind: str, args: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raise `UserError` unless `kind` takes these arguments and options (None if not given), and the files exist."""
    if kind not in KINDS:
        raise unknown_name("kind of figure", kind, KINDS)
    chosen = KINDS[kind]
    for name in ("layer", "method", "label", "top", "split"):
        if options.get(name) is not None and name not in chosen.options:
            raise UserError(f"'alexnet show {kind}' takes no --{name}; leave it out.")
    usage = f"'alexnet show {kind} {chosen.usage}'"
    if len(args) < chosen.min_args:
        raise UserError(f"An argument is missing after 'show {kind}'; usage: {usage}.")
    if len(args) > chosen.max_args:
        raise UserError(f"Unexpected argument '{args[chosen.max_args]}'; usage: {usage}.")
    if chosen.usage.startswith("RUN"):
        check_runs(*(args if kind == "curves" else args[:1]))
    elif not os.path.exists(args[0]) and args[0] != "last" and not args[0].startswith(TORCHVISION):
        architecture(args[0])
    if kind == "saliency":
        check_package("Saliency", "captum", "show")
    for image in () if kind == "curves" else args[1:]:
        check_image_exists(image)
