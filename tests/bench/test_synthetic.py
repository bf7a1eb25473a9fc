"""The synthetic step is the trainer's: it updates all weights, and refuses what `train` refuses."""

import pytest
import torch

from alexnet.bench.synthetic import BATCHES, synthetic_step
from alexnet.errors import UserError
from alexnet.training.step import TrainStep


@pytest.mark.parametrize(
    ("arch", "settings"), [("cifar", {"norm": "batch", "width": 0.125}), ("lenet", {}), ("torchvision/resnet18", {})]
)
def test_every_call_takes_one_step(arch, settings, monkeypatch):
    steps = []
    call = TrainStep.__call__

    def record(self, batch, epoch, number, hyperparameters):
        before = [p.detach().clone() for p in self.model.parameters()]
        result = call(self, batch, epoch, number, hyperparameters)
        changed = [not torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True)]
        steps.append((number, epoch, tuple(batch.images.shape[:2]), all(changed)))
        return result

    monkeypatch.setattr(TrainStep, "__call__", record)
    step = synthetic_step(arch, image_size=32, batch_size=4, precision="fp32", num_classes=3, settings=settings)
    for _ in range(BATCHES + 2):
        step()
    assert [s[0] for s in steps] == list(range(BATCHES + 2))
    assert {s[1] for s in steps} == {0, 1}
    assert all(s[2] == (4, 1 if arch == "lenet" else 3) and s[3] for s in steps)


def test_invalid_sizes_are_refused():
    with pytest.raises(UserError, match="too small"):
        synthetic_step("torchvision", image_size=32, batch_size=2)
    with pytest.raises(UserError, match="--batch-size must be greater than 0"):
        synthetic_step("cifar", batch_size=0)
