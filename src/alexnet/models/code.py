"""An architecture as plain PyTorch source: one class that needs torch alone, as a student would write it.

The class has the layers of `spec.layers` under the same names, so its state dict and that of `model.AlexNet` load into
each other. Layers without weights are shared (`self.pool`) or functions. The text is ASCII, which survives every
console and file encoding. Torch is imported only for the names of torchvision's classifiers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from alexnet.errors import UserError
from alexnet.models.architectures import ARCHITECTURES, TORCHVISION, architecture
from alexnet.models.initial_weights import INITS
from alexnet.models.spec import ACTIVATIONS, AlexNetSpec, Layer, LRNSpec, layers

LINE = 100  # characters
_CLASSES = {"lenet": "LeNet", "convnet-26": "ConvNet", "convnet-18": "ConvNet"}
_ACTIVATIONS = {"relu": "F.relu", "tanh": "torch.tanh", "sigmoid": "torch.sigmoid"}
_ASCII = str.maketrans({"×": "x", "→": "->"})


class SourceCode(str):
    """Python source, shown as it is by a console and with highlighted syntax by a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return f"```python\n{self}```"


def architecture_code(name: str, **settings: Any) -> SourceCode:
    """Return `source_code` of the architecture called `name`; `settings` are those of `architectures.architecture`.

    Raises its errors, and `UserError` for a classifier of torchvision, whose code is there.
    """
    if not name.startswith(TORCHVISION):
        return source_code(architecture(name, **settings))
    from torchvision import models

    from alexnet.models.torchvision_models import check_torchvision_name

    check_torchvision_name(name)
    file = models.get_model_builder(name.removeprefix(TORCHVISION)).__module__.replace(".", "/")
    raise UserError(
        f"The code of '{name}' is that of torchvision, in {file}.py; 'alexnet arch {name}' lists its layers."
    )


def source_code(spec: AlexNetSpec) -> SourceCode:
    """Return a module with a class for `spec`, initial weights included. Raises the errors of `spec.layers`."""
    rows = layers(spec)
    kinds = {row.kind for row in rows}
    name = _CLASSES.get(spec.name, "AlexNet")
    body: list[str] = []
    if "lrn" in kinds and spec.lrn.towers > 1:  # torch's own layer has no towers
        body += ["", "", *_lrn_function(spec.lrn)]
    if "rnorm" in kinds:
        body += ["", "", *_spatial_norm_function(spec.spatial_norm)]
    body += ["", "", *_class(name, spec, rows), "", "", *_example(name, rows[0])]
    functional = ["from torch.nn import functional as F"] if any("F." in line for line in body) else []
    return SourceCode(
        "\n".join([*_docstring(spec), "", "import torch", "from torch import nn", *functional, *body, ""])
    )


def _docstring(spec: AlexNetSpec) -> list[str]:
    """Return what the network is, where it comes from and, if it is as listed, how it departs from the paper's."""
    listed = ARCHITECTURES.get(spec.name, spec)
    departures = [text for text in (spec.repair, *spec.departures) if text]
    if changes := _changes(spec, listed):
        lines = [f"A variant of '{spec.name}': {', '.join(changes)}.", "", f"'{spec.name}' is: {spec.title}."]
        departures = []
    else:
        lines = [f"{spec.title}.", "", f"Called '{spec.name}' in the package alexnet."]
    lines.append(f"Source: {spec.source}.")
    if departures:
        lines += ["", "Different from the network that the paper prints:", *(f"- {text}" for text in departures)]
    wrapped = [_wrap(line.translate(_ASCII)) for line in lines]
    return "\n".join([f'"""{wrapped[0]}', *wrapped[1:], '"""']).splitlines()


def _changes(spec: AlexNetSpec, listed: AlexNetSpec) -> list[str]:
    """Return how `spec` differs from the architecture `listed`: its settings, and modifications by name."""
    names = [field.name for field in fields(spec) if getattr(spec, field.name) != getattr(listed, field.name)]
    settings = [f"{name} {value}" for name in names if isinstance(value := getattr(spec, name), (int, float, str))]
    return settings + [
        text.removeprefix("Modified: ").rstrip(".") for text in spec.departures[len(listed.departures) :]
    ]


def _wrap(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, LINE - 3, subsequent_indent=indent, break_on_hyphens=False)


def _lrn_function(c: LRNSpec) -> list[str]:
    return f'''\
def local_response_norm(x, size={c.size}, alpha={c.alpha}, beta={c.beta}, k={c.k}, towers={c.towers}):
    """Divide each value by (k + alpha * mean) ** beta.

    The mean is that of the squares of `size` neighboring channels at the same pixel. Channels of
    another tower are no neighbors: zeros stand in their place. The paper's formula has the sum
    instead of the mean, with an alpha that is `size` times smaller.
    """
    squares = x.square().unflatten(1, (towers, -1))  # N x towers x channels of a tower x H x W
    padded = F.pad(squares, (0, 0, 0, 0, size // 2, (size - 1) // 2))  # zeros around each tower
    mean = padded.unfold(2, size, 1).mean(dim=-1)  # over each window of `size` channels
    return x / (k + alpha * mean.flatten(1, 2)) ** beta
'''.splitlines()


def _spatial_norm_function(c: LRNSpec) -> list[str]:
    return f'''\
def spatial_response_norm(x, size={c.size}, alpha={c.alpha}, beta={c.beta}, k={c.k}):
    """Divide each value by (k + alpha * mean) ** beta.

    The mean is that of the squares of the `size` x `size` pixels around the value, in the same
    channel. Zeros stand beyond the edges.
    """
    before, after = size // 2, (size - 1) // 2
    padded = F.pad(x.square(), (before, after, before, after))
    mean = F.avg_pool2d(padded, kernel_size=size, stride=1)
    return x / (k + alpha * mean) ** beta
'''.splitlines()


def _class(name: str, spec: AlexNetSpec, rows: list[Layer]) -> list[str]:
    parameters = sum(row.parameters for row in rows)
    shared = _shared_modules(rows)
    initial = _initial_weights(spec, rows)
    return [
        f"class {name}(nn.Module):",
        f'    """From preprocessed images to logits, the inputs of softmax, with {parameters:,} parameters.',
        "",
        "    The package alexnet gives its weights the same names, so that state dicts load both ways.",
        '    """',
        "",
        f"    def __init__(self, num_classes={spec.num_classes}):",
        "        super().__init__()",
        *(f"        {line}" for line in _learned_modules(rows)),
        *(f"        self.{name} = {module}" for name, module in dict(shared.values()).items()),
        "        self.initialize()" if initial else "        # The initial weights are PyTorch's defaults.",
        *([""] + [f"    {line}".rstrip() for line in initial] if initial else []),
        "",
        *(f"    {line}".rstrip() for line in _forward(rows, shared)),
    ]


# ── modules ───────────────────────────────────────────────────────────────────────────────────────


def _learned_modules(rows: list[Layer]) -> list[str]:
    """Return the lines that assign the layers with weights."""
    towers = max(row.groups for row in rows)
    word, both = ("two", "both") if towers == 2 else (towers, "all")
    remarks = {
        "bias=False": "No bias in the convolutions: batch norm would subtract it, and has its own.",
        "groups": f"groups={towers}: {word} towers; the filters of each read only channels of their own.",
    }
    lines: list[str] = []
    shape = rows[0].input
    for row in rows:
        if row.kind == "flatten":
            shape = row.input
        if row.kind not in ("conv", "batchnorm", "linear"):
            continue
        call = _learned_module(row, " * ".join(map(str, shape)), row is rows[-1])
        lines += [f"# {remarks.pop(key)}" for key in list(remarks) if key in call]
        reads = f"  # reads {both} towers" if row.kind == "conv" and row.name != "conv1" and row.groups < towers else ""
        lines.append(f"self.{row.name} = {call}{reads}")
        shape = row.output
    return lines


def _learned_module(row: Layer, inputs: str, last: bool) -> str:
    if row.kind == "linear":
        return f"nn.Linear({inputs}, {'num_classes' if last else row.output[0]})"
    if row.kind == "batchnorm":
        return f"nn.BatchNorm2d({row.output[0]})"
    options = [f"kernel_size={row.kernel}"]
    options += [f"stride={row.stride}"] if row.stride > 1 else []
    options += [f"padding={row.padding}"] if row.padding else []
    options += [f"groups={row.groups}"] if row.groups > 1 else []
    options += [] if row.bias else ["bias=False"]
    return f"nn.Conv2d({row.input[0]}, {row.output[0]}, {', '.join(options)})"


def _shared_modules(rows: list[Layer]) -> dict[str, tuple[str, str]]:
    """Return, by layer name, the attribute and the module of layers without weights: one for all that are equal.

    They are called `pool`, or `max_pool` and `avg_pool`, or else by the name of the first layer.
    """
    modules = {row.name: _weightless_module(row) for row in rows}
    modules = {name: module for name, module in modules.items() if module}
    pools = list(dict.fromkeys(module for module in modules.values() if "Pool2d" in module))
    named = {}
    for name, module in modules.items():
        if module.startswith("nn.Dropout"):
            attribute = "dropout"
        elif module.startswith("nn.LocalResponseNorm"):
            attribute = "lrn"
        elif len(pools) == 1:
            attribute = "pool"
        elif len({pool[:6] for pool in pools}) == len(pools):
            attribute = f"{module[3:6].lower()}_pool"
        else:
            attribute = next(first for first, other in modules.items() if other == module)
        named[name] = (attribute, module)
    return named


def _weightless_module(row: Layer) -> str:
    if row.kind in ("maxpool", "avgpool"):
        module = "nn.MaxPool2d" if row.kind == "maxpool" else "nn.AvgPool2d"
        return f"{module}(kernel_size={row.kernel}, stride={row.stride}{', ceil_mode=True' if row.ceil else ''})"
    if row.kind == "dropout":
        return f"nn.Dropout(p={row.p})"
    if row.kind == "lrn" and row.norm is not None and row.norm.towers == 1:
        c = row.norm
        return f"nn.LocalResponseNorm(size={c.size}, alpha={c.alpha}, beta={c.beta}, k={c.k})"
    return ""


# ── forward ───────────────────────────────────────────────────────────────────────────────────────


def _forward(rows: list[Layer], shared: dict[str, tuple[str, str]]) -> list[str]:
    """Return the method, a line for each step with the shape of its output at the side.

    Activations and batch norm stand in the line of what they are applied to.
    """
    steps = [("def forward(self, x):", _shape(rows[0].input))]
    expression = "x"
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        if row.kind in ("pad", "conv", "flatten") and "pool" in steps[-1][0]:
            steps.append(("", ""))
        expression = _call(row, shared).format(expression)
        if following is None:
            steps.append((f"    return {expression}", "N x num_classes"))
        elif following.kind not in (*ACTIVATIONS, "batchnorm"):
            steps.append((f"    x = {expression}", _shape(row.output) + _remark(row)))
            expression = "x"
    column = max(len(code) for code, _ in steps) + 2
    return [f"{code:<{column}}# {comment}" if code else "" for code, comment in steps]


def _call(row: Layer, shared: dict[str, tuple[str, str]]) -> str:
    """Return the Python expression of a layer, with {} for its input."""
    if row.name in shared:
        return f"self.{shared[row.name][0]}({{}})"
    match row.kind:
        case "conv" | "linear" | "batchnorm":
            return f"self.{row.name}({{}})"
        case "lrn":
            return "local_response_norm({})"
        case "rnorm":
            return "spatial_response_norm({})"
        case "pad":
            return f"F.pad({{}}, (0, {row.padding}, 0, {row.padding}))"
        case "adaptiveavgpool":
            return f"F.adaptive_avg_pool2d({{}}, {row.output[1]})"
        case "flatten":
            return "{}.flatten(start_dim=1)"
    return f"{_ACTIVATIONS[row.kind]}({{}})"


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(["N", *map(str, shape)])


def _remark(row: Layer) -> str:
    match row.kind:
        case "pad":
            return f" ({row.padding} zeros at the right and bottom)"
        case "adaptiveavgpool":
            return " (the size that the next layer expects)"
    return ""


# ── initial weights ───────────────────────────────────────────────────────────────────────────────


def _initial_weights(spec: AlexNetSpec, rows: list[Layer]) -> list[str]:
    """Return the method that draws the initial weights by the rule `spec.init`; nothing if torch's defaults remain."""
    rule = INITS[spec.init]
    if rule.conv == rule.linear == "torch":
        return []
    draws = {
        "normal": f"nn.init.normal_(layer.weight, std={rule.std})",
        "kaiming": 'nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")',
        "xavier": "nn.init.xavier_uniform_(layer.weight)",
    }
    bias = [] if rule.bias is None else [_set_bias("layer", rule.bias)]
    conv = [draws[rule.conv], *(bias if spec.norm != "batch" else [])]
    linear = [draws[rule.linear], *bias]
    branches = [("nn.Conv2d", conv), ("nn.Linear", linear)] if conv != linear else [("(nn.Conv2d, nn.Linear)", conv)]
    lines = ["for layer in self.children():"]
    for kind, calls in branches:
        lines += [f"    if isinstance(layer, {kind}):", *(f"        {call}" for call in calls)]

    stds: dict[str, list[str]] = {}
    biases: dict[float, list[str]] = {}
    learned = [row for row in rows if row.kind in ("conv", "linear")]
    for row in learned:
        hidden = row.kind == "linear" and row is not learned[-1]
        if (rule.conv if row.kind == "conv" else rule.linear) == "normal":
            meant = rule.fan_ins.get(row.name, row.fan_in)
            gain = f" * ({meant} / {row.fan_in}) ** 0.5" if meant != row.fan_in else ""
            stds.setdefault(f"{rule.std_of(row.name, hidden)}{gain}", []).append(row.name)
        value = rule.bias_of(row.name, hidden)
        if row.bias and value is not None:
            biases.setdefault(value, []).append(row.name)
    stds.pop(str(rule.std), None)
    if rule.bias is not None:
        biases.pop(rule.bias, None)
    for std, names in stds.items():
        lines += _for_each(names, f"nn.init.normal_({{}}.weight, std={std})")
    for value, names in biases.items():
        why = "  # so that their ReLUs start with positive inputs" if value > 0 and spec.activation == "relu" else ""
        lines += _for_each(names, _set_bias("{}", value) + why)
    about = "Draw the initial weights" + (", larger than in the paper where inputs are fewer" if rule.fan_ins else "")
    about += f"{',' if rule.fan_ins else ''} and set the biases." if bias else "."
    return ["def initialize(self):", f'    """{about}"""', *(f"    {line}" for line in lines)]


def _for_each(names: list[str], call: str) -> list[str]:
    """Return the lines that make a call, with {} for the layer, on one layer or on each of several."""
    attributes = [f"self.{name}" for name in names]
    if len(attributes) == 1:
        return [call.format(attributes[0])]
    return [f"for layer in ({', '.join(attributes)}):", f"    {call.format('layer')}"]


def _set_bias(layer: str, value: float) -> str:
    if value in (0, 1):
        return f"nn.init.{'ones_' if value else 'zeros_'}({layer}.bias)"
    return f"nn.init.constant_({layer}.bias, {value})"


def _example(name: str, first: Layer) -> list[str]:
    channels, side, _ = first.input
    return [
        'if __name__ == "__main__":',
        f"    images = torch.randn(2, {channels}, {side}, {side})",
        f"    print({name}()(images).shape)",
    ]
