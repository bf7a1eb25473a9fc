"""The transform from a decoded image to the model's input, shared by training, evaluation, export and checkpoints.

Geometry (resize, crop) yields uint8, which is small to store and move; `normalize` converts to
float32 last, on the device. It subtracts a mean per channel or, as in 2012, per pixel: the mean
image, stored beside the JSON of the other fields.

For evaluation Pillow resizes, with antialiasing; the result equals torchvision's `Resize(resize)` +
`CenterCrop(size)` pixel for pixel. For training torch resizes with the same filter, in a quarter of
the time and within two levels of 255.

torch and torchvision are slow to import, so they are imported where used; `eval_array` needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from alexnet.data.decode import MAX_PIXELS, BadImage
from alexnet.data.deep import UNMEASURED, ValueRange
from alexnet.errors import UserError, unknown_name
from alexnet.files import convert

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Normalization of torchvision's weights (its `AlexNet_Weights`), as fractions of 1."""

_FILTERS = {
    "nearest": (Image.Resampling.NEAREST, "nearest-exact"),
    "bilinear": (Image.Resampling.BILINEAR, "bilinear"),
    "bicubic": (Image.Resampling.BICUBIC, "bicubic"),
}
"""Interpolation → Pillow's filter and torch's mode."""

MAX_STORED_SIDE = 4096  # pixels; a file that asks for more would exhaust the memory with the first image
_STORED_TYPES: dict[str, Any] = {
    "size": int,
    "resize": int | None,
    "channels": int,
    "mean": tuple[float, ...],
    "std": tuple[float, ...],
    "interpolation": str,
    "squash": bool,
    "mean_image": bool,
    "value_range": tuple[float, float],
}
"""Field of `to_dict` → its type."""


@dataclass(frozen=True)
class EvalTransform:
    """Resize, center crop and normalization to C×size×size. Raises `UserError` if the fields are inconsistent."""

    size: int
    """Side of the model's input, in pixels."""
    resize: int | None = None
    """Short side before the center crop, in pixels (256 for a crop of 224, for example); None means `size`."""
    channels: int = 3
    """3 for RGB, 1 for gray."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from each channel; fractions of 1."""
    std: tuple[float, ...] = IMAGENET_STD
    """Divides each channel; fractions of 1."""
    interpolation: str = "bilinear"
    """nearest, bilinear or bicubic; the last two with antialiasing."""
    squash: bool = False
    """Resize both sides to `resize`, ignoring the aspect ratio, as Caffe's warp to 256×256 does."""
    value_range: ValueRange | None = None
    """The values that become 0 and 255 in images of more than 8 bits; None if the training images had 8."""
    mean_image: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Subtracted instead of `mean`: float32 C×resize_side×resize_side, fractions of 1, on the CPU."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if self.size < 1 or self.resize_side < self.size:
            raise UserError(
                f"Preprocessing cannot crop {self.size} pixels from an image of {self.resize_side}; "
                "the size must be positive and resize at least as large."
            )
        if self.channels not in (1, 3):
            raise UserError(f"Preprocessing supports 1 channel (gray) or 3 (RGB), not {self.channels}.")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UserError(
                f"Preprocessing for {self.channels} channels needs as many values in mean and std, "
                f"not {len(self.mean)} and {len(self.std)}."
            )
        if not all(0 <= m <= 1 for m in self.mean) or not all(s > 0 for s in self.std):
            raise UserError(
                f"Preprocessing takes means as fractions of 1 and positive standard deviations, not mean {self.mean} "
                f"and std {self.std}; divide values of 0…255 by 255."
            )
        if self.value_range is not None:
            object.__setattr__(self, "value_range", tuple(map(float, self.value_range)))
            low, high = self.value_range
            if self.value_range != UNMEASURED and not low < high:
                raise UserError(f"The value range {low:g} to {high:g} of the preprocessing is empty.")
        if self.interpolation not in _FILTERS:
            raise unknown_name("interpolation", self.interpolation, _FILTERS)
        if self.mean_image is not None and self.mean_image.shape != (self.channels, self.resize_side, self.resize_side):
            raise UserError(
                f"A mean image of {'×'.join(map(str, self.mean_image.shape))} does not fit images of "
                f"{self.channels}×{self.resize_side}×{self.resize_side}; use one computed from images of that size."
            )

    @property
    def resize_side(self) -> int:
        """Short side in pixels after resizing: what center crops and random crops are taken from."""
        return self.resize or self.size

    # ── serialization ─────────────────────────────────────────────────────────────────────────────

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON: tuples as lists, a mean image as `true`; no range or mean image if it is None."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "mean_image"}
        if self.value_range is None:  # absent, as of images of 8 bits
            del values["value_range"]
        marker = {} if self.mean_image is None else {"mean_image": True}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()} | marker

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], mean_image: torch.Tensor | None = None) -> EvalTransform:
        """Invert `to_dict`, given the mean image if there was one. Raises `UserError` for missing
        or unknown fields and wrong types."""
        if not isinstance(values, Mapping) or "size" not in values:
            raise UserError("Preprocessing must be an object with at least 'size'; take it from a model.json.")
        for key, value in values.items():
            if key not in _STORED_TYPES:
                raise unknown_name("preprocessing field", str(key), _STORED_TYPES)
            convert(value, _STORED_TYPES[key], f"Preprocessing field '{key}'")
        if max(values["size"], values.get("resize") or 0) > MAX_STORED_SIDE:
            raise UserError(f"Preprocessing to more than {MAX_STORED_SIDE} pixels is refused; check the file's source.")
        if values.get("mean_image", False) != (mean_image is not None):
            raise UserError("Preprocessing and its mean image do not match; take both from one checkpoint.")
        return cls(**{**values, "mean_image": mean_image})

    # ── geometry ──────────────────────────────────────────────────────────────────────────────────

    def eval_tensor(self, image: Image.Image) -> torch.Tensor:
        """Resize and center crop a PIL image of any mode to uint8 C×size×size; the right size passes unchanged."""
        import torch

        return torch.from_numpy(self.eval_array(image))

    def eval_array(self, image: Image.Image) -> np.ndarray:
        """Return `eval_tensor` as a contiguous array, uint8 C×size×size. Both raise `BadImage` for
        an image so long and narrow that resizing it would take gigabytes."""
        image = self.resize_image(image)
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        if image.size != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        pixels = np.array(image)
        return np.ascontiguousarray((pixels if pixels.ndim == 3 else pixels[..., None]).transpose(2, 0, 1))

    def resize_image(self, image: Image.Image) -> Image.Image:
        """Convert to the model's mode and resize to short side `resize_side`, without cropping."""
        mode = "RGB" if self.channels == 3 else "L"
        if image.mode != mode:
            image = image.convert(mode)
        new_size = self._resized_size(*image.size)
        return image if new_size == image.size else image.resize(new_size, _FILTERS[self.interpolation][0])

    def training_square(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize and center crop uint8 H×W×C to uint8 C×resize_side×resize_side, which random crops
        are taken from (the form in which the 2012 code stored its images)."""
        height, width, _ = pixels.shape
        return center_crop(self._resize_pixels(pixels, *self._resized_size(width, height)), self.resize_side)

    def resize_crop(self, pixels: np.ndarray) -> torch.Tensor:
        """Resize a crop, uint8 H×W×C, to uint8 C×size×size: within two levels of 255 of
        torchvision's `resized_crop` on a PIL image with the same box."""
        return self._resize_pixels(pixels, self.size, self.size)

    def _resize_pixels(self, pixels: np.ndarray, width: int, height: int) -> torch.Tensor:
        """Resize uint8 H×W×C to C×height×width, channels last in memory."""
        import torch
        from torch.nn import functional as F

        image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # permuted, torch treats it as channels_last
        if image.shape[2:] != (height, width):
            mode = _FILTERS[self.interpolation][1]
            image = F.interpolate(image, (height, width), mode=mode, antialias=mode != "nearest-exact")
        return image[0]

    def resize_batch(self, images: torch.Tensor, size: int | None = None) -> torch.Tensor:
        """Resize and center crop a batch on its device: uint8 N×C×H×W → N×C×size×size.

        `size` overrides the field: `resize_side` keeps the whole square. Within one level of 255 of
        `eval_tensor` (torchvision's kernel rounds once, Pillow twice).
        """
        size = size or self.size
        height, width = images.shape[-2:]
        new_width, new_height = self._resized_size(width, height)
        if (new_width, new_height) != (width, height):
            from torchvision.transforms.v2 import InterpolationMode
            from torchvision.transforms.v2 import functional as tv

            mode = InterpolationMode(_FILTERS[self.interpolation][1])
            images = tv.resize(images, [new_height, new_width], mode, antialias=True)
        return center_crop(images, size)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) before the crop; raise `BadImage` above `MAX_PIXELS`."""
        side = self.resize_side
        if self.squash:
            return side, side
        long = int(side * max(width, height) / min(width, height))  # rounded down, as torchvision does
        new_width, new_height = (side, long) if width <= height else (long, side)
        if side * long > MAX_PIXELS:  # 1×60000 would become gigabytes, of which a square is kept
            raise BadImage(f"it is {width}×{height}, and resized it would be {new_width}×{new_height} pixels, too many")
        return new_width, new_height

    # ── normalization ─────────────────────────────────────────────────────────────────────────────

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Return (x/255 − mean) / std: uint8 N×C×H×W → float32 of the same shape, memory format and device.

        The center H×W of a mean image is subtracted wherever the images were cropped, as the 2012 code does.
        """
        import torch

        scale, shift = (c.to(images.device, non_blocking=True) for c in self.scale_and_shift(images.shape[-1]))
        if images.is_contiguous(memory_format=torch.channels_last):
            # in the layout of the images, so that the CPU vectorizes over a row rather than over three channels
            scale, shift = (_to_channels_last(x.expand(-1, -1, images.shape[-1])) for x in (scale, shift))
        return torch.mul(images, scale).add_(shift)  # the product is already float32: one pass, no copy

    def scale_and_shift(self, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalization as x·scale + shift of uint8 x: float32 C×1×1 on the CPU; with a
        mean image the shift is C×side×side."""
        import torch

        scale, shift = (torch.from_numpy(x) for x in self.channel_scale_and_shift())
        if self.mean_image is not None:
            shift = center_crop(self.mean_image, side) * (-255 * scale)
        return scale, shift

    def channel_scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `scale_and_shift` without the mean image, as float32 arrays C×1×1."""
        std = np.asarray(self.std)
        both = np.stack([1 / (255 * std), -np.asarray(self.mean) / std])
        scale, shift = both.astype(np.float32)[:, :, None, None]
        return scale, shift


def center_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return the center size×size of …×H×W as a view, with torchvision's rounding of odd margins."""
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise UserError(
            f"Images of {width}×{height} are too small for a crop of {size}; choose a smaller size, or resize them "
            "first."
        )
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def _to_channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return C×H×W with channels last in memory."""
    return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def tile_images(
    images: np.ndarray, columns: int, gap: Any = np.nan, empty: Any = np.nan, border: int = 1
) -> np.ndarray:
    """Arrange images (n, H, W, C) in rows of `columns`, with `border` pixels of color `gap` between them.

    The rest of the last row has the color `empty`.
    """
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    tiles = np.empty((rows * columns, height + border, width + border, channels), images.dtype)
    tiles[:n], tiles[n:] = gap, empty
    tiles[:n, border:, border:] = images
    grid = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return grid.reshape(rows * (height + border), columns * (width + border), channels)[border:, border:]
