"""The printed class of each architecture computes what ours does with the same weights, and starts as ours does."""

import ast
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from alexnet.errors import UserError
from alexnet.models.architectures import ARCHITECTURES, architecture
from alexnet.models.code import architecture_code, source_code
from alexnet.models.initial_weights import INITS
from alexnet.models.model import build
from alexnet.models.spec import MODIFICATIONS, AlexNetSpec, apply_modifications, layers, minimal_image_size

NORMS = ("auto", "lrn", "batch", "none")
TOLERANCE = 1e-12  # relative to the largest logit, in float64


def small(name: str, norm: str = "auto", **settings: object) -> AlexNetSpec:
    """The architecture with an eighth of its width, at the smallest size that leaves 2×2 values to flatten."""
    spec = architecture(
        name, **{"norm": None if norm == "auto" else norm, "width": 0.125, "num_classes": 10, **settings}
    )
    side = minimal_image_size(spec)
    while next(layer.input for layer in layers(replace(spec, image_size=side)) if layer.kind == "flatten")[1] < 2:
        side += 1
    return replace(spec, image_size=side)


def printed_class(spec: AlexNetSpec) -> type[nn.Module]:
    """Execute the source in an empty namespace."""
    namespace: dict[str, object] = {}
    exec(source_code(spec), namespace)
    (found,) = [value for value in namespace.values() if isinstance(value, type)]
    return found


def both_networks(spec: AlexNetSpec) -> tuple[nn.Module, nn.Module]:
    """Ours and the printed one, in float64, with the same random weights, biases and running statistics."""
    torch.manual_seed(0)
    ours = build(spec).double()
    with torch.no_grad():
        for name, tensor in ours.state_dict().items():
            if name.endswith("weight") and tensor.dim() > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    printed = printed_class(spec)().double()
    assert list(printed.state_dict()) == list(ours.state_dict())  # by name and by position
    printed.load_state_dict(ours.state_dict())
    return ours, printed


def levels(spec: AlexNetSpec, n: int = 2) -> Tensor:
    """Images of about the values of 2012, ±128, at which LRN is far from a constant; small ones for other activations
    than ReLU, which would saturate."""
    scale = 100 if spec.activation == "relu" else 1
    return scale * torch.randn(n, spec.in_channels, spec.image_size, spec.image_size, dtype=torch.float64)


@torch.no_grad()
def largest_difference(spec: AlexNetSpec) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    ours, printed = both_networks(spec)
    images = levels(spec)
    expected, found = ours.eval()(images), printed.eval()(images)
    assert found.shape == expected.shape
    assert expected.std() > 0
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_ours(name, norm):
    assert largest_difference(small(name, norm)) < TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_another_norm_would_be_found(name, monkeypatch):
    """Logits at these inputs depend on the normalization, so that the test above can fail."""
    spec = small(name, "lrn")
    other = replace(spec, **{key: replace(getattr(spec, key), beta=0.8) for key in ("lrn", "spatial_norm")})
    source = source_code(other)
    monkeypatch.setattr(sys.modules[__name__], "source_code", lambda _: source)
    assert largest_difference(spec) > 1000 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_the_whole_network_are_ours(name, norm):
    difference = largest_difference(architecture(name, norm=None if norm == "auto" else norm))
    print(f"{name} {norm} {difference:.1e}")  # the table, with -s
    assert difference < TOLERANCE


@pytest.mark.parametrize(
    "settings", [{"in_channels": 1}, {"activation": "tanh"}, {"dropout": 0.0}, {"width": 0.3}], ids=str
)
@pytest.mark.parametrize("name", ["code2012", "torchvision-lrn", "cifar"])
def test_settings_are_kept(name, settings):
    assert largest_difference(small(name, **settings)) < TOLERANCE


def test_any_image_size_is_pooled_to_what_fc6_expects():
    spec = architecture("torchvision", image_size=100, width=0.125)
    assert "F.adaptive_avg_pool2d(x, 6)" in source_code(spec)
    assert largest_difference(spec) < TOLERANCE


@pytest.mark.parametrize("modification", MODIFICATIONS)
def test_modifications_are_kept(modification):
    spec = apply_modifications(small("cifar-towers"), (modification,))
    assert largest_difference(spec) < TOLERANCE
    assert source_code(spec).startswith('"""A variant of \'cifar-towers\': ')
    assert modification in source_code(spec).splitlines()[0]


def test_pools_that_differ_have_names_of_their_own():
    spec = small("convnet-26")
    first, *others = spec.convs
    assert "self.max_pool = nn.MaxPool2d" in source_code(spec)
    spec = replace(spec, convs=(first, *(replace(conv, pool="max", pool_kernel=2) for conv in others)))
    source = source_code(spec)
    assert source.count("self.pool1 = nn.MaxPool2d(kernel_size=3, ") == 1
    assert source.count("self.pool2 = nn.MaxPool2d(kernel_size=2, ") == 1
    assert source.count("self.pool2(x)") == 2
    assert largest_difference(spec) < TOLERANCE


@pytest.mark.parametrize(("name", "norm"), [("cifar-towers", "lrn"), ("code2012", "auto"), ("torchvision", "batch")])
def test_a_training_step_has_the_same_gradients(name, norm):
    """With the same masks of dropout: both draw them in the same order."""
    spec = small(name, norm)
    ours, printed = both_networks(spec)
    images, labels = levels(spec, 4), torch.tensor([1, 2, 3, 4])
    for network in (ours, printed):
        torch.manual_seed(1)
        nn.functional.cross_entropy(network.train()(images), labels).backward()
    for (key, expected), found in zip(ours.named_parameters(), printed.parameters(), strict=True):
        assert (found.grad - expected.grad).abs().max() <= TOLERANCE * expected.grad.abs().max(), key
    for key, expected in ours.state_dict().items():  # running statistics
        torch.testing.assert_close(printed.state_dict()[key], expected, rtol=TOLERANCE, atol=0)


def initial_weights(network: type[nn.Module] | AlexNetSpec, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The initial state where each random draw gives its standard deviation, or its bound if it is uniform."""
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "normal_", lambda tensor, mean=0.0, std=1.0, **_: tensor.fill_(std))
        patch.setattr(Tensor, "uniform_", lambda tensor, low=0.0, high=1.0, **_: tensor.fill_(high))
        return (build(network) if isinstance(network, AlexNetSpec) else network()).state_dict()


@pytest.mark.parametrize("init", [None, *INITS])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_initial_weights_are_drawn_as_ours(name, init, monkeypatch):
    spec = architecture(name, init=init, width=0.0625, num_classes=10, norm="batch" if init == "paper" else None)
    expected = initial_weights(spec, monkeypatch)
    found = initial_weights(printed_class(spec), monkeypatch)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, msg=key)


def test_default_weights_are_the_same_numbers():
    spec = small("torchvision")
    torch.manual_seed(3)
    expected = build(spec).state_dict()
    torch.manual_seed(3)
    found = printed_class(spec)().state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_source_is_plain_ascii_python_that_imports_torch_alone(tmp_path):
    for name in ARCHITECTURES:
        for norm in NORMS:
            for width in (1.0, 0.125):
                source = architecture_code(name, norm=None if norm == "auto" else norm, width=width)
                assert source.isascii()
                assert max(map(len, source.splitlines())) <= 100
                assert source.endswith("\n")
                imports = [
                    node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))
                ]
                assert {ast.unparse(node) for node in imports} <= {
                    "import torch", "from torch import nn", "from torch.nn import functional as F",
                }  # fmt: skip
                (tmp_path / f"{name}-{norm}-{width}.py".replace("-", "_")).write_text(source)
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--line-length", "100"]
    rules = "E,F,W,I,B,UP,SIM,RET"
    found = subprocess.run([*ruff, "--select", rules, tmp_path], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_the_source_runs_as_a_script(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(architecture_code("lenet"))
    found = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (found.stdout, found.stderr) == ("torch.Size([2, 10])\n", "")


def test_the_source_of_the_paper_reads_as_expected():
    source = architecture_code("paper")
    first, *lines = source.splitlines()
    assert first == '"""NIPS 2012 as printed: two towers, LRN before overlapping pools.'
    for line in [
        "def local_response_norm(x, size=5, alpha=0.0005, beta=0.75, k=2.0, towers=2):",
        "class AlexNet(nn.Module):",
        "    def __init__(self, num_classes=1000):",
        "        self.conv1 = nn.Conv2d(3, 96, kernel_size=11, stride=4)",
        "        self.conv2 = nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2)",
        "        self.fc6 = nn.Linear(256 * 6 * 6, 4096)",
        "        self.fc8 = nn.Linear(4096, num_classes)",
        "        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)",
        "        self.dropout = nn.Dropout(p=0.5)",
        "                nn.init.normal_(layer.weight, std=0.01)",
        "        for layer in (self.conv2, self.conv4, self.conv5, self.fc6, self.fc7):",
        "        x = F.pad(x, (0, 3, 0, 3))  # N x 3 x 227 x 227 (3 zeros at the right and bottom)",
        "        x = F.relu(self.conv1(x))   # N x 96 x 55 x 55",
        "        x = local_response_norm(x)  # N x 96 x 55 x 55",
        "        x = self.pool(x)            # N x 96 x 27 x 27",
        "        x = x.flatten(start_dim=1)  # N x 9216",
        "        return self.fc8(x)          # N x num_classes",
    ]:
        assert line in lines
    assert "60,965,224 parameters" in source
    assert len(lines) < 100


def test_every_line_of_the_forward_pass_states_its_shape():
    for name in ARCHITECTURES:
        tree = source_code(small(name)).split("    def forward(self, x):")[1].split("\n\n\n")[0]
        assert all("# N x " in line for line in tree.splitlines() if line), name


def test_torchs_own_layer_serves_where_there_are_no_towers():
    assert "self.lrn = nn.LocalResponseNorm(size=5, alpha=0.0001, beta=0.75, k=1.0)" in architecture_code("caffe")


def test_the_code_of_torchvisions_classifiers_is_in_torchvision():
    with pytest.raises(
        UserError, match=r"'torchvision/resnet18' is that of torchvision, in torchvision/models/resnet\.py"
    ):
        architecture_code("torchvision/resnet18")
    with pytest.raises(UserError, match="no torchvision classifier 'resnet81'"):
        architecture_code("torchvision/resnet81")
