"""Learning rate schedules, parameter groups, and SGD as in 2012 against its formula."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from alexnet.models.layers import Dropout
from alexnet.models.model import create_model
from alexnet.training.optim import (
    SGD2012,
    dropout_keep_prob_by_layer,
    learning_rate,
    make_optimizer,
    plateau_drops,
    plateau_ended,
    scale_for_2012_dropout,
    schedule_at,
)
from alexnet.training.recipe import Recipe
from alexnet.training.recipes import SCHEDULE_145, named_recipe
from alexnet.training.settings import LayerWeightDecay, ScheduleChange

BASE = Recipe().replace(lr=0.1, epochs=4)


def rates(recipe: Recipe, steps_per_epoch: int = 10) -> list[float]:
    return [learning_rate(recipe, step, steps_per_epoch) for step in range(recipe.schedule.epochs * steps_per_epoch)]


def test_constant_schedule_with_warmup():
    assert set(rates(BASE.replace(schedule="constant"))) == {0.1}
    warm = rates(BASE.replace(schedule="constant", warmup=0.5))
    assert warm[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


def test_step_schedule_drops_at_epoch_boundaries():
    found = rates(BASE.replace(schedule="step", lr_step_size=2, lr_gamma=0.1))
    assert found[:20] == pytest.approx([0.1] * 20)
    assert found[20:] == pytest.approx([0.01] * 20)


def test_cosine_schedule_falls_to_the_final_ratio():
    found = rates(BASE.replace(schedule="cosine", final_lr_ratio=0.1))
    assert found[0] == pytest.approx(0.1)
    assert found[20] == pytest.approx(0.01 + 0.09 / 2)
    assert found[-1] == pytest.approx(0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi * 39 / 40)))
    assert found == sorted(found, reverse=True)


def test_one_cycle_schedule_rises_to_the_peak_and_falls_to_zero():
    found = rates(BASE.replace(schedule="one-cycle", pct_start=0.25))
    top = found.index(max(found))
    assert top == 10
    assert max(found) == pytest.approx(0.1)
    assert found[:top] == sorted(found[:top])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert 0 < found[-1] < 0.005
    assert found[0] == pytest.approx(0.1 / 11)


def test_plateau_schedule_waits_for_patience():
    assert plateau_drops([], 1) == 0
    assert plateau_drops([1.0, 0.9, 0.9, 0.9], 1) == 1
    assert plateau_drops([1.0, 0.9, 0.95, 0.8, 0.85], 1) == 0
    assert plateau_drops([1.0] * 5, 1) == 2  # the count restarts after each drop
    recipe = BASE.replace(schedule="plateau", patience=0, lr_gamma=0.5)
    assert learning_rate(recipe, 20, 10, [1.0, 2.0, 2.0]) == pytest.approx(0.025)
    assert learning_rate(recipe.replace(max_drops=1), 20, 10, [1.0, 2.0, 2.0]) == pytest.approx(0.05)


def test_a_plateau_after_the_last_drop_ends_training():
    history = [{"val_loss": 1.0, "top1": 0.5}] * 4  # three drops
    recipe = BASE.replace(schedule="plateau", patience=0)
    assert not plateau_ended(recipe, history)
    assert not plateau_ended(recipe.replace(max_drops=3), history)
    assert plateau_ended(recipe.replace(max_drops=2), history)
    assert not plateau_ended(BASE.replace(schedule="step", max_drops=0), history)


def test_layers_with_a_weight_decay_of_their_own():
    own = (LayerWeightDecay(("fc4",), 1.0),)
    recipe = named_recipe("convnet-18")
    assert recipe.optimization.layer_weight_decay == own
    model = create_model("convnet-18")
    found = {(g["layer"], g["kind"]): g["weight_decay"] for g in make_optimizer(model, recipe).param_groups}
    assert found == {(name, "weights"): 0.004 for name in ("conv1", "conv2", "conv3")} | {("fc4", "weights"): 1.0} | {
        (name, "biases"): 0.0 for name in ("conv1", "conv2", "conv3", "fc4")
    }


@pytest.mark.parametrize("decay_biases", [True, False])
def test_biases_decay_only_with_decay_biases(decay_biases):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = make_optimizer(model, BASE.replace(weight_decay=0.5, decay_biases=decay_biases))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.5 if parameter.ndim > 1 or decay_biases else 0.0)


def test_plain_sgd_equals_torch_sgd():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    reference = nn.Linear(3, 2)
    reference.load_state_dict(model.state_dict())
    ours = make_optimizer(model, BASE.replace(weight_decay=0.01))
    torchs = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        x = torch.randn(5, 3)
        for net, optimizer in ((model, ours), (reference, torchs)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(model.weight, reference.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.bias, reference.bias, rtol=1e-6, atol=1e-7)


SHAPES = ((4, 3), (5,), (2, 3, 3, 3))
RATES = [0.1] * 8 + [0.01] * 4 + [0.0] * 3 + [0.001] * 5


def gradient(w: np.ndarray, step: int, index: int) -> np.ndarray:
    """Return the gradient of a quadratic bowl whose center changes at every step."""
    return w - np.random.default_rng([step, index]).normal(size=w.shape)


def starts() -> list[np.ndarray]:
    return [np.random.default_rng(i).normal(size=shape) for i, shape in enumerate(SHAPES)]


def descend(
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.Tensor],
    rates: list[float],
    first: int = 0,
):
    """Yield copies of the parameters after each step."""
    for step, lr in enumerate(rates, first):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, p in enumerate(parameters):
            p.grad = torch.from_numpy(gradient(p.detach().numpy(), step, i))
        optimizer.step()
        yield [p.detach().clone() for p in parameters]


def tensors() -> list[torch.Tensor]:
    return [torch.from_numpy(w).requires_grad_() for w in starts()]


def test_sgd2012_equals_the_formula_of_the_2012_code():
    """src/weights.cu in NumPy, over 20 steps with changes of the rate, also to 0 and back."""
    momentum, decay = 0.9, 0.005
    weights, velocities = starts(), [np.zeros(shape) for shape in SHAPES]
    parameters = tensors()
    optimizer = SGD2012(parameters, lr=1.0, momentum=momentum, weight_decay=decay)
    for step, found in enumerate(descend(optimizer, parameters, RATES)):
        lr = RATES[step]
        for i, w in enumerate(weights):
            if lr > 0:
                velocities[i] = momentum * velocities[i] - decay * lr * w - lr * gradient(w, step, i)
                weights[i] = w + velocities[i]
            np.testing.assert_allclose(found[i].numpy(), weights[i], rtol=0, atol=1e-12)
            buffer = optimizer.state[parameters[i]]["momentum_buffer"]
            np.testing.assert_allclose(buffer.numpy(), velocities[i], rtol=0, atol=1e-12)
    assert step == 19


def test_sgd2012_differs_from_torch_sgd_only_after_the_rate_changes():
    ours, theirs = tensors(), tensors()
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.005}
    ours_after = descend(SGD2012(ours, **settings), ours, [0.1] * 10 + [0.01] * 10)
    theirs_after = descend(torch.optim.SGD(theirs, **settings), theirs, [0.1] * 10 + [0.01] * 10)
    for step, (a, b) in enumerate(zip(ours_after, theirs_after, strict=True)):
        difference = max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))
        assert difference < 1e-12 if step < 10 else difference > 1e-3, step


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sgd2012_updates_float32_kernels_in_either_memory_format(layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, 3).to(memory_format=layout)
    x = torch.randn(4, 6, 8, 8).contiguous(memory_format=layout)
    optimizer = SGD2012(conv.parameters(), lr=0.01, weight_decay=0.1)
    expected = [p.detach().clone() for p in conv.parameters()]
    velocities = [torch.zeros_like(p) for p in expected]
    for lr in (0.01, 0.01, 1e-5, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        conv(x).square().mean().backward()
        for w, v, p in zip(expected, velocities, conv.parameters(), strict=True):
            v.mul_(0.9).sub_(lr * (p.grad + 0.1 * w))
            w.add_(v)
        optimizer.step()
        for w, p in zip(expected, conv.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-5, atol=1e-7)


def test_sgd2012_skips_frozen_groups_and_parameters_without_gradient():
    moving, frozen, idle = tensors()
    optimizer = SGD2012([{"params": [moving, idle]}, {"params": [frozen]}], lr=0.1)
    for p in (moving, frozen):
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.0
    before = [p.detach().clone() for p in (moving, frozen, idle)]
    velocity = optimizer.state[frozen]["momentum_buffer"].clone()
    assert velocity.abs().min() > 0  # the velocity would move it
    optimizer.step()
    assert not torch.equal(moving, before[0])
    assert torch.equal(frozen, before[1])
    assert torch.equal(optimizer.state[frozen]["momentum_buffer"], velocity)
    assert torch.equal(idle, before[2])
    assert idle not in optimizer.state


def test_sgd2012_resumes_exactly_from_its_state():
    unbroken, first = tensors(), tensors()
    *_, expected = descend(SGD2012(unbroken, lr=1.0), unbroken, RATES)
    optimizer = SGD2012(first, lr=1.0)
    *_, half = descend(optimizer, first, RATES[:9])
    second = [w.clone().requires_grad_() for w in half]
    restored = SGD2012(second, lr=1.0)
    restored.load_state_dict(optimizer.state_dict())
    *_, found = descend(restored, second, RATES[9:], first=9)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


HAND = BASE.replace(schedule="constant", lr=0.01, bias_lr_mult=2.0, pca_noise=0.1)


def test_the_schedule_of_the_2012_run_at_every_change():
    """Rates of conv1 and of the other layers as (weights, biases), and the PCA noise, from each epoch on."""
    recipe = named_recipe("imagenet-2012-continued")  # which begins as imagenet-2012
    assert recipe.schedule.lr_changes[: len(SCHEDULE_145)] == SCHEDULE_145
    early, late, frozen = (0.01, 0.02), (1e-3, 0.02), (0.0, 0.0)
    table = {
        1: (early, early, 0.1),
        25: (late, late, 0.1),
        51: ((1e-4, 0.02), (1e-4, 0.02), 0.1),
        67: ((1e-5, 0.02), (1e-4, 0.02), 0.0),
        72: (frozen, (1e-4, 0.02), 0.0),
        79: (frozen, (1e-5, 0.02), 0.0),
        91: (frozen, (1e-3, 0.02), 0.1),
        107: (frozen, (1e-4, 0.02), 0.1),
        124: (frozen, (1e-5, 0.02), 0.0),
    }
    spe = 7
    for (epoch, (first, others, noise)), end in zip(table.items(), [*list(table)[1:], 135], strict=True):
        for step in ((epoch - 1) * spe, (end - 1) * spe - 1):  # its first and its last
            now = schedule_at(recipe, step, spe)
            assert (now.rate("conv1", "weights"), now.rate("conv1", "biases")) == first, epoch
            for layer in ("conv2", "conv5", "fc6", "fc8"):
                assert (now.rate(layer, "weights"), now.rate(layer, "biases")) == others, epoch
            assert now.lr == others[0]
            assert now.pca_noise == noise


def test_a_change_sets_only_the_rates_it_names():
    changes = (
        ScheduleChange(2, ("fc8",), bias_lr=0.5), ScheduleChange(3, lr=0.3),
        ScheduleChange(3, ("conv1", "fc8"), lr=0.4), ScheduleChange(4, bias_lr=0.6)
    )  # fmt: skip
    recipe = HAND.replace(lr_changes=changes)
    found = [schedule_at(recipe, 10 * epoch, 10) for epoch in range(4)]
    assert [p.rate("fc8", "weights") for p in found] == [0.01, 0.01, 0.4, 0.4]
    assert [p.rate("fc8", "biases") for p in found] == [0.02, 0.5, 0.5, 0.6]
    assert [p.rate("fc7", "weights") for p in found] == [0.01, 0.01, 0.3, 0.3]
    assert [p.rate("fc7", "biases") for p in found] == [0.02, 0.02, 0.02, 0.6]
    assert {p.pca_noise for p in found} == {0.1}


def test_biases_follow_every_schedule_at_their_multiple():
    for schedule in ("constant", "step", "cosine", "one-cycle"):
        recipe = BASE.replace(schedule=schedule, lr_step_size=1, bias_lr_mult=2.0)
        for step in (0, 13, 39):
            now = schedule_at(recipe, step, 10)
            assert now.lr == learning_rate(recipe, step, 10)
            assert now.rate("conv1", "biases") == 2 * now.lr


def test_plateau_uses_loss_or_error():
    """The loss improves in every epoch, the accuracy only in the first."""
    history = [{"val_loss": 1 / n, "top1": 0.5} for n in range(1, 6)]
    recipe = BASE.replace(schedule="plateau", patience=1, lr_gamma=0.1)
    assert schedule_at(recipe, 50, 10, history).lr == pytest.approx(0.1)
    assert schedule_at(recipe.replace(plateau_on="error"), 50, 10, history).lr == pytest.approx(0.001)
    better = [{"val_loss": 1.0, "top1": n / 10} for n in range(5)]
    assert schedule_at(recipe.replace(plateau_on="error"), 50, 10, better).lr == pytest.approx(0.1)


def small_network() -> nn.Sequential:
    layers = {"conv1": nn.Conv2d(3, 4, 3), "norm1": nn.BatchNorm2d(4), "fc8": nn.Linear(4, 2)}
    network = nn.Sequential()
    for name, module in layers.items():
        network.add_module(name, module)
    return network


def test_parameter_groups_and_their_rates():
    network = small_network()
    plain = make_optimizer(network, BASE)
    assert [(g["kind"], g["weight_decay"], g["fused"]) for g in plain.param_groups] == [
        ("weights", BASE.optimization.weight_decay, True), ("biases", BASE.optimization.weight_decay, True)
    ]  # fmt: skip
    recipe = HAND.replace(
        decay_biases=False,
        optimizer="sgd2012",
        lr_changes=(ScheduleChange(2, ("conv1",), lr=0.0),),
    )
    ours = make_optimizer(network, recipe)
    assert isinstance(ours, SGD2012)
    # the order of the parameters is the same, so the optimizer state of either fits
    order = [[id(p) for g in o.param_groups for p in g["params"]] for o in (plain, ours)]
    assert order[0] == order[1]
    schedule_at(recipe, 10, 10).set_rates(ours)
    assert [(g["layer"], g["kind"], g["lr"], g["weight_decay"]) for g in ours.param_groups] == [
        ("conv1", "weights", 0.0, BASE.optimization.weight_decay),
        ("fc8", "weights", 0.01, BASE.optimization.weight_decay),
        ("conv1", "biases", 0.02, 0.0),
        ("norm1", "biases", 0.02, 0.0),
        ("fc8", "biases", 0.02, 0.0),
    ]


def test_2012_dropout_trains_the_same_network_with_half_the_weights():
    """Against the 2012 form: training does not scale kept units, testing multiplies all units by .5."""
    recipe = Recipe().replace(
        optimizer="sgd2012", dropout_2012=True, lr=0.05, schedule="constant", weight_decay=0.01, bias_lr_mult=2.0,
        decay_biases=False, lr_changes=(ScheduleChange(3, lr=0.005),),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (16,), generator=generator)
    model = nn.Sequential(OrderedDict(drop7=Dropout(0.5, 6), fc8=nn.Linear(6, 3))).double()
    weight, bias = model.fc8.weight.detach().clone(), model.fc8.bias.detach().clone()
    scale_for_2012_dropout(model)
    optimizer = make_optimizer(model, recipe)
    velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    for step in range(6):
        kept = torch.empty(16, 6).bernoulli_(0.5, generator=generator).double()
        now = schedule_at(recipe, step, steps_per_epoch=1)
        # as in 2012
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        nn.functional.cross_entropy(nn.functional.linear(x * kept, w, b), y).backward()
        velocity = 0.9 * velocity - now.lr * 0.01 * weight - now.lr * w.grad
        bias_velocity = 0.9 * bias_velocity - now.bias_lr * b.grad
        weight, bias = weight + velocity, bias + bias_velocity
        # as here
        model.drop7.mask = kept / 0.5
        now.set_rates(optimizer)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        torch.testing.assert_close(model.fc8.weight.detach(), weight / 2)
        torch.testing.assert_close(model.fc8.bias.detach(), bias)
    assert velocity.abs().max() > 1e-3
    model.eval()
    torch.testing.assert_close(model(x), nn.functional.linear(x * 0.5, weight, bias))


@pytest.mark.parametrize(
    ("arch", "found"),
    [
        ("cifar-towers", {"fc7": 0.5, "fc8": 0.5}),  # dropout after fc6 and fc7, as in 2012
        ("cifar", {"fc6": 0.5, "fc7": 0.5}),  # before them, as in torchvision
        ("lenet", {}),
    ],
)
def test_layers_after_dropout_and_their_keep_probability(arch, found):
    assert dropout_keep_prob_by_layer(create_model(arch, width=0.125 if arch != "lenet" else None)) == found
