"""Rules for the initial weights of every architecture, as data: `INITS`. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Initialization:
    """Rules for the initial weights and biases of a network.

    `conv` and `linear` name the rule for weights: "normal" (mean 0), "kaiming" (normal, fan-out, for ReLU), "xavier"
    (uniform) or "torch" (its default). `stds` and `biases` override `std` and `bias` by layer name; "hidden" is every
    fully connected layer except the last. A bias of None is torch's default. Where `fan_ins` names a layer, its
    standard deviation is meant for so many inputs per output and grows by the root of their ratio to the layer's own,
    which keeps the variance of its outputs in a smaller network.
    """

    conv: str = "normal"
    linear: str = "normal"
    std: float = 0.01
    stds: Mapping[str, float] = field(default_factory=dict)
    fan_ins: Mapping[str, int] = field(default_factory=dict)
    bias: float | None = 0.0
    biases: Mapping[str, float] = field(default_factory=dict)

    def std_of(self, name: str, hidden: bool) -> float:
        """Return the standard deviation of a layer, without the factor of `fan_ins`; `hidden` is whether the layer is
        fully connected and not the last."""
        return self.stds.get("hidden" if hidden else name, self.std)

    def bias_of(self, name: str, hidden: bool) -> float | None:
        """Return the biases of a layer; None is torch's default."""
        return None if self.bias is None else self.biases.get("hidden" if hidden else name, self.bias)


def _positive_biases(bias: float) -> dict[str, float]:
    """Return biases that give the ReLUs of these layers positive inputs from the start (paper, section 5)."""
    return {"conv2": bias, "conv4": bias, "conv5": bias, "hidden": bias}


_LATE_CONV_STDS = {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}
_HIDDEN_STD = {"hidden": 0.005}
_PAPER_FAN_INS = {  # channels per tower × kernel area; features
    "conv1": 3 * 121, "conv2": 48 * 25, "conv3": 256 * 9, "conv4": 192 * 9, "conv5": 192 * 9,
    "fc6": 9216, "fc7": 4096, "fc8": 4096,
}  # fmt: skip

INITS: dict[str, Initialization] = {
    "paper": Initialization(biases=_positive_biases(1.0)),  # section 5: N(0, 0.01), biases 1 or 0
    "paper-gain": Initialization(biases=_positive_biases(1.0), fan_ins=_PAPER_FAN_INS),  # ours, for smaller networks
    "code2012": Initialization(stds=_LATE_CONV_STDS, biases=_positive_biases(1.0)),  # layers-145.cfg
    "paper-six": Initialization(  # layers-146-2009.cfg
        stds={**_LATE_CONV_STDS, "conv6": 0.03}, biases={**_positive_biases(1.0), "conv6": 1.0}
    ),
    "cuda-convnet2": Initialization(  # layers-imagenet-1gpu.cfg; every class starts with the probability of 1 in 1000
        stds=_LATE_CONV_STDS, biases={**_positive_biases(1.0), "fc8": -7.0}
    ),
    "convnet-26": Initialization(stds={"conv1": 1e-4, "hidden": 0.1, "fc5": 0.1}),  # layers-80sec.cfg
    "convnet-18": Initialization(stds={"conv1": 1e-4}),  # layers-18pct.cfg
    "caffe": Initialization(stds=_HIDDEN_STD, biases=_positive_biases(0.1)),  # bvlc_alexnet
    "caffenet": Initialization(stds=_HIDDEN_STD, biases=_positive_biases(1.0)),
    "kaiming": Initialization("kaiming"),  # tutorial 002: Kaiming convolutions, N(0, 0.01) linear layers, biases 0
    "xavier": Initialization("xavier", "xavier", bias=None),  # d2l
    "torch": Initialization("torch", "torch", bias=None),
}
