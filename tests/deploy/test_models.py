"""The networks of a server: their names, and that looking inside one leaves the answers alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.deploy.models import Models, open_models
from alexnet.errors import UserError


def test_networks_are_called_by_their_folder_and_a_second_one_gets_a_number(small_run: Path, checkpoint: Path) -> None:
    models = open_models([small_run, checkpoint, small_run])
    assert list(models) == ["small", checkpoint.name, "small-2"]
    assert models.default == "small"
    assert models["small"].architecture == "cifar"
    assert models["small"].run is not None
    assert models[checkpoint.name].run is None


def test_the_network_for_looking_shares_weights_and_not_hooks(checkpoint: Path) -> None:
    served = open_models([checkpoint])[checkpoint.name]
    assert served.opened is not None
    answering, looking = served.classifier.model, served.opened.model
    pairs = list(zip(answering.parameters(), looking.parameters(), strict=True))
    assert pairs
    assert all(a is b for a, b in pairs)
    seen: list[str] = []
    for module in looking.modules():
        module.register_forward_hook(lambda *_: seen.append("hooked"))
    pixels = torch.from_numpy(np.zeros((1, 3, 32, 32), np.uint8))
    served.classifier.probabilities(pixels)
    assert not seen
    looking(served.opened.preprocess.normalise(pixels))
    assert seen


def test_a_server_without_networks_is_refused() -> None:
    with pytest.raises(UserError, match="at least one network"):
        Models([])
