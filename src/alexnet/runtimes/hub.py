"""A network as a Hugging Face Hub folder: config.json, model.safetensors and a model card.

    model = HubModel.from_pretrained("user/name")     # or a local folder
    model.push_to_hub("user/name")

`huggingface_hub` reads and writes it, an optional dependency (`pip install 'alexnet[hub]'`). Weights are safetensors,
so opening a folder cannot run code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from alexnet.data.transforms import MAX_STORED_SIDE, EvalTransform
from alexnet.errors import UserError
from alexnet.models.model import build, spec_from_dict
from alexnet.runtimes.convert import WithNormalization
from alexnet.runtimes.manifest import Manifest

_CARD = """---
{{ card_data }}
---

An AlexNet, exported by `alexnet export RUN huggingface`. `config.json` holds the architecture, the classes and the
preprocessing, `model.safetensors` the weights.

```python
from alexnet.runtimes.hub import HubModel

model = HubModel.from_pretrained("THIS FOLDER OR REPOSITORY")
```

`alexnet predict FOLDER IMAGE…` classifies images with it.
"""


class HubModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="alexnet",
    pipeline_tag="image-classification",
    tags=["alexnet"],
    model_card_template=_CARD,
):
    """A network with `from_pretrained` and `push_to_hub`, in evaluation mode.

    `spec` and `preprocess` are as in `model.json`. It takes normalized float32 N×C×size×size, or uint8 pixels if
    `pixels`, and returns float32 logits (N, classes). Raises `UserError` for a damaged configuration.
    """

    def __init__(
        self, spec: Mapping[str, Any], classes: Sequence[str], preprocess: Mapping[str, Any], pixels: bool = False
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.preprocess = EvalTransform.from_dict(preprocess, _empty_mean_image(preprocess))
        self.spec, self.pixels = spec_from_dict(spec), pixels
        network = build(self.spec)
        self.network: nn.Module = WithNormalization(network, self.preprocess) if pixels else network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def describe(self) -> Manifest:
        """Return the manifest of the folder, from its configuration. Raises `UserError`."""
        if self.preprocess.mean_image is not None and not self.pixels:
            raise UserError("This network subtracts a mean image, which it only holds if it takes pixels itself.")
        preprocess = replace(self.preprocess, mean_image=None)
        return Manifest("huggingface", self.spec.name, self.spec.to_dict(), self.classes, preprocess, self.pixels)


def _empty_mean_image(preprocess: Mapping[str, Any]) -> Tensor | None:
    """Return zeros of the mean image's shape: the mean image itself is loaded with the weights."""
    if not preprocess.get("mean_image"):
        return None
    side = min(int(preprocess.get("resize") or preprocess["size"]), MAX_STORED_SIDE)  # more is refused below
    return torch.zeros(int(preprocess.get("channels", 3)), side, side)
