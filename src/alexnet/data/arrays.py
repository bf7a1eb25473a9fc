"""NumPy arrays and torch tensors as images: which shapes and values are accepted, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from alexnet.data.decode import BadImage
from alexnet.data.deep import ValueRange

if TYPE_CHECKING:
    import torch

MAX_DARK = 16 / 255  # of white: the brightest value of arrays that are nearly black
_DEEP_TYPES = (np.uint16, np.int32, np.float32)  # those of Pillow's modes I;16, I and F


def array_to_image(array: np.ndarray | torch.Tensor, value_range: ValueRange | None = None) -> Image.Image:
    """Return an array or tensor as an image of mode L, RGB or RGBA.

    An array is H×W or H×W×C, a tensor H×W or C×H×W; C is 1, 3 (RGB) or 4 (RGB and alpha). Values are
    uint8 from 0 to 255, or floating-point from 0 to 1. For a network that was trained on images of
    more than 8 bits, whose range is `value_range`, any other values of H×W are those of such a file:
    uint16, int32 or float32. Raises `BadImage` for all else.
    """
    pixels = _channels_last(array)
    if pixels.dtype == np.uint8:
        return Image.fromarray(pixels)
    if value_range is not None and pixels.ndim == 2 and pixels.dtype in _DEEP_TYPES:
        return Image.fromarray(pixels)
    if pixels.dtype.kind != "f":
        raise BadImage(f"its values are {pixels.dtype}; give uint8 from 0 to 255, or floating-point from 0 to 1")
    finite = np.isfinite(pixels)
    if not finite.all():
        first = tuple(np.argwhere(~finite)[0].tolist())
        where = f"row {first[0]}, column {first[1]}"
        raise BadImage(f"its value in {where} is {pixels[first]}; give finite values from 0 to 1")
    low, high = pixels.min(), pixels.max()
    levels = np.rint(255 * pixels.astype(np.float32))
    if not (levels.min() >= 0 and levels.max() <= 255):
        raise BadImage(
            f"its values are floating-point from {low:.3g} to {high:.3g}, not from 0 (black) to 1 (white); scale them, "
            "and give the image as it is before it is normalized, which the network does"
        )
    return Image.fromarray(levels.astype(np.uint8))


def find_scale(arrays: Iterable[Any]) -> str:
    """Return a sentence that says how to scale `arrays` (others are skipped), if together they would be nearly black;
    "" if they are fine, or all zero.

    So are digits from 0 to 16 or a mask of 0 and 1 as uint8, whose white is 255, and values that were divided twice.
    """
    brightest: dict[str, float] = {}
    for array in arrays:
        kind = str(getattr(array, "dtype", "")).removeprefix("torch.")
        if kind == "uint8" or "float" in kind:
            kind = "uint8" if kind == "uint8" else "floating-point"
            brightest[kind] = max(brightest.get(kind, 0.0), float(array.max()) if 0 not in array.shape else 0.0)
    if len(brightest) != 1:
        return ""
    ((kind, high),) = brightest.items()
    white = 255 if kind == "uint8" else 1
    if not 0 < high <= MAX_DARK * white:
        return ""
    top = 16 if kind == "uint8" and high > 8 else high
    scale = "x * 255" if kind == "uint8" and high == 1 else f"x / {top:.3g}"  # to floating-point from 0 to 1
    return (
        f"The values are {kind} up to {high:.3g}, and white is {white}, so that the network sees them as nearly black; "
        f"scale them, such as {scale}."
    )


def _channels_last(array: Any) -> np.ndarray:
    """Return an array or tensor as an array H×W, H×W×3 or H×W×4. Raises `BadImage` for another shape."""
    is_tensor = hasattr(array, "detach")
    if is_tensor:
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # NumPy has no bfloat16
    pixels = np.asarray(array)
    if pixels.ndim == 0:
        kind = type(array).__name__
        raise BadImage(f"it is of type {kind}; give a path, the bytes of a file, a PIL image, an array or a tensor")
    shape = "×".join(map(str, pixels.shape))
    axis = 0 if is_tensor else -1
    if pixels.size and pixels.ndim == 3 and pixels.shape[axis] in (1, 3, 4):
        pixels = np.moveaxis(pixels, axis, -1)
        return np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if pixels.size and pixels.ndim == 2:
        return np.ascontiguousarray(pixels)
    wanted = "a tensor must be H×W or C×H×W" if is_tensor else "an array must be H×W or H×W×C"
    fix = "for several images give a list of them, or a batch with four axes"
    if pixels.ndim == 3:
        batch = "list(x) or " + ("x[:, None]" if is_tensor else "x[..., None]")
        fix = f"for a batch of gray images give {batch}"
        if pixels.shape[-1 - axis] in (1, 3, 4):
            move = ".permute(2, 0, 1)" if is_tensor else ".transpose(1, 2, 0)"
            fix = f"move its channels with {move}" + ("" if is_tensor else f", or {fix}")
    raise BadImage(f"its shape is {shape}, and {wanted}, where C is 1, 3 or 4; {fix}")
