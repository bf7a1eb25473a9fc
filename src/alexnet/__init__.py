"""Every AlexNet, verified: train it, test it, look inside it, use it.

    import alexnet

    model = alexnet.create_model("paper")                     # an nn.Module, N×C×H×W float → N×classes logits
    result = alexnet.train("digits", epochs=5)                # a run folder
    alexnet.evaluate(result.run)                              # top-1, top-5, loss, per class
    alexnet.load(result.run).predict("seven.png")             # labels with probabilities
    alexnet.show("filters", result.run)                       # a figure, in a notebook or a file

`check`, `report`, `arch`, `code`, `ablate` and `export` are the commands of the same names. Names are
imported on first use, so that `import alexnet` is instant. To read the code, start with `models`, then
`data`, `training` and `inference`; what they share is in `run_dir`, `checkpoint`, `device`, `rng`,
`files` and `errors`.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import closing
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet.api import ablate as ablate
    from alexnet.api import arch as arch
    from alexnet.api import check as check
    from alexnet.api import code as code
    from alexnet.api import evaluate as evaluate
    from alexnet.api import resume as resume
    from alexnet.api import show as show
    from alexnet.api import train as train
    from alexnet.errors import UserError as UserError
    from alexnet.inference.predict import load as load
    from alexnet.models.layers import LocalResponseNorm as LocalResponseNorm
    from alexnet.models.model import create_model as create_model
    from alexnet.models.weights import load_weights as load_weights

_MODULES = {
    "UserError": "alexnet.errors",
    "LocalResponseNorm": "alexnet.models.layers",
    "create_model": "alexnet.models.model",
    "load_weights": "alexnet.models.weights",
    "load": "alexnet.inference.predict",
    "train": "alexnet.api",
    "resume": "alexnet.api",
    "evaluate": "alexnet.api",
    "show": "alexnet.api",
    "check": "alexnet.api",
    "arch": "alexnet.api",
    "code": "alexnet.api",
    "ablate": "alexnet.api",
}
_PACKAGES = ("report", "export")  # which can be called
_COMMANDS = ("bench", "doctor", "features", "pack", "serve")  # without a function here
__all__ = [*_MODULES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = getattr(_import(_MODULES[name]), name)
        return found if isinstance(found, type) else _public(name, found)
    if name in _PACKAGES:
        return importlib.import_module(f"alexnet.{name}")
    text = f"module 'alexnet' has no attribute '{name}'"
    if name.startswith("_"):  # as IPython and pickle ask for
        raise AttributeError(text)
    from alexnet.errors import NoSuchName, suggest

    if name == "predict":
        raise NoSuchName(f"{text}; predict with alexnet.load(RUN).predict(IMAGE).")
    if name in _COMMANDS:
        raise NoSuchName(f"{text}; it is a command: run 'alexnet {name}' in a terminal.")
    raise NoSuchName(text + (suggest(name, __all__) or "."))


def _import(module: str) -> ModuleType:
    """Import a module; a notebook shows something while that imports torch, which takes seconds the first time."""
    if "torch" not in sys.modules and "IPython" in sys.modules and module != "alexnet.errors":
        from alexnet.progress import default_progress, in_notebook

        if in_notebook():
            with closing(default_progress()) as progress:
                progress(0, 1, "loading PyTorch")
                return importlib.import_module(module)
    return importlib.import_module(module)


@cache
def _public(name: str, function: Any) -> Any:
    """Return a function as users call it: its errors name arguments, not flags."""
    from alexnet.calls import public

    return public(f"alexnet.{name}")(function)


def __dir__() -> list[str]:
    return __all__
