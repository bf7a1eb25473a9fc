"""What happens inside a network: the activations of each stage, and which pixels a prediction depends on.

Computed here as plain arrays, plotted by `plots` and shown by the web page. Saliency is captum's. All methods explain
the logit of one class (probabilities saturate, so that nothing seems to matter to a confident network), and where a
pixel must be removed it becomes the mean color of the training images, which normalization turns into 0.
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

from alexnet.errors import UserError, check_package, unknown_name
from alexnet.inference.features import output_of
from alexnet.inference.load import load_image
from alexnet.models.layers import lrn_denominators
from alexnet.models.model import AlexNet
from alexnet.models.spec import layers
from alexnet.runtimes.engines import LoadedModel

METHODS = ("grad-cam", "occlusion", "integrated-gradients")
MIN_GRAD_CAM_SIDE = 64  # pixels of the input: below it the last convolution has few positions, 4×4 at 32 pixels
STEPS = 64  # of the path of integrated gradients
WINDOWS = 8  # the occluding square is an eighth of the image's side, and moves by half its size


@dataclass(frozen=True)
class Stage:
    """The output of one stage of a network for one image."""

    name: str
    """conv1 (after its activation, where that is next), lrn1, pool1 … fc8."""
    values: np.ndarray
    """float32 (C, H, W), or (F,) for a fully connected layer."""

    @property
    def active(self) -> float:
        """Fraction of the values above zero."""
        return float((self.values > 0).mean())


@dataclass(frozen=True)
class Saliency:
    """How much each pixel supports a label (positive) or opposes it (negative)."""

    method: str
    label: str
    probability: float
    """Of the label, calibrated where the network has a calibration."""
    image: np.ndarray
    """The image as the network reads it: uint8 (H, W, C)."""
    heat: np.ndarray
    """float32 (H, W), in units of the label's logit: for occlusion the mean decrease of the logit when the pixel is
    hidden, for integrated gradients the pixel's share of the logit (all sum to its difference from a blank image), for
    Grad-CAM the weighted sum of the last convolution's maps, without its negative part."""
    cells: int | None = None
    """Of Grad-CAM: the side of these maps, whose values are squares of `heat`."""


def network_input(loaded: LoadedModel, image: Any) -> tuple[np.ndarray, Tensor]:
    """Return an image as the network reads it, uint8 (H, W, C), and normalized, float32 (1, C, H, W) on its device.

    `image` is a path, the bytes of a file or a PIL image. Raises `BadImage`.
    """
    pixels = torch.from_numpy(load_image(image, loaded.preprocess))
    device = next(loaded.model.parameters()).device
    return pixels.permute(1, 2, 0).numpy(), loaded.preprocess.normalize(pixels[None].to(device))


def lrn_denominators_of(loaded: LoadedModel, images: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return what each LRN divides by on `images` (see `network_input`), float32 (N, C, H, W), by layer."""
    batch = torch.cat([network_input(loaded, image)[1] for image in images])
    return {name: d.cpu().numpy() for name, d in lrn_denominators(loaded.model, batch).items()}


@torch.no_grad()
def activations(loaded: LoadedModel, image: Any) -> tuple[Stage, ...]:
    """Return the output of each stage: convolutions and linear layers (after their activation), LRN, pooling.

    Raises `UserError` for a torchvision network, whose stages have other names, and `BadImage`.
    """
    model = loaded.model
    if not isinstance(model, AlexNet):
        raise UserError(
            f"Activations by stage are only available for an AlexNet, not for '{model.spec.name}'; 'alexnet features' "
            "writes those of any module."
        )
    stack = layers(model.spec)
    stage_of = {output_of(stack, layer.name): layer.name for layer in stack if layer.kind in ("conv", "linear")}
    stage_of |= {layer.name: layer.name for layer in stack if layer.kind in ("lrn", "rnorm", "maxpool", "avgpool")}
    _, x = network_input(loaded, image)
    stages = []
    for name, module in model.named_children():
        x = module(x)
        if name in stage_of:  # copied, since a ReLU that follows works in place
            stages.append(Stage(stage_of[name], x[0].float().cpu().numpy().copy()))
    return tuple(stages)


def saliency(loaded: LoadedModel, image: Any, method: str = "auto", label: str | None = None) -> Saliency:
    """Return which pixels of an image support `label`, by default the predicted one, by one of `METHODS`.

    "auto" is Grad-CAM, and occlusion for inputs below `MIN_GRAD_CAM_SIDE`.
    Raises `UserError` for an unknown method or label, where captum is not installed, for Grad-CAM on a network without
    convolutions, and `BadImage`.
    """
    if method == "auto":
        method = "occlusion" if loaded.preprocess.size < MIN_GRAD_CAM_SIDE else "grad-cam"
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    check_package("Saliency", "captum", "show")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm, which captum imports, warns of widgets that a notebook lacks
        from captum import attr as captum
    target = None if label is None else _class_index(loaded.classes, label)
    model = loaded.model
    pixels, x = network_input(loaded, image)
    with torch.no_grad():
        logits = model(x)[0].float()
    target = int(logits.argmax()) if target is None else target
    side, cells = x.shape[-1], None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum warns of gradients that it enables itself
        if method == "grad-cam":
            heat = captum.LayerGradCam(model, _last_conv_output(model)).attribute(
                x, target=target, relu_attributions=True
            )
            cells = heat.shape[-1]
            heat = F.interpolate(heat.detach(), size=(side, side), mode="nearest-exact")
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
    temperature = loaded.calibration.temperature if loaded.calibration else 1.0
    probability = float((logits / temperature).softmax(0)[target])
    return Saliency(method, loaded.classes[target], probability, pixels, heat[0, 0].float().cpu().numpy(), cells)


def _class_index(classes: Sequence[str], label: str) -> int:
    if label in classes:
        return list(classes).index(label)
    error = unknown_name("class", label, classes)
    if len(classes) > 30 and "did you mean" not in str(error):  # too many to list
        error = UserError(f"'{label}' is none of the network's {len(classes)} classes; omit --label.")
    raise error


def _last_conv_output(model: nn.Module) -> nn.Module:
    """Return the module whose output is the last convolution's maps, after its activation where that is next."""
    if isinstance(model, AlexNet):
        stack = layers(model.spec)
        last = [layer.name for layer in stack if layer.kind == "conv"][-1]
        return model.get_submodule(output_of(stack, last))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise UserError("Grad-CAM needs a network with convolutions; use --method occlusion.")
    return convolutions[-1]
