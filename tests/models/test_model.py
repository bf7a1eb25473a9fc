"""Built networks: forward and backward passes, parity with references, and initial weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.errors import UserError
from alexnet.models.architectures import ARCHITECTURES, architecture
from alexnet.models.initial_weights import INITS
from alexnet.models.model import AlexNet, build, create_model, initialize
from alexnet.models.weights import load_weights


def small(name: str, **given: object) -> AlexNet:
    """The architecture with an eighth of the channels, at its own image size."""
    torch.manual_seed(0)
    return build(architecture(name, width=0.125, **given))  # type: ignore[arg-type]


def images(model: AlexNet, n: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    spec = model.spec
    return torch.randn(n, spec.in_channels, spec.image_size, spec.image_size, generator=generator).to(dtype)


# ── every architecture ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("norm", [None, "batch", "lrn", "none"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(name: str, norm: str | None) -> None:
    model = small(name, norm=norm, num_classes=5)
    logits = model(images(model))
    assert logits.shape == (2, 5)
    F.cross_entropy(logits, torch.tensor([0, 3])).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        assert p.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_place_relus_change_no_gradient(name: str) -> None:
    model = small(name).double().eval()
    plain = copy.deepcopy(model)
    for module in plain:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    x = images(model, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for network, given in zip((model, plain), inputs, strict=True):
        network(given).square().sum().backward()
    assert inputs[0].grad is not None
    assert torch.equal(inputs[0].grad, inputs[1].grad)  # type: ignore[arg-type]
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_activation_replaces_every_relu(activation: str) -> None:
    model = small("cifar", activation=activation)
    expected = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[activation]
    assert isinstance(model.get_submodule(f"{activation}1"), expected)
    assert sum(isinstance(m, expected) for m in model) == 7


def test_layer_names_are_numbered_as_in_the_paper() -> None:
    model = small("paper")
    with_parameters = [name for name, m in model.named_children() if list(m.parameters())]
    assert with_parameters == [*(f"conv{n}" for n in range(1, 6)), "fc6", "fc7", "fc8"]
    names = [name for name, _ in small("lenet").named_children()]
    assert [n for n in names if n.startswith(("conv", "fc"))] == ["conv1", "conv2", "fc3", "fc4", "fc5"]


# ── references ────────────────────────────────────────────────────────────────────────────────────


def test_torchvision_parity_both_ways() -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.alexnet(num_classes=20)
    torch.manual_seed(3)
    ours = create_model("torchvision", num_classes=20)
    x = images(ours)
    # The same seed draws the same weights and, in training, drops the same units.
    torch.manual_seed(4)
    expected = theirs.train()(x)
    torch.manual_seed(4)
    assert torch.equal(ours.train()(x), expected)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.001)
    load_weights(ours, theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-6)


def test_torchvision_parity_at_another_size() -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.alexnet(num_classes=4).eval()
    ours = load_weights(create_model("torchvision", num_classes=4, image_size=160), theirs.state_dict()).eval()
    x = images(ours)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


def test_paper_is_two_towers_that_meet_at_conv3() -> None:
    model = small("paper", num_classes=6).double().eval()
    w = {key: p.detach() for key, p in model.named_parameters()}
    x = images(model, dtype=torch.float64) * 30

    def half(key: str, tower: int) -> Tensor:
        return w[key].chunk(2)[tower]

    def normalized(a: Tensor) -> Tensor:  # the formula of section 3.3, whose alpha is not divided by 5
        squares = F.pad(a.square(), (0, 0, 0, 0, 2, 2))
        total = sum(squares[:, i : i + a.shape[1]] for i in range(5))
        return a / (2 + 1e-4 * total) ** 0.75

    towers = []
    for t in range(2):
        a = F.conv2d(F.pad(x, (0, 3, 0, 3)), half("conv1.weight", t), half("conv1.bias", t), stride=4)
        assert a.shape[-2:] == (55, 55)
        a = F.max_pool2d(normalized(a.relu()), 3, 2)
        a = F.conv2d(a, half("conv2.weight", t), half("conv2.bias", t), padding=2)
        towers.append(F.max_pool2d(normalized(a.relu()), 3, 2))
    both = torch.cat(towers, 1)
    for t in range(2):
        a = F.conv2d(both, half("conv3.weight", t), half("conv3.bias", t), padding=1).relu()
        a = F.conv2d(a, half("conv4.weight", t), half("conv4.bias", t), padding=1).relu()
        a = F.conv2d(a, half("conv5.weight", t), half("conv5.bias", t), padding=1).relu()
        towers[t] = F.max_pool2d(a, 3, 2)
    a = torch.cat(towers, 1).flatten(1)
    for n in (6, 7):
        a = F.linear(a, w[f"fc{n}.weight"], w[f"fc{n}.bias"]).relu()
    expected = F.linear(a, w["fc8.weight"], w["fc8.bias"])
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_code2012_pads_zeros_at_the_right_and_bottom() -> None:
    model = small("code2012")
    x = images(model)
    y = model[:2](x)  # pad1, conv1
    assert y.shape[-2:] == (55, 55)
    weight, bias = (model.get_parameter(f"conv1.{name}") for name in ("weight", "bias"))
    # The last output of a row sees pixels 216-223 and three columns of zeros.
    patch = torch.zeros(2, 3, 11, 11)
    patch[:, :, :8, :8] = x[:, :, 216:, 216:]
    expected = (patch[:, None] * weight).sum((2, 3, 4)) + bias
    torch.testing.assert_close(y[:, :, 54, 54], expected, rtol=1e-4, atol=1e-5)


def test_tutorial_000_gives_the_same_logits() -> None:
    pool, lrn = nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5)
    torch.manual_seed(5)
    convs = [
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), pool, lrn),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), pool, lrn),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), pool, lrn),
    ]
    head = [nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
    seed = nn.Sequential(*convs, nn.Flatten(), *head, nn.Linear(4096, 7)).train()
    torch.manual_seed(5)
    ours = create_model("torchvision-lrn", num_classes=7).train()
    x = images(ours)
    torch.manual_seed(6)
    expected = seed(x)
    torch.manual_seed(6)
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-6)


# ── initial weights ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("init", "stds", "biases"),
    [
        ("paper", [0.01] * 8, [0, 1, 0, 1, 1, 1, 1, 0]),
        ("code2012", [0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01], [0, 1, 0, 1, 1, 1, 1, 0]),
        ("caffe", [0.01] * 5 + [0.005, 0.005, 0.01], [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]),
        ("caffenet", [0.01] * 5 + [0.005, 0.005, 0.01], [0, 1, 0, 1, 1, 1, 1, 0]),
    ],
)
def test_initial_weights_of_2012(init: str, stds: list[float], biases: list[float]) -> None:
    model = small("paper", init=init)
    learned = [m for m in model if isinstance(m, (nn.Conv2d, nn.Linear))]
    for module, std, bias in zip(learned, stds, biases, strict=True):
        assert module.weight.std().item() == pytest.approx(std, rel=0.05)
        assert abs(module.weight.mean().item()) < std / 10
        assert module.bias is not None
        assert torch.equal(module.bias, torch.full_like(module.bias, bias))


def test_kaiming_and_xavier() -> None:
    model = small("cifar", init="kaiming")
    conv, fc = model.conv3, model.fc6
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(fc, nn.Linear)
    fan_out = conv.out_channels * 9
    assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not conv.bias.any()  # type: ignore[union-attr]
    assert not fc.bias.any()
    initialize(model, "xavier")
    bound = (6 / (fc.in_features + fc.out_features)) ** 0.5
    assert 0.98 * bound < fc.weight.abs().max() <= bound
    assert fc.bias.any()  # torch's default, which d2l leaves as it is


def test_initialize_redraws_everything() -> None:
    torch.manual_seed(0)
    fresh = create_model("cifar", width=0.125, init="torch", norm="batch")
    state = copy.deepcopy(fresh.state_dict())
    model = create_model("cifar", width=0.125, init="paper", norm="batch")
    model(images(model, 4))  # moves batch norm's running statistics
    torch.manual_seed(0)
    initialize(model, "torch")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match="did you mean 'kaiming'"):
        initialize(model, "kaimin")


@pytest.mark.parametrize("init", INITS)
def test_every_init_is_a_function_of_the_seed(init: str) -> None:
    first, second = small("cifar-towers", init=init), small("cifar-towers", init=init)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert all(p.isfinite().all() for p in first.parameters())


def test_paper_gain_keeps_the_gain_of_each_layer_of_the_paper_in_a_narrow_network() -> None:
    """In `paper` itself it draws the same weights as `paper`; else std × root of fan-in is the paper's."""
    full = create_model("paper", num_classes=2)
    torch.manual_seed(0)
    weights = [p.clone() for p in initialize(full, "paper").parameters()]
    torch.manual_seed(0)
    assert all(torch.equal(*pair) for pair in zip(weights, initialize(full, "paper-gain").parameters(), strict=True))
    narrow = small("cifar-towers", init="paper-gain")
    for name, fan_in in (("conv1", 363), ("conv2", 1200), ("conv4", 1728), ("fc6", 9216), ("fc7", 4096)):
        weight = narrow.get_submodule(name).weight
        assert weight.std().item() * weight[0].numel() ** 0.5 == pytest.approx(0.01 * fan_in**0.5, rel=0.1), name


# ── module behavior ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 32, 33), (2, 3, 224, 224), (3, 32, 32)])
def test_images_of_wrong_shape_name_conv1(shape: tuple[int, ...]) -> None:
    model = small("cifar")
    with pytest.raises(UserError, match=f"conv1 of 'cifar' expects .* N×3×32×32 and got {'×'.join(map(str, shape))};"):
        model(torch.zeros(shape))


def test_uint8_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"floating-point images and got torch\.uint8"):
        small("cifar")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_too_small_is_refused_before_building() -> None:
    with pytest.raises(UserError, match="too small for 'paper': pool5"):
        create_model("paper", image_size=32)


def test_copies_slices_and_pickles() -> None:
    model = small("code2012").eval()
    x = images(model)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    front, back = model[:5], model[5:]
    assert type(front) is nn.Sequential
    assert torch.equal(back(front(x)), model(x))
    assert model[1] is model.conv1


def test_compile_and_export() -> None:
    model = small("code2012").eval()
    x = images(model)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False).module()
    more = images(model, 3)
    torch.testing.assert_close(exported(more), model(more))


@pytest.mark.parametrize("name", ["code2012", "cifar-towers"])
def test_bfloat16_autocast_on_cpu(name: str) -> None:
    model = small(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(images(model)).float(), torch.tensor([0, 1]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
