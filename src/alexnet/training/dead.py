"""Dead ReLUs: channels that are zero whatever the picture, and so learn nothing any more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alexnet.networks.model import AlexNet, Network


@torch.no_grad()
def dead_channels(model: Network, images: Tensor) -> dict[str, float]:
    """The share of channels (or units) of each ReLU that are zero everywhere on `images`, preprocessed N×C×H×W.

    Empty for networks that are not AlexNets. The network is left in the mode that it is in; run it in evaluation mode.
    """
    if not isinstance(model, AlexNet):
        return {}
    was_training = model.training
    model.eval()
    shares = {}
    x = images
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, nn.ReLU):
            shares[name] = float((x.transpose(0, 1).flatten(1).amax(dim=1) <= 0).float().mean())
    model.train(was_training)
    return shares
