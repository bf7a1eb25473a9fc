"""`alexnet resume`: continue an interrupted run, or extend a finished one."""

from __future__ import annotations

from typing import Literal

from alexnet.cli.output import LANGUAGE, is_main_process, log
from alexnet.cli.train import live_page, show_result


def resume(
    run: str,
    /,
    *,
    epochs: str | None = None,
    parallel: Literal["auto", "none", "data", "towers"] | None = None,
    set: tuple[str, ...] = (),
    force: bool = False,
    open: bool = False,
    live: bool = False,
    lang: Literal["en", "zh"] = LANGUAGE,
    json: bool = False,
) -> None:
    """Resume a run exactly where it stopped, or extend a finished one.

    Args:
        run: Run folder, or 'last' for the newest one in runs/.
        epochs: Extend to this many epochs, or by +N; the learning rate follows the schedule of the longer run.
        parallel: How several processes share the work, as in 'alexnet train'; the run's own choice by default.
        set: Settings of recipe.json to change, such as workers=4 data=/new/place.
        force: Accept settings that change the experiment.
        open: Open the report in a browser at the end, or the page of --live at the beginning.
        live: Show curves, alarms and mistakes on a page of this machine, also after the end, until Ctrl-C.
        lang: Language of what training shows, of the report and of the page of --live, English or Chinese.
        json: Print the summary as one JSON document.
    """
    from alexnet.run_dir import find_run
    from alexnet.training.recipe import parse_settings

    find_run(run)
    settings = parse_settings(set)
    with live_page(live, open, lang) as open_page:
        from alexnet.api import write_page
        from alexnet.messages.translator import Translator
        from alexnet.training import api

        result = api.resume(
            run, epochs=epochs, parallel=parallel, force=force, settings=settings, on_start=open_page, lang=lang
        )
        if result.already_finished and is_main_process():
            log(Translator(lang).sentence(f"{result.run} is finished; --epochs +N extends it."))
        show_result(write_page(result), json, open and not live)
