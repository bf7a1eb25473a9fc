"""The commands that train, use and describe networks, each a typed function.

Results are printed on stdout. Everything heavy is imported inside the command that needs it, so that `alexnet --help`
answers at once.
"""

from __future__ import annotations

import sys
from typing import Literal

from alexnet.cli.output import _speaks
from alexnet.cli.train import _show_training


def resume(
    run: str,
    /,
    *,
    epochs: str | None = None,
    parallel: Literal["auto", "none", "data", "towers"] | None = None,
    set: tuple[str, ...] = (),
    force: bool = False,
    json: bool = False,
) -> None:
    """Go on with a run where it stopped, or extend a finished one.

    Args:
        run: The run folder, or 'last' for the newest one in runs/.
        epochs: Extend to this many epochs, or by +N; the learning rate goes on as that of a run of so many.
        parallel: How several processes share the work, as in 'alexnet train'; the run's own way unless given.
        set: Settings of recipe.json to go on with, such as workers=4 data=/new/place.
        force: Also with such as make another experiment of it.
        json: Print the summary as one JSON document.
    """
    from alexnet.run_dir import find_run
    from alexnet.training.api import resume_run
    from alexnet.training.config_parsing import parse_settings

    found = find_run(run)
    result = resume_run(found, epochs=epochs, parallel=parallel, force=force, settings=parse_settings(set))
    if result.already_finished and _speaks():
        print(f"{found.path} is finished; --epochs +N extends it.", file=sys.stderr)
    _show_training(result, json)
