"""Dead channels are counted where a channel never rises above zero."""

import torch

from alexnet.models.model import create_model
from alexnet.training.diagnostics import dead_channels


def test_channels_with_a_bias_far_below_zero_are_dead():
    model = create_model("cifar", width=0.125).train()
    images = torch.randn(8, 3, 32, 32)
    assert dead_channels(model, images)["relu1"] == 0
    with torch.no_grad():
        model.conv1.bias[:4] = -1e3
    found = dead_channels(model, images)
    assert found["relu1"] == 4 / len(model.conv1.bias)
    assert set(found) == {"relu1", "relu2", "relu3", "relu4", "relu5", "relu6", "relu7"}
    assert model.training


def test_other_networks_are_not_looked_at():
    assert dead_channels(create_model("torchvision/resnet18", num_classes=2, image_size=32), torch.zeros(1)) == {}
