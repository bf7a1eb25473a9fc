"""Progress of long work: a live bar on a terminal, a bar with curves in a notebook, plain lines otherwise; optionally
TensorBoard.

Everything goes to stderr; stdout is for results. A notebook would show stderr in red: there it is HTML in the cell's
output. What is shown is in the language `lang`, en or zh; callers report in English.
"""

from __future__ import annotations

import math
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from alexnet.calls import as_keywords
from alexnet.device import rank
from alexnet.errors import check_package
from alexnet.messages.translator import Translator
from alexnet.text import escape

PLAIN_INTERVAL_S = 10.0
LINE_WIDTH = 80  # columns of a usual terminal
NOTEBOOK_INTERVAL_S = 0.25  # between updates, each a message to the browser


class Position(NamedTuple):
    """Where a training is: the epoch, and the images done and planned, of the epoch and of the run.

    A run that ends within an epoch, by `limit_steps` or a time budget, plans only a part of its images.
    """

    epoch: int
    epochs: int
    done: int
    total: int
    run_done: int
    run_total: int


class Progress(Protocol):
    """Receives what long work reports."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """`done` of `total` items of a task other than training (`what`: reading, evaluating) are done."""

    def log(self, text: str) -> None:
        """Show a message of one line that stays on the screen."""

    def step(self, position: Position, loss: float | None, top1: float | None) -> None:
        """Training is at `position`; `loss` and `top1` are means over the images done of the epoch."""

    def epoch(self, row: dict[str, Any], epochs: int, split: str) -> None:
        """An epoch is done; `row` is its line of metrics.jsonl, `split` the one it was validated on."""

    def resume(self, rows: Sequence[dict[str, Any]]) -> None:
        """Training resumes after the epochs of these rows of metrics.jsonl."""

    def close(self) -> None:
        """End the display."""


def epoch_line(row: dict[str, Any], epochs: int, split: str, lang: str = "en") -> str:
    """Return the line for a finished epoch, of up to `LINE_WIDTH` columns; metrics.jsonl has the rest."""
    translate = Translator(lang)
    best, memory = row.get("best"), row.get("memory")
    left = row.get("epochs_left", epochs - row["epoch"])
    size = row.get("steps_per_epoch", 0)
    if epochs == 1 and row.get("step", size) < size:  # a limit of steps or time ends within the first epoch
        head = translate("progress_part", done=row["step"], size=size)
    else:
        head = translate("progress_epoch", epoch=f"{row['epoch']:>{len(str(epochs))}}", epochs=epochs)
    metrics = {key: row[key] for key in ("train_loss", "val_loss", "top1")}
    line = f"{head}  {translate('progress_metrics', split=split_name(split, translate), **metrics)}"
    extras = (  # the most important first
        translate("progress_left", time=_duration(left * row["seconds"])) if left > 0 else "",
        translate("progress_best", top1=best["top1"]) if best and best["epoch"] != row["epoch"] else "",
        translate("progress_speed", n=row["images_per_second"]),
        f"{memory / 2**30:.1f} GiB" if memory else "",
        translate("progress_seconds", s=row["seconds"]),
    )
    for extra in filter(None, extras):
        if _columns(line) + 2 + _columns(extra) <= LINE_WIDTH:
            line += f"  {extra}"
    return line


def split_name(split: str, translate: Translator) -> str:
    """Return the short name of a data split beside its metrics, as in "val loss"."""
    return translate(f"progress_{split}") if split in ("train", "val", "test") else split


def _columns(text: str) -> int:
    """Return the width of a text on a terminal, where a Chinese character takes two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


class Plain:
    """For logs and pipes: one line per epoch, and every ten seconds of any other task."""

    translate = Translator()

    def __init__(self, clock: Callable[[], float] = time.monotonic, lang: str = "en") -> None:
        self._clock, self.translate = clock, Translator(lang)
        self._shown: dict[str, float] = {}  # by task: when it began, or its last line

    def __call__(self, done: int, total: int, what: str) -> None:
        now = self._clock()
        if done == 0:  # a task begins, perhaps again
            self._shown[what] = now
        if now - self._shown.setdefault(what, now) >= PLAIN_INTERVAL_S:
            self._shown[what] = now
            self.log(self.translate("progress_task", what=self.translate.sentence(what), done=done, total=total))
        if done == total:  # the task may be done again, as an evaluation is
            del self._shown[what]

    def log(self, text: str) -> None:
        print(escape(self.translate.sentence(text)), file=sys.stderr, flush=True)

    def step(self, position: Position, loss: float | None, top1: float | None) -> None:
        pass

    def epoch(self, row: dict[str, Any], epochs: int, split: str) -> None:
        self.log(epoch_line(row, epochs, split, self.translate.lang))

    def resume(self, rows: Sequence[dict[str, Any]]) -> None:
        pass

    def close(self) -> None:
        pass


class Silent(Plain):
    """No output, for tests and callers that read metrics.jsonl."""

    def __call__(self, done: int, total: int, what: str) -> None:
        pass

    def log(self, text: str) -> None:
        pass


class Live:
    """A progress bar with epoch, loss, top-1, images/s and the remaining time of the whole run."""

    _began: tuple[int, float] | None = None  # images done, and time, at the first step shown

    def __init__(self, lang: str = "en") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.translate = Translator(lang)
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self.translate.sentence("preparing"), text="…", total=1)
        self._bar.start()

    def __call__(self, done: int, total: int, what: str) -> None:
        self._show(done, total, escape(self.translate.sentence(what)), f"{done:,}/{total:,}" if total > 1 else "…")

    def _show(self, done: int, total: int, what: str, text: str) -> None:
        self._bar.update(self._task, description=what, completed=done, total=total, text=text)

    def log(self, text: str) -> None:
        text = self.translate.sentence(text)
        self._bar.console.print(escape(text), markup=False, highlight=False, soft_wrap=True)

    def step(self, position: Position, loss: float | None, top1: float | None) -> None:
        now = time.monotonic()
        epoch, epochs, done, total, run_done, run_total = position
        if self._began is None:
            self._began = (run_done, now)
        text = f"{done:,}/{total:,}"
        if loss is not None and top1 is not None:
            text = self.translate("progress_step", loss=loss, top1=top1)
        images, seconds = run_done - self._began[0], now - self._began[1]
        if images and seconds > 0:
            rate = images / seconds
            left = self.translate("progress_left", time=_duration((run_total - run_done) / rate))
            text += f"  {self.translate('progress_speed', n=rate)}  {left}"
        self._show(done, total, self.translate("progress_epoch", epoch=epoch, epochs=epochs), text)

    def epoch(self, row: dict[str, Any], epochs: int, split: str) -> None:
        self.log(epoch_line(row, epochs, split, self.translate.lang))

    def resume(self, rows: Sequence[dict[str, Any]]) -> None:
        pass

    def close(self) -> None:
        self._bar.stop()


class Notebook(Live):
    """The same in the output of a notebook's cell, with the learning curves, which stay when the work is done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, lang: str = "en") -> None:
        self._clock, self.translate = clock, Translator(lang)
        self._output: Any = None  # of the cell, once there is something to show
        self._state: tuple[int, int, str] | None = None
        self._rows: list[dict[str, Any]] = []  # of this training
        self._earlier: list[dict[str, Any]] = []  # before it was resumed
        self._epochs, self._split = 0, ""
        self._remarks: list[str] = []
        self._before = 0  # remarks before the last epoch, whose line stands below them
        self._updated = -math.inf
        self._show(0, 1, self.translate.sentence("preparing"), "…")
        self._updated = -math.inf  # the first number follows at once

    def _show(self, done: int, total: int, what: str, text: str) -> None:
        self._state = (done, total, f"{what}  {text}")
        if self._clock() - self._updated >= NOTEBOOK_INTERVAL_S:
            self._update()

    def log(self, text: str) -> None:
        self._remarks.append(escape(as_keywords(self.translate.sentence(text), self.translate.lang)))
        self._update()

    def epoch(self, row: dict[str, Any], epochs: int, split: str) -> None:
        self._rows.append(row)
        self._epochs, self._split, self._before = epochs, split, len(self._remarks)
        self._update()

    def resume(self, rows: Sequence[dict[str, Any]]) -> None:
        self._earlier = list(rows)

    def close(self) -> None:
        self._state = None
        if self._output is not None:
            self._update()

    def _update(self) -> None:
        from IPython.display import HTML, display  # type: ignore[import-not-found, unused-ignore]

        from alexnet.notebook.display import render_progress

        lang = self.translate.lang
        last = [epoch_line(self._rows[-1], self._epochs, self._split, lang)] if self._rows else []
        texts = self._remarks[: self._before] + last + self._remarks[self._before :]
        split = split_name(self._split, self.translate)
        rows = self._earlier + self._rows if self._rows else []
        html = HTML(render_progress(self._state, rows, self._epochs, split, texts, lang))
        if self._output is None:
            self._output = display(html, display_id=True)
        else:
            self._output.update(html)
        self._updated = self._clock()


class HoldingBack:
    """Another `Progress` whose messages are kept in `messages` instead of being shown."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self.step, self.epoch, self.resume, self.close = display.step, display.epoch, display.resume, display.close
        self.messages: list[str] = []

    def __call__(self, done: int, total: int, what: str) -> None:
        self._display(done, total, what)

    def log(self, text: str) -> None:
        self.messages.append(text)


class WithTensorBoard:
    """Another `Progress`, plus event files with the learning curves for TensorBoard."""

    def __init__(self, display: Progress, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._display = display
        self._writer = SummaryWriter(str(folder))
        self.log, self.step, self.resume = display.log, display.step, display.resume

    def __call__(self, done: int, total: int, what: str) -> None:
        self._display(done, total, what)

    def epoch(self, row: dict[str, Any], epochs: int, split: str) -> None:
        self._display.epoch(row, epochs, split)
        names = {"train_loss": "loss/train", "val_loss": f"loss/{split}", "train_top1": "top1/train"}
        names |= {"top1": f"top1/{split}", "lr": "lr", "images_per_second": "images_per_second"}
        for key, name in names.items():
            self._writer.add_scalar(name, row[key], row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        self._display.close()


def check_tensorboard() -> None:
    """Raise `UserError` if the package tensorboard is not installed."""
    check_package("--tensorboard", "tensorboard", "tensorboard")


def _duration(seconds: float) -> str:
    minutes, s = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def default_progress(lang: str = "en") -> Progress:
    """Return `Live` on a terminal, `Notebook` in one, `Plain` elsewhere, and `Silent` on every rank but 0.

    Raises `UserError` for an unknown language.
    """
    if rank() > 0:
        return Silent()
    if in_notebook():
        return Notebook(lang=lang)
    return Live(lang) if sys.stderr.isatty() else Plain(lang=lang)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; IPython on a terminal is not."""
    ipython = sys.modules.get("IPython")  # imported before any cell runs
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
