"""Muon against an independent computation by singular value decomposition; its parameter groups; resuming."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from alexnet.models.model import create_model
from alexnet.training.muon import COEFFICIENTS, ITERATIONS, Muon, count_matrices, orthogonalize
from alexnet.training.optim import make_optimizer, schedule_at
from alexnet.training.recipe import Recipe
from alexnet.training.settings import LayerWeightDecay, ScheduleChange

RECIPE = Recipe().replace(
    optimizer="muon", lr=0.1, kernel_lr_mult=0.5, momentum=0.9, weight_decay=0.01, schedule="constant",
    decay_biases=False,
)  # fmt: skip


def two_groups() -> nn.Sequential:
    """Two convolutions, of which the second has two groups, and a linear layer."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 2))
    return layers.double()


def one_loss(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 3, 6, 6, generator=generator, dtype=torch.float64)
    return nn.functional.cross_entropy(model(x), torch.randint(2, (16,), generator=generator))


@pytest.mark.parametrize("shape", [(1, 8, 30), (3, 30, 8), (2, 6, 6), (2, 1, 9)])
def test_the_result_has_the_singular_vectors_and_singular_values_near_1(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=generator, dtype=torch.float64)
    found = orthogonalize(matrices)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    in_their_basis = u.mT @ found @ vh.mT  # diagonal if the singular vectors are the same
    values = in_their_basis.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(in_their_basis, torch.diag_embed(values), rtol=0, atol=1e-12)
    assert (s / s.norm(dim=1, keepdim=True)).min() > 0.002
    assert values.min() > 0.68
    assert values.max() < 1.21
    scaled = orthogonalize(1e-12 * matrices)
    torch.testing.assert_close(scaled, found, rtol=0, atol=1e-12)


def test_zero_stays_zero():
    assert orthogonalize(torch.zeros(2, 3, 4)).eq(0).all()


def step_by_svd(kernel: np.ndarray, direction: np.ndarray, matrices: int, lr: float) -> np.ndarray:
    """Return the kernel after a step, one matrix after the other in NumPy."""
    found = []
    for w, d in zip(np.split(kernel, matrices), np.split(direction, matrices), strict=True):
        u, s, vh = np.linalg.svd(d.reshape(len(d), -1), full_matrices=False)
        s = s / np.linalg.norm(s)
        for _ in range(ITERATIONS):
            s = sum(c * s**power for c, power in zip(COEFFICIENTS, (1, 3, 5), strict=True))
        w = w.reshape(len(w), -1)
        turned = w - lr * np.linalg.norm(w) * (u * s) @ vh / math.sqrt(len(s))
        found.append(turned * np.linalg.norm(w) / np.linalg.norm(turned))
    return np.concatenate(found).reshape(kernel.shape)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_equal_those_by_singular_value_decomposition(nesterov):
    model = two_groups()
    optimizer = make_optimizer(model, RECIPE.replace(nesterov=nesterov))
    expected = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    buffers = {name: np.zeros_like(w) for name, w in expected.items()}
    for step in range(3):
        optimizer.zero_grad()
        one_loss(model, step).backward()
        schedule_at(RECIPE, step, 10).set_rates(optimizer)
        optimizer.step()
        for name, p in model.named_parameters():
            g, w = p.grad.numpy(), expected[name]
            if name == "4.weight":
                g = g + 0.01 * w
            buffers[name] = 0.9 * buffers[name] + g
            direction = g + 0.9 * buffers[name] if nesterov else buffers[name]
            is_kernel = p.ndim == 4
            expected[name] = step_by_svd(w, direction, 2, 0.05) if is_kernel else w - 0.1 * direction
            np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=0, atol=1e-12)
            np.testing.assert_allclose(optimizer.state[p]["momentum_buffer"], buffers[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_float32_kernel_is_turned_at_constant_norm_in_either_memory_format(layout):
    model = two_groups().float().to(memory_format=layout)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = make_optimizer(model, RECIPE)
    for step in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.ones(4, 3, 6, 6) * step), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    for kernel, old in zip((p.detach() for p in model.parameters()), before, strict=True):
        if kernel.ndim == 4:
            assert kernel.is_contiguous(memory_format=layout)
            assert (kernel - old).norm() / old.norm() > 0.05
            for half, old_half in zip(kernel.chunk(2), old.chunk(2), strict=True):
                assert float(half.norm() / old_half.norm()) == pytest.approx(1, abs=1e-5)


def test_rates_of_zero_and_parameters_without_gradient():
    model = two_groups()
    optimizer = make_optimizer(model, RECIPE)
    one_loss(model, 0).backward()
    model[0].weight.grad = None
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old, rtol=1e-15, atol=0)
    assert model[0].weight not in optimizer.state
    model[2].weight.data.zero_()  # has no direction to be turned in
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert model[2].weight.eq(0).all()


@pytest.mark.parametrize(
    ("arch", "counts"),
    [
        ("cifar", {"conv1": 1, "conv2": 1, "conv3": 1, "conv4": 1, "conv5": 1}),
        ("cifar-towers", {"conv1": 2, "conv2": 2, "conv3": 2, "conv4": 2, "conv5": 2}),
    ],
)
def test_every_convolution_is_one_matrix_and_one_for_each_tower(arch, counts):
    model = create_model(arch, width=0.125)
    found = count_matrices(model)
    assert {name: found[model.get_parameter(f"{name}.weight")] for name in counts} == counts
    assert len(found) == len(counts)


def test_depthwise_convolutions_and_a_convolution_that_is_the_last_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1), nn.AvgPool2d(2))
    assert count_matrices(model) == {model[0].weight: 1, model[1].weight: 4}


def test_parameter_groups_with_and_without_rates_of_single_layers():
    model = create_model("cifar", width=0.0625, norm="batch")
    plain = make_optimizer(model, RECIPE)
    assert isinstance(plain, Muon)
    found = [(g["kind"], g["scale"], g["weight_decay"], len(g["params"])) for g in plain.param_groups]
    assert found == [("weights", 0.5, 0.0, 5), ("weights", 1.0, 0.01, 3), ("biases", 1.0, 0.0, 13)]
    recipe = RECIPE.replace(
        lr_changes=(ScheduleChange(2, ("conv1", "fc6"), lr=0.02),),
        layer_weight_decay=(LayerWeightDecay(("fc8",), 1.0),),
    )
    by_layer = make_optimizer(model, recipe)
    # the order of the parameters is the same, so the optimizer state of either fits
    order = [[id(p) for g in o.param_groups for p in g["params"]] for o in (plain, by_layer)]
    assert order[0] == order[1]
    schedule_at(recipe, 10, 10).set_rates(by_layer)
    rates = {(g["layer"], g["kind"]): (g["lr"], g["weight_decay"]) for g in by_layer.param_groups}
    assert rates["conv1", "weights"] == (0.01, 0.0)
    assert rates["conv2", "weights"] == (0.05, 0.0)
    assert rates["fc6", "weights"] == (0.02, 0.01)
    assert rates["fc8", "weights"] == (0.1, 1.0)


def test_it_resumes_exactly_from_its_state():
    def train(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            one_loss(model, step).backward()
            schedule_at(RECIPE, step, 10).set_rates(optimizer)
            optimizer.step()

    unbroken, first, second = two_groups(), two_groups(), two_groups()
    train(unbroken, make_optimizer(unbroken, RECIPE), range(7))
    optimizer = make_optimizer(first, RECIPE)
    train(first, optimizer, range(4))
    second.load_state_dict(first.state_dict())
    restored = make_optimizer(second, RECIPE)
    restored.load_state_dict(optimizer.state_dict())
    train(second, restored, range(4, 7))
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), unbroken.parameters(), strict=True))
