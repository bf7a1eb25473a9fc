import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from alexnet.training.optim import learning_rate, make_optimizer, plateau_drops
from alexnet.training.recipe import Recipe

BASE = Recipe(lr=0.1, epochs=4)


def rates(recipe: Recipe, steps_per_epoch: int = 10) -> list[float]:
    return [learning_rate(recipe, step, steps_per_epoch) for step in range(recipe.epochs * steps_per_epoch)]


def test_constant_and_warmup():
    assert set(rates(replace(BASE, schedule="constant"))) == {0.1}
    warm = rates(replace(BASE, schedule="constant", warmup=0.5))
    assert warm[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


def test_step_drops_at_whole_epochs():
    found = rates(replace(BASE, schedule="step", step_epochs=2, gamma=0.1))
    assert found[:20] == pytest.approx([0.1] * 20)
    assert found[20:] == pytest.approx([0.01] * 20)


def test_cosine_goes_from_the_rate_to_the_last():
    found = rates(replace(BASE, schedule="cosine", final_lr=0.1))
    assert found[0] == pytest.approx(0.1)
    assert found[20] == pytest.approx(0.01 + 0.09 / 2)
    assert found[-1] == pytest.approx(0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi * 39 / 40)))
    assert found == sorted(found, reverse=True)


def test_one_cycle_rises_to_the_peak_and_falls_to_zero():
    found = rates(replace(BASE, schedule="one-cycle", peak=0.25))
    top = found.index(max(found))
    assert top == 10
    assert max(found) == pytest.approx(0.1)
    assert found[:top] == sorted(found[:top])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert 0 < found[-1] < 0.005
    assert found[0] == pytest.approx(0.1 / 11)


def test_plateau_waits_for_patience():
    assert plateau_drops([], 1) == 0
    assert plateau_drops([1.0, 0.9, 0.9, 0.9], 1) == 1
    assert plateau_drops([1.0, 0.9, 0.95, 0.8, 0.85], 1) == 0
    assert plateau_drops([1.0] * 5, 1) == 2  # waits anew after each drop
    recipe = replace(BASE, schedule="plateau", patience=0, gamma=0.5)
    assert learning_rate(recipe, 20, 10, [1.0, 2.0, 2.0]) == pytest.approx(0.025)


@pytest.mark.parametrize("decay_biases", [True, False])
def test_weight_decay_of_vectors(decay_biases):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = make_optimizer(model, replace(BASE, weight_decay=0.5, decay_biases=decay_biases))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.5 if parameter.ndim > 1 or decay_biases else 0.0)


def test_plain_sgd_is_torchs():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    ours = make_optimizer(model, replace(BASE, weight_decay=0.01))
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        x = torch.randn(5, 3)
        for net, optimizer in ((model, ours), (twin, theirs)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.bias, twin.bias, rtol=1e-6, atol=1e-7)
