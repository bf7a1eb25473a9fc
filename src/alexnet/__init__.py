"""Every AlexNet, verified: train it, test it, look inside it, use it.

    import alexnet

    model = alexnet.create_model("paper")                     # an nn.Module, N×C×H×W float → N×classes logits
    result = alexnet.train("digits", epochs=5)                # a run folder
    alexnet.evaluate(result.run)                              # its figures
    alexnet.load(result.run).predict("seven.png")             # labels with probabilities

The names are imported when first used, so that `import alexnet` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet.errors import UserError as UserError
    from alexnet.inference.evaluate import evaluate as evaluate
    from alexnet.inference.predict import load as load
    from alexnet.networks.layers import LocalResponseNorm as LocalResponseNorm
    from alexnet.networks.model import create_model as create_model
    from alexnet.networks.weights import load_weights as load_weights
    from alexnet.training.start import resume as resume
    from alexnet.training.start import train as train

_HOMES = {
    "UserError": "alexnet.errors",
    "LocalResponseNorm": "alexnet.networks.layers",
    "create_model": "alexnet.networks.model",
    "load_weights": "alexnet.networks.weights",
    "load": "alexnet.inference.predict",
    "train": "alexnet.training.start",
    "resume": "alexnet.training.start",
    "evaluate": "alexnet.inference.evaluate",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'alexnet' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
