"""The public functions that combine packages, as the commands of the same names do.

`train` and `resume` write the report page after training; `alexnet.training.api` does the same without it. What the
others return displays itself in a notebook. `alexnet.report` and `alexnet.export` are in the packages of their names.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from alexnet.calls import check_arguments, check_keywords
from alexnet.device import rank
from alexnet.errors import UserError
from alexnet.inference import evaluate as inference
from alexnet.messages.translator import Translator
from alexnet.progress import Silent, default_progress, in_notebook
from alexnet.run_dir import Run
from alexnet.text import escape
from alexnet.training import api as training
from alexnet.training.api import TrainingResult
from alexnet.training.recipe import SETTINGS

if TYPE_CHECKING:
    from alexnet.ablation.results import Ablation
    from alexnet.data.quality.findings import Findings
    from alexnet.models.code import SourceCode
    from alexnet.models.summary import ArchitectureTable, Summary
    from alexnet.models.torchvision_models import TorchvisionSummary
    from alexnet.plots.style import Drawing

P = ParamSpec("P")


def with_page(train: Callable[P, TrainingResult]) -> Callable[P, TrainingResult]:
    """Return `train`, followed by `write_page`.

    It raises `WrongCall` for an argument that is no setting either.
    """
    known = dict.fromkeys([*signature(train).parameters, *SETTINGS])

    @wraps(train)
    def train_and_write_page(*arguments: P.args, **settings: P.kwargs) -> TrainingResult:
        check_keywords(f"alexnet.{train.__name__}", settings, known)
        Translator(str(settings.get("lang", "en")))  # raises for an unknown one before training
        return write_page(train(*arguments, **settings))

    return train_and_write_page


def write_page(result: TrainingResult) -> TrainingResult:
    """Write the report page of a finished run, in the language of `result`, on rank 0.

    An error is printed to stderr and not raised.
    """
    if rank() == 0:
        from alexnet.report.report import write_report

        try:
            shown = sys.stderr.isatty() or in_notebook()
            with closing(default_progress(result.lang) if shown else Silent()) as progress:
                progress(0, 1, "writing the report")
                write_report(Run(result.run), result.lang)
        except Exception as error:  # the run is complete on disk: its page must not fail it
            command = shlex.join(["alexnet", "report", str(result.run), "--lang", result.lang])
            message = f"The report could not be written: {error}; retry with: {command}"
            print(escape(message), file=sys.stderr, flush=True)
    return result


train = with_page(training.train)
resume = with_page(training.resume)


@wraps(inference.evaluate)
def evaluate(*arguments: Any, **options: Any) -> inference.Evaluation:
    if options.get("progress") is not None or not in_notebook():
        return inference.evaluate(*arguments, **options)
    with closing(default_progress(options.get("lang", "en"))) as progress:
        return inference.evaluate(*arguments, **{"log": progress.log, **options, "progress": progress})


def show(
    kind: str,
    *what: str | Path,
    out: str | Path | None = None,
    theme: str | None = None,
    lang: str = "en",
    **options: Any,
) -> Drawing:
    """Return a figure, such as of the filters of a run, or of what in an image decided.

    `plots.kinds.KINDS` lists the kinds with what each draws and its `options`. `out` also writes it to a file (.png,
    .svg or .html), as the figure's `save` does. Without a `theme` ("light", "dark") a notebook shows the figure in its
    own, and a file is light. Raises `UserError`.

    >>> figure = alexnet.show("filters", "last")  # in a notebook this shows it
    >>> _ = figure.save("filters.svg")
    >>> _ = alexnet.show("saliency", "last", "shades/light/1.png", method="occlusion", out="saliency.html")
    """
    from alexnet.plots.show import Options, draw
    from alexnet.plots.style import check_path

    check_arguments("alexnet.show", Options, [], options)

    if out is not None:
        check_path(Path(out))
    with closing(default_progress(lang)) as progress:
        figure = draw(kind, [str(one) for one in what], theme, lang, progress=progress, **options)
        if out is not None:
            figure.save(out)
    return figure


def check(data: str | Path | None = None, labels: str | Path | None = None, lang: str = "en") -> Findings:
    """Inspect a dataset before training: class folders, an archive of them, or a table `labels`. Raises `UserError`.

    A notebook shows what was found in the language `lang`, en or zh.

    >>> for label, level in {"dark": 0, "light": 255}.items():
    ...     Path("shades", label).mkdir(parents=True)
    ...     Image.new("L", (32, 32), level).save(f"shades/{label}/1.png")
    >>> found = alexnet.check("shades")
    >>> found.classes, found.bad
    ({'dark': 1, 'light': 1}, [])
    """
    from alexnet.data.quality.check import check_dataset

    if data is None and labels is None:
        raise UserError("Name the dataset: a folder, an archive, or labels, a table.")
    Translator(lang)  # raises for an unknown one before the images are read
    with closing(default_progress(lang)) as progress:
        found = check_dataset(Path(data) if data else None, Path(labels) if labels else None, progress)
    return replace(found, lang=lang)


def arch(
    name: str | None = None, *, lang: str = "en", **settings: Any
) -> ArchitectureTable | Summary | TorchvisionSummary:
    """Return the table of all architectures, or one layer by layer; `settings` are those of `create_model`.

    The table is a list of dicts, one for each architecture. Printed, or in a notebook, either is a table with output
    shapes (channels × height × width), parameters and multiply-accumulates, in the language `lang`, en or zh. Raises
    `UserError`.

    >>> alexnet.arch("paper").parameters
    60965224
    >>> [row["name"] for row in alexnet.arch() if row["image_size"] == 28]
    ['lenet']
    """
    from alexnet.models import describe
    from alexnet.models.model import create_model

    check_arguments("alexnet.arch", create_model, [name or "paper"], settings)
    if name is None and settings:
        raise UserError(f"Name an architecture to set its {next(iter(settings))}, such as alexnet.arch('paper').")
    Translator(lang)  # raises for an unknown one
    found = describe(name, **settings)
    if isinstance(found, list):
        found.lang = lang
        return found
    return replace(found, lang=lang)


def code(name: str, **settings: Any) -> SourceCode:
    """Return an architecture as plain PyTorch source, a string that a notebook shows with highlighted syntax.

    The class in it needs torch alone, and its state dict is that of `create_model(name, **settings)`. Raises
    `UserError`.

    >>> names = {}
    >>> exec(alexnet.code("lenet"), names)
    >>> names["LeNet"]()(torch.zeros(1, 1, 28, 28)).shape
    torch.Size([1, 10])
    """
    from alexnet.models.code import architecture_code
    from alexnet.models.model import create_model

    check_arguments("alexnet.code", create_model, [name], settings)
    return architecture_code(name, **settings)


def ablate(
    claim: str,
    *,
    data: str | Path | None = None,
    recipe: str | None = None,
    seeds: int | None = None,
    budget: float | None = None,
    out: str | Path = "runs/ablate",
    **settings: Any,
) -> Ablation:
    """Test a claim of the paper: train with and without the part over several seeds, and compare.

    `settings` are those of both recipes, such as `epochs`; the rest as `ablation.ablate.ablate`. Raises `UserError`.

    >>> result = alexnet.ablate("dropout", recipe="digits", seeds=2, epochs=1, width=0.125)
    >>> len(result.differences)  # one of each pair of runs with the same seed
    2
    """
    from alexnet.ablation import ablate as ablation
    from alexnet.ablation.claims import find_claim

    known = [*signature(ablate).parameters, *(name for name in SETTINGS if name not in ("seed", "name", "auto_fields"))]
    check_keywords("alexnet.ablate", settings, known)
    find_claim(claim)
    base = ablation.base_recipe(recipe, Path(data) if data else None, **settings)
    with closing(default_progress()) as progress:
        return ablation.ablate(claim, base=base, seeds=seeds, budget=budget, out=out, log=progress.log)
