"""What goes on inside a network: the activations of each stage, and which pixels an answer hangs on.

Computed here as plain arrays, drawn by `insight`, shown by the web page. Saliency is captum's; what is notable is what
we ask of it. All methods explain the logit of one class (probabilities saturate, so that nothing seems to matter to a
sure network), and where a pixel must be taken away it becomes the mean colour of the training pictures, which
preprocessing turns into 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.errors import UserError, unknown_name
from alexnet.inference.features import load_image, output_of
from alexnet.models.model import AlexNet
from alexnet.models.spec import layers
from alexnet.runtimes.loaded_model import LoadedModel

METHODS = ("grad-cam", "occlusion", "integrated-gradients")
STEPS = 64  # of the path of integrated gradients
WINDOWS = 8  # the occluding square is an eighth of the picture's side, and moves by half of itself


@dataclass(frozen=True)
class Stage:
    """What one stage of a network gives for one picture."""

    name: str
    """conv1 (after its activation, where that follows at once), lrn1, pool1 … fc8."""
    values: np.ndarray
    """float32 (C, H, W), or (F,) of a fully connected layer."""

    @property
    def active(self) -> float:
        """Share of the values above zero."""
        return float((self.values > 0).mean())


@dataclass(frozen=True)
class Saliency:
    """How much each pixel speaks for (positive) or against (negative) a label."""

    method: str
    label: str
    probability: float
    """What the network gives the label."""
    image: np.ndarray
    """The picture as the network sees it: uint8 (H, W, C)."""
    heat: np.ndarray
    """float32 (H, W), in units of the label's logit: for occlusion the mean fall of the logit when the pixel is hidden,
    for integrated gradients the pixel's share of the logit (all sum to its difference from an empty picture), for
    Grad-CAM the weighted sum of the last convolution's maps, without its negative part."""


def network_input(opened: LoadedModel, image: Any) -> tuple[np.ndarray, Tensor]:
    """A picture as the network sees it, uint8 (H, W, C), and as it reads it, float32 (1, C, H, W) on its device.

    `image` is a path, a file's bytes or a PIL image. Raises `BadImage`.
    """
    pixels = load_image(opened, image)
    device = next(opened.model.parameters()).device
    return pixels.permute(1, 2, 0).numpy(), opened.preprocess.normalize(pixels[None].to(device))


@torch.no_grad()
def activations(opened: LoadedModel, image: Any) -> tuple[Stage, ...]:
    """What each stage gives for a picture: convolutions and matrices (after their activation), normalisations, pools.

    Raises `UserError` for a network of torchvision's, whose stages are not ours, and `BadImage`.
    """
    model = opened.model
    if not isinstance(model, AlexNet):
        raise UserError(
            f"Activations are shown stage by stage of an AlexNet, and '{model.spec.name}' is none; 'alexnet features' "
            "writes those of any module."
        )
    stack = layers(model.spec)
    wanted = {output_of(stack, layer.name): layer.name for layer in stack if layer.kind in ("conv", "linear")}
    wanted |= {layer.name: layer.name for layer in stack if layer.kind in ("lrn", "rnorm", "maxpool", "avgpool")}
    _, x = network_input(opened, image)
    found = []
    for name, module in model.named_children():
        x = module(x)
        if name in wanted:  # a copy, since a ReLU that comes next works in place
            found.append(Stage(wanted[name], x[0].float().cpu().numpy().copy()))
    return tuple(found)


def saliency(opened: LoadedModel, image: Any, method: str = "grad-cam", label: str | None = None) -> Saliency:
    """Which pixels of a picture speak for `label`, the likeliest unless given, by one of `METHODS`.

    Raises `UserError` for an unknown method or label, where captum is not installed, for Grad-CAM on a network
    without convolutions, and `BadImage`.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    captum = _captum()
    target = None if label is None else _class_number(opened.classes, label)
    model = opened.model
    pixels, x = network_input(opened, image)
    with torch.no_grad():
        logits = model(x)[0].float()
    target = int(logits.argmax()) if target is None else target
    side = x.shape[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's, of gradients that it switches on itself
        if method == "grad-cam":
            heat = captum.LayerGradCam(model, _last_maps(model)).attribute(x, target=target, relu_attributions=True)
            heat = F.interpolate(heat.detach(), size=(side, side), mode="bilinear")
        elif method == "occlusion":
            window = max(2, round(side / WINDOWS))
            heat = captum.Occlusion(model).attribute(
                x, (x.shape[1], window, window), strides=(x.shape[1], window // 2, window // 2), target=target,
                baselines=0, perturbations_per_eval=32,
            )  # fmt: skip
            heat = heat.detach()[:, :1]  # the same for all channels, which are hidden together
        else:
            heat = captum.IntegratedGradients(model).attribute(
                x, baselines=0, target=target, n_steps=STEPS, internal_batch_size=16
            )
            heat = heat.detach().sum(1, keepdim=True)
    return Saliency(
        method, opened.classes[target], float(logits.softmax(0)[target]), pixels, heat[0, 0].float().cpu().numpy()
    )


def _captum() -> Any:
    try:
        from captum import attr
    except ModuleNotFoundError:
        raise UserError("Saliency needs captum; install it with: pip install captum (the extra 'show').") from None
    return attr


def _class_number(classes: Sequence[str], label: str) -> int:
    if label in classes:
        return list(classes).index(label)
    error = unknown_name("class", label, classes)
    if len(classes) > 30 and "did you mean" not in str(error):  # too many to list
        error = UserError(f"The network knows {len(classes)} classes, and '{label}' is none; leave --label out.")
    raise error


def _last_maps(model: nn.Module) -> nn.Module:
    """The module that gives the last convolution's maps, after its activation where that follows at once."""
    if isinstance(model, AlexNet):
        stack = layers(model.spec)
        last = [layer.name for layer in stack if layer.kind == "conv"][-1]
        return model.get_submodule(output_of(stack, last))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise UserError("Grad-CAM needs a network with convolutions; use --method occlusion.")
    return convolutions[-1]
