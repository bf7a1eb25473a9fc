"""From a picture to the network's input: one record that training, evaluation, export and a checkpoint share.

Two steps, kept apart on purpose. Geometry (resize, crop) happens on the picture and gives uint8, which is small
to store and to move. `normalise` makes floats of it at the last moment, on the device. It subtracts a mean of each
channel or, as in 2012, of each pixel: the mean image, which stands in a file beside the other fields' JSON.

For evaluation pictures are resized by Pillow, which filters as it shrinks; the result is that of torchvision's
`Resize(resize)` + `CenterCrop(size)` on the same picture, pixel for pixel. For training they are resized by torch with
the same filter: in a quarter of the time, and within two levels of 255.

Torch and torchvision, slow to import, are imported where they are used: `pixels` needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from alexnet.data.decode import MAX_PIXELS, BadImage
from alexnet.errors import UserError, unknown_name

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""What torchvision's weights expect (its `AlexNet_Weights`), as fractions of 1."""

_FILTERS = {
    "nearest": (Image.Resampling.NEAREST, "nearest-exact"),
    "bilinear": (Image.Resampling.BILINEAR, "bilinear"),
    "bicubic": (Image.Resampling.BICUBIC, "bicubic"),
}
"""Pillow's filters, and what torchvision calls them."""


@dataclass(frozen=True)
class EvalTransform:
    """How a picture becomes C×size×size. Raises `UserError` when the fields do not fit each other."""

    size: int
    """Side of the network's input, in pixels."""
    resize: int | None = None
    """Short side before the centre crop, in pixels (256 for a 224 crop, say); None: `size`."""
    channels: int = 3
    """3 for RGB, 1 for grey."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from each channel; fractions of 1."""
    std: tuple[float, ...] = IMAGENET_STD
    """Each channel is divided by it; fractions of 1."""
    interpolation: str = "bilinear"
    """nearest, bilinear or bicubic; all but nearest are antialiased."""
    squash: bool = False
    """Resize both sides to `resize` and so ignore the aspect ratio, as Caffe's 256×256 warp does."""
    mean_image: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Subtracted instead of `mean`: float32 channels×square×square, fractions of 1, on the CPU."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if self.size < 1 or self.resize_side < self.size:
            raise UserError(
                f"Preprocessing cannot cut {self.size} pixels from a picture of {self.resize_side}; "
                "the size must be positive and resize at least as large."
            )
        if self.channels not in (1, 3):
            raise UserError(f"Preprocessing knows 1 channel (grey) or 3 (RGB), not {self.channels}.")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UserError(
                f"Preprocessing for {self.channels} channels needs as many values in mean and std, "
                f"not {len(self.mean)} and {len(self.std)}."
            )
        if not all(0 <= m <= 1 for m in self.mean) or not all(s > 0 for s in self.std):
            raise UserError(
                f"Preprocessing takes means as fractions of 1 and positive deviations, not mean {self.mean} "
                f"and std {self.std}; divide values of 0…255 by 255."
            )
        if self.interpolation not in _FILTERS:
            raise unknown_name("interpolation", self.interpolation, _FILTERS)
        if self.mean_image is not None and self.mean_image.shape != (self.channels, self.resize_side, self.resize_side):
            raise UserError(
                f"A mean image of {'×'.join(map(str, self.mean_image.shape))} does not fit pictures of "
                f"{self.channels}×{self.resize_side}×{self.resize_side}; use one that was computed from such pictures."
            )

    @property
    def resize_side(self) -> int:
        """Side of the square that `evaluation` crops from and that random crops are cut from, in pixels."""
        return self.resize or self.size

    # ── in a checkpoint ───────────────────────────────────────────────────────────────────────────────────────

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON keeps them: tuples become lists, and a mean image only the word that there is one."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "mean_image"}
        marker = {} if self.mean_image is None else {"mean_image": True}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()} | marker

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], mean_image: torch.Tensor | None = None) -> EvalTransform:
        """The inverse of `to_dict`, with the mean image where there was one. Raises `UserError` for fields that are
        missing, unknown or of another type."""
        if not isinstance(values, Mapping) or "size" not in values:
            raise UserError("Preprocessing must be an object with at least 'size'; take it from a model.json.")
        known = [f.name for f in fields(cls)]
        checks = {
            "size": _is_int,
            "resize": lambda v: v is None or _is_int(v),
            "channels": _is_int,
            "mean": _are_numbers,
            "std": _are_numbers,
            "interpolation": lambda v: isinstance(v, str),
            "squash": lambda v: isinstance(v, bool),
            "mean_image": lambda v: isinstance(v, bool),
        }
        for key, value in values.items():
            if key not in known:
                raise unknown_name("preprocessing field", str(key), known)
            if not checks[key](value):
                raise UserError(f"Preprocessing field '{key}' cannot be {value!r}; take it from a model.json.")
        if values.get("mean_image", False) != (mean_image is not None):
            raise UserError("Preprocessing and its mean image belong together; take both from one checkpoint.")
        return cls(**{**values, "mean_image": mean_image})

    # ── geometry ──────────────────────────────────────────────────────────────────────────────────────────────

    def eval_tensor(self, image: Image.Image) -> torch.Tensor:
        """Resized, centre-cropped: a PIL image of any mode → uint8 C×size×size. A picture already of the right
        size passes untouched."""
        import torch

        return torch.from_numpy(self.eval_array(image))

    def eval_array(self, image: Image.Image) -> np.ndarray:
        """What `evaluation` gives, as an array: uint8 C×size×size, contiguous. Both raise `BadImage` for a picture so
        long and narrow that resizing would take gigabytes."""
        return _to_chw(_center_crop_image(self.resize_image(image), self.size))

    def training_square(self, pixels: np.ndarray) -> torch.Tensor:
        """What random crops are cut from: a picture, uint8 H×W×C → uint8 C×square×square, short side to `square`,
        centre crop (the form in which the 2012 code stored its pictures)."""
        height, width, _ = pixels.shape
        return center_crop(self._resize_pixels(pixels, *self._resized_size(width, height)), self.resize_side)

    def resize_crop(self, pixels: np.ndarray) -> torch.Tensor:
        """Part of a picture, uint8 H×W×C, resized to uint8 C×size×size: with the box that was drawn for it, the
        pixels of torchvision's `resized_crop` on a PIL image, to two levels of 255."""
        return self._resize_pixels(pixels, self.size, self.size)

    def _resize_pixels(self, pixels: np.ndarray, width: int, height: int) -> torch.Tensor:
        """uint8 H×W×C → C×height×width, the channels of a pixel side by side in memory, as they came."""
        import torch
        from torch.nn import functional as F

        image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # in this order torch knows it for channels_last
        if image.shape[2:] != (height, width):
            mode = _FILTERS[self.interpolation][1]
            image = F.interpolate(image, (height, width), mode=mode, antialias=mode != "nearest-exact")
        return image[0]

    def resize_batch(self, images: torch.Tensor, size: int | None = None) -> torch.Tensor:
        """`evaluation` for a batch that is already in memory: uint8 N×C×H×W → N×C×size×size, on its device.

        `size` other than the field's gives another crop of the same resized picture: `square` for the whole.
        Agrees with Pillow to one level of 255 (torchvision's kernel rounds once where Pillow rounds twice).
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

    def _convert_mode(self, image: Image.Image) -> Image.Image:
        mode = "RGB" if self.channels == 3 else "L"
        return image if image.mode == mode else image.convert(mode)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        if self.squash:
            return self.resize_side, self.resize_side
        short, long = min(width, height), max(width, height)
        new_long = int(self.resize_side * long / short)  # rounded down, as torchvision does
        new_size = (self.resize_side, new_long) if width <= height else (new_long, self.resize_side)
        if (
            self.resize_side * new_long > MAX_PIXELS
        ):  # a line of 1×60000 would become gigabytes, of which a square is kept
            resized = f"{new_size[0]}×{new_size[1]}"
            raise BadImage(f"it is {width}×{height}, and resized it would be {resized} pixels, too many")
        return new_size

    def resize_image(self, image: Image.Image) -> Image.Image:
        """The picture in the mode that the network reads, its short side `square` pixels long; not yet cropped."""
        image = self._convert_mode(image)
        new_size = self._resized_size(*image.size)
        return image if new_size == image.size else image.resize(new_size, _FILTERS[self.interpolation][0])

    # ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 N×C×H×W → float32 of the same shape and memory format: (x/255 − mean) / std, on its device.

        Of a mean image it is always the centre H×W that is subtracted, wherever the pictures were cut, as the 2012
        code does.
        """
        import torch

        scale, shift = (c.to(images.device, non_blocking=True) for c in self.constants(images.shape[-1]))
        if images.is_contiguous(memory_format=torch.channels_last):
            # laid out as the pictures are: a CPU then goes through a row at a time, not through three numbers
            scale, shift = (_to_channels_last(x.expand(-1, -1, images.shape[-1])) for x in (scale, shift))
        return torch.mul(images, scale).add_(shift)  # the product is already float32: one pass, no copy

    def constants(self, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What pixels are multiplied by and what is then added: float32 C×1×1 on the CPU; with a mean image the second
        is C×side×side."""
        import torch

        scale, shift = (torch.from_numpy(x) for x in self.factors())
        if self.mean_image is not None:
            shift = center_crop(self.mean_image, side) * (-255 * scale)
        return scale, shift

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """`constants` where there is no mean image, without torch."""
        deviation = np.asarray(self.std)
        both = np.stack([1 / (255 * deviation), -np.asarray(self.mean) / deviation])  # x·scale + shift
        scale, shift = both.astype(np.float32)[:, :, None, None]
        return scale, shift


def center_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """The middle size×size of …×H×W, a view; where the margin is odd, torchvision's choice of pixel."""
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise UserError(
            f"Pictures of {width}×{height} are too small for a crop of {size}; choose a smaller size, or resize them "
            "first."
        )
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def _center_crop_image(image: Image.Image, size: int) -> Image.Image:
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))


def _to_channels_last(x: torch.Tensor) -> torch.Tensor:
    """C×H×W, the channels of a pixel side by side in memory."""
    return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """PIL image in mode RGB or L → uint8 C×H×W, contiguous."""
    import torch

    return torch.from_numpy(_to_chw(image))


def _to_chw(image: Image.Image) -> np.ndarray:
    pixels = np.array(image)
    return np.ascontiguousarray((pixels if pixels.ndim == 3 else pixels[..., None]).transpose(2, 0, 1))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_numbers(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)
