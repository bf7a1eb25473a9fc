"""Random augmentation of training images, a batch at a time, on the device that holds them.

Every random number comes from `rng.uniform` for one sample of one epoch, so the result for an image does not depend on
batch, order, worker or process.

Images stay uint8, a quarter of the memory traffic of float32, which is what a crop costs. A random resized crop of a
file is taken from the full image before it is resized (`crop_box`); everything else happens here.

Only two things depend on the batch: MixUp and CutMix, which combine samples (`mix`), and `crop_group` above 1, the 2012
code's crops shared by groups of images. The paper's color augmentation (`pca_noise`) follows normalization.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from alexnet import rng
from alexnet.data.transforms import center_crop
from alexnet.errors import UserError, unknown_name

CROPS = ("none", "pad", "random", "resized")
PADDINGS = ("zeros", "reflect")
BOX_TRIES = 10
BOX_DRAWS = 2 * BOX_TRIES + 2
"""Random numbers that a random resized crop takes: an area and an aspect ratio per try, then a position."""


@dataclass(frozen=True)
class Augment:
    """Augmentation settings. Raises `UserError` for invalid values."""

    crop: str = "none"
    """none: center crop; pad: random crop after `padding` (common for CIFAR); random: random crop (2012: 224 of 256);
    resized: random area and aspect ratio, resized (torchvision's `RandomResizedCrop`)."""
    padding: int = 4
    """Pixels that crop pad adds on each side."""
    padding_mode: str = "zeros"
    """zeros or reflect."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the area of crop resized, as a fraction of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the aspect ratio, width over height, of crop resized."""
    flip: bool = False
    """Flip horizontally with probability 0.5."""
    alternate_flip: bool = False
    """Draw that in epoch 0 only; then flip each image in every other epoch, so that any two show both of its sides."""
    crop_group: int = 1
    """Number of consecutive images that share the crop and flip of the first: 1, or 32 as in the 2012 code."""
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Brightness, contrast, saturation: each is multiplied by a factor from [1 − value, 1 + value]."""
    rotate: float = 0.0
    """Rotate by up to this many degrees either way, filling with black."""
    mixup: float = 0.0
    """MixUp's alpha; 0 is off."""
    cutmix: float = 0.0
    """CutMix's alpha; 0 is off. With both on, each batch uses one of them."""

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise unknown_name("crop", self.crop, CROPS)
        if self.padding_mode not in PADDINGS:
            raise unknown_name("padding mode", self.padding_mode, PADDINGS)
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(
                f"A random resized crop cannot use scale {self.scale} with ratio {self.ratio}; give (low, high) "
                "pairs, the scale within (0, 1]."
            )
        if min(self.padding, self.rotate, self.mixup, self.cutmix, *self.jitter) < 0:
            raise UserError("Padding, rotation, jitter, MixUp and CutMix must not be negative; 0 turns them off.")
        if self.crop_group < 1:
            raise UserError(f"A crop cannot be shared by {self.crop_group} images; use 1 for separate crops.")


@torch.no_grad()
def augment(
    images: torch.Tensor,
    ids: Sequence[int] | np.ndarray | torch.Tensor,
    epoch: int,
    seed: int,
    cfg: Augment,
    size: int,
    crop_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Crop, flip, rotate and jitter, in that order: uint8 N×C×S×S → uint8 N×C×size×size on the same device.

    `ids`, N integers, identify the samples; with `epoch` and `seed` they determine every random number. `crop_ids`
    names the sample whose crop and flip each image uses, for part of a batch; the default follows `cfg.crop_group`.
    Raises `UserError` if the images are smaller than the crop.
    """
    sample_ids = ids.numpy(force=True) if isinstance(ids, torch.Tensor) else np.asarray(ids)
    group_ids = crop_group_ids(sample_ids, cfg.crop_group) if crop_ids is None else crop_ids.numpy(force=True)

    def uniform(purpose: str, count: int) -> np.ndarray:
        return rng.uniform(seed, epoch, group_ids if purpose == "crop" else sample_ids, purpose, count)

    input_storage = images.untyped_storage().data_ptr()
    if cfg.crop == "resized":
        side = images.shape[-1]
        boxes = [crop_box(side, side, row, cfg.scale, cfg.ratio) for row in uniform("crop", BOX_DRAWS)]
        images = _resize_boxes(images, np.array(boxes, dtype=np.int64).reshape(-1, 4), size)
    elif cfg.crop == "none":
        images = center_crop(images, size)
    else:
        if cfg.crop == "pad" and cfg.padding:
            images = _pad(images, cfg.padding, cfg.padding_mode)
        images = _crop(images, uniform("crop", 2), size)
    if cfg.flip:
        in_place = images.untyped_storage().data_ptr() != input_storage
        images = _flip(images, draw_flips(seed, epoch, group_ids, cfg), in_place)
    if cfg.rotate:
        images = _rotate(images, (2 * uniform("rotate", 1)[:, 0] - 1) * cfg.rotate)
    if any(cfg.jitter):
        jitter = np.asarray(cfg.jitter)
        low = np.maximum(0, 1 - jitter)
        images = color_jitter(images, low + uniform("jitter", 3) * (1 + jitter - low))
    return images


def crop_group_ids(ids: np.ndarray, group: int) -> np.ndarray:
    """Return, for each of N samples, the id of the first in its group of `group`, whose crop and flip it shares."""
    return ids[np.arange(len(ids)) // group * group]


# ── random crop, flip ─────────────────────────────────────────────────────────────────────────────


def _pad(images: torch.Tensor, padding: int, mode: str) -> torch.Tensor:
    side = images.shape[-1]
    if mode == "reflect" and padding >= side:
        raise UserError(f"Images of {side} pixels cannot be padded by {padding} with reflection; pad with zeros.")
    if mode == "reflect" and images.device.type != "cpu":
        # torch cannot reflect uint8: gather the row that each padded row mirrors, then the columns
        index = torch.arange(-padding, side + padding, device=images.device).abs()
        index = torch.where(index < side, index, 2 * (side - 1) - index)
        return images.index_select(-2, index).index_select(-1, index)
    padded = F.pad(images, (padding,) * 4)
    if mode == "reflect":  # a few long copies instead of a lookup per byte: columns, then complete rows
        source, pixels = images.numpy(), padded.numpy()
        middle = pixels[..., padding:-padding, :]
        for i in range(padding):
            middle[..., i] = source[..., padding - i]
            middle[..., -1 - i] = source[..., -1 - padding + i]
        for i in range(padding):
            pixels[..., i, :] = pixels[..., 2 * padding - i, :]
            pixels[..., -1 - i, :] = pixels[..., -1 - 2 * padding + i, :]
    return padded


def _crop(images: torch.Tensor, uniform: np.ndarray, size: int) -> torch.Tensor:
    """Crop size×size at a random position; `uniform` N×2 in [0, 1).

    All windows exist as a view, and one gather picks N of them: each byte is read and written once, a window's row at a
    time.
    """
    margin = images.shape[-1] - size
    if margin < 0:
        raise UserError(
            f"Images of {images.shape[-1]} pixels (padding included) are too small for a crop of {size}; "
            "choose a smaller size or more padding."
        )
    if margin == 0:
        return images
    corner = crop_corners(uniform, margin)
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # N×C×(margin+1)×(margin+1)×size×size
    if images.device.type == "cpu":  # NumPy copies rows of a window, torch would index every byte
        order = (0, 2, 3, 4, 5, 1) if _is_channels_last(images) else (0, 2, 3, 1, 4, 5)
        crops = torch.from_numpy(windows.permute(order).numpy()[np.arange(len(images)), corner[:, 0], corner[:, 1]])
        return crops.permute(0, 3, 1, 2) if _is_channels_last(images) else crops
    top, left = torch.from_numpy(corner).to(images.device).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def crop_corners(uniform: np.ndarray, margin: int) -> np.ndarray:
    """Return int64 N×2 (top, left) of crops from squares `margin` pixels larger; `uniform` N×2 in [0, 1)."""
    return (uniform * (margin + 1)).astype(np.int64)


def draw_flips(seed: int, epoch: int, ids: np.ndarray, cfg: Augment) -> np.ndarray:
    """Return which of N images, by the samples `ids` whose flips they use, to flip in `epoch`: bool (N,)."""
    if not cfg.flip:
        return np.zeros(len(ids), dtype=bool)
    drawn = rng.uniform(seed, 0 if cfg.alternate_flip else epoch, ids, "flip", 1)[:, 0] < 0.5
    return ~drawn if cfg.alternate_flip and epoch % 2 else drawn


def _flip(images: torch.Tensor, flipped: np.ndarray, in_place: bool) -> torch.Tensor:
    """Mirror the images where `flipped`, bool (N,), is true; `in_place` allows changing `images`."""
    which = np.flatnonzero(flipped)
    if images.device.type == "cpu":  # as in `_crop`: NumPy copies complete images
        images = images if in_place else images.clone()
        pixels = images.permute(0, 2, 3, 1) if _is_channels_last(images) else images
        mirrored = torch.from_numpy(pixels.numpy()[which]).flip(2 if _is_channels_last(images) else 3)
        pixels.numpy()[which] = mirrored.numpy()
        return images
    index = torch.from_numpy(which).to(images.device)
    return images.index_copy(0, index, images.index_select(0, index).flip(-1))


def _is_channels_last(images: torch.Tensor) -> bool:
    """Whether the channels of a pixel are adjacent in memory, as decoders return them."""
    return images.shape[1] > 1 and images.stride(1) == 1


# ── random resized crop ───────────────────────────────────────────────────────────────────────────


def crop_box(
    width: int, height: int, uniform: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return the box of `RandomResizedCrop`, (left, top, right, bottom) in pixels; `uniform` BOX_DRAWS in [0, 1).

    torchvision's rule: up to ten tries of an area uniform in `scale` and an aspect ratio log-uniform in `ratio`; the
    first that fits is placed at random. If none fits, the largest central box with an aspect ratio within `ratio`.
    Plain Python, since NumPy calls for one image would take a tenth of its decoding time.
    """
    numbers = uniform.tolist()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, aspect_draw in zip(numbers[:BOX_TRIES], numbers[BOX_TRIES:-2], strict=True):
        area = width * height * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(low + aspect_draw * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(numbers[-2] * (width - w + 1)), int(numbers[-1] * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _resize_boxes(images: torch.Tensor, boxes: np.ndarray, size: int) -> torch.Tensor:
    """Resize each image's box to size×size, antialiased bilinear, within one level of 255 of Pillow.

    A resize is linear and separable: two small matrices per image, so two batched products for all.
    """
    n, channels, side, _ = images.shape
    box = torch.from_numpy(boxes).to(images.device, torch.float32)
    across = _resize_weights(box[:, 0], box[:, 2], side, size)  # N×size×S
    down = _resize_weights(box[:, 1], box[:, 3], side, size)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 has fewer than the eight bits of a pixel
        rows = images.float().reshape(n, channels * side, side) @ across.mT  # N×(C·S)×size
        columns = rows.view(n, channels, side, size).transpose(1, 2).reshape(n, side, channels * size)
        out = (down @ columns).view(n, size, channels, size).transpose(1, 2)
    return _to_uint8(out).contiguous()


def _resize_weights(start: torch.Tensor, stop: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """Return N×size×side weights that resize [start, stop) of `side` pixels to `size`: a triangle around each output
    pixel's center, as wide as the scale so that no input pixel is skipped. Rows sum to 1."""
    step = ((stop - start) / size)[:, None, None]
    pixel = torch.arange(side, device=start.device) + 0.5
    center = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    weights = (1 - (pixel - center).abs() / step.clamp(min=1)).clamp_(min=0)
    return weights / weights.sum(-1, keepdim=True)


# ── rotation and color ────────────────────────────────────────────────────────────────────────────


def _rotate(images: torch.Tensor, degrees: np.ndarray) -> torch.Tensor:
    """Rotate each square around its center, counterclockwise: bilinear, black outside."""
    angle = torch.from_numpy(np.deg2rad(degrees)).to(images.device, torch.float32)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)  # output position → input position
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        rotated = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _to_uint8(rotated)


def color_jitter(images: torch.Tensor, factors: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Multiply brightness, contrast and saturation of each image by its row of `factors`, N×3, in that order.

    uint8 N×C×H×W in and out, C 1 or 3 (gray has no saturation). Equal to torchvision's `adjust_brightness`,
    `adjust_contrast` and `adjust_saturation` in turn, which round down.
    """
    factor = torch.as_tensor(factors, dtype=torch.float32).to(images.device).view(-1, 3, 1, 1, 1)
    brightness, contrast, saturation = factor.unbind(1)
    x = images.mul(brightness).clamp_(0, 255).floor_()
    mean = _gray(x).mean((1, 2, 3), keepdim=True)
    x = x.mul_(contrast).addcmul_(mean, 1 - contrast).clamp_(0, 255).floor_()
    if images.shape[1] == 3:
        gray = _gray(x)
        x = x.mul_(saturation).addcmul_(gray, 1 - saturation).clamp_(0, 255)
    return x.to(torch.uint8)


def _gray(x: torch.Tensor) -> torch.Tensor:
    """Return N×1×H×W luma of floats in 0…255, with torchvision's coefficients and rounding."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.split(1, dim=1)
    return r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).floor_()


def _to_uint8(x: torch.Tensor) -> torch.Tensor:
    return x.round_().clamp_(0, 255).to(torch.uint8)


# ── combining samples ─────────────────────────────────────────────────────────────────────────────


def mix(
    images: torch.Tensor, targets: torch.Tensor, num_classes: int, cfg: Augment
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply torchvision's MixUp or CutMix to normalized images.

    float N×C×H×W and int64 (N,) → the same shape and float32 N×num_classes, rows summing to 1; with both off, the
    arguments unchanged. Uses torch's global generator, which the caller seeds for the step.
    """
    if max(cfg.mixup, cfg.cutmix) == 0:
        return images, targets
    from torchvision.transforms import v2  # its import takes a second, and most runs mix nothing

    on = [kind for kind, alpha in ((v2.MixUp, cfg.mixup), (v2.CutMix, cfg.cutmix)) if alpha > 0]
    kind = on[int(torch.randint(len(on), ()))]
    alpha = cfg.mixup if kind is v2.MixUp else cfg.cutmix
    mixed, soft = kind(alpha=alpha, num_classes=num_classes)(images, targets)
    return mixed, soft


# ── PCA color augmentation ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ColorPCA:
    """The principal components of a dataset's RGB pixels. Raises `UserError` for invalid values."""

    std: tuple[float, ...]
    """Standard deviation along each of the three components, largest first, in levels of 0…255."""
    vectors: tuple[float, ...]
    """Nine numbers: the three components as unit RGB vectors, concatenated."""

    def __post_init__(self) -> None:
        numbers = (*self.std, *self.vectors)
        if (len(self.std), len(self.vectors)) != (3, 9) or not np.isfinite(numbers).all() or min(self.std) < 0:
            raise UserError(
                "A PCA basis is three standard deviations, none negative, and nine numbers, the three RGB vectors "
                f"concatenated, not {self.std} and {self.vectors}."
            )


IMAGENET_PCA = ColorPCA(
    (121.78, 37.09, 19.72), (-0.5635, -0.5762, -0.5920, -0.7126, -0.0235, 0.7012, 0.4180, -0.8170, 0.3973)
)
"""Of ImageNet, from cuda-convnet2's published files (`make-data/input_meta`), rounded to two and four places."""


def pca_noise(
    x: torch.Tensor,
    ids: Sequence[int] | np.ndarray | torch.Tensor,
    epoch: int,
    seed: int,
    basis: ColorPCA,
    strength: float,
    *,
    std: Sequence[float],
    divide: bool = False,
) -> torch.Tensor:
    """Add the paper's PCA color noise (section 4.1) in place to normalized images, float N×3×H×W, and return them.

    Each image gets one color, `strength`·Σ zᵢσᵢpᵢ with z from N(0, 1). The σᵢ are standard deviations, as in the 2012
    code; the paper's text says eigenvalues. `std` is what `normalize` divided by, as fractions of 1. `divide` then
    divides the result by 1 + `strength`, as that code does. At strength 0 nothing changes.
    """
    if strength == 0:
        return x
    sample_ids = ids.numpy(force=True) if isinstance(ids, torch.Tensor) else ids
    uniform = np.maximum(rng.uniform(seed, epoch, sample_ids, "colour noise", 3), 2.0**-54)  # 0 would give −∞
    z = torch.special.ndtri(torch.from_numpy(uniform)).numpy()  # N×3
    axes = np.asarray(basis.std)[:, None] * np.reshape(basis.vectors, (3, 3))  # σᵢpᵢ, in levels of 0…255
    factor = 1 / (1 + strength) if divide else 1.0
    colors = (z[:, :, None] * axes).sum(axis=1) * (strength * factor / 255) / np.asarray(std)  # N×3
    if divide:
        x.mul_(factor)
    return x.add_(torch.tensor(colors, dtype=x.dtype).to(x.device, non_blocking=True)[:, :, None, None])
