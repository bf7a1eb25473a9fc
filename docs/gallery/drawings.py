"""Draw the sample images of the gallery: clothes as in Fashion-MNIST, things as in Tiny-ImageNet.

    python docs/gallery/drawings.py FOLDER      FOLDER/fashion-mnist/Bag/1.png, … FOLDER/tiny-imagenet-50/torch/1.png

The images of these data sets are not ours to publish. Coordinates are fractions of the side of the image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

LARGE = 512  # side while drawing; reduced at the end
Points = Sequence[tuple[float, float]]
Color = tuple[int, int, int]


def scale(points: Points) -> list[tuple[float, float]]:
    return [(LARGE * x, LARGE * y) for x, y in points]


def polygon(points: Points, mirrored: bool = False) -> Image.Image:
    """Return the mask of a polygon; `mirrored`, of its left half."""
    mask = Image.new("L", (LARGE, LARGE))
    ImageDraw.Draw(mask).polygon(scale([*points, *((1 - x, y) for x, y in reversed(points) if mirrored)]), fill=255)
    return mask


def box(left: float, top: float, right: float, bottom: float) -> Image.Image:
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse(left: float, top: float, right: float, bottom: float) -> Image.Image:
    mask = Image.new("L", (LARGE, LARGE))
    ImageDraw.Draw(mask).ellipse(scale([(left, top), (right, bottom)]), fill=255)
    return mask


def union(*masks: Image.Image) -> Image.Image:
    found = masks[0]
    for mask in masks[1:]:
        found = ImageChops.lighter(found, mask)
    return found


def blur(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def noise(pixels: np.ndarray, deviation: float, grain: int = 4) -> Image.Image:
    """Return pixels (rows, columns, channels) as an image with noise in squares of `grain` pixels."""
    random = np.random.default_rng(0).normal(0, deviation, (LARGE // grain, LARGE // grain, 1))
    return Image.fromarray((pixels + random.repeat(grain, 0).repeat(grain, 1)).clip(0, 255).astype(np.uint8))


def background(top: Color, bottom: Color, deviation: float = 6, grain: int = 4) -> Image.Image:
    down = np.linspace(0, 1, LARGE)[:, None, None]
    return noise(np.broadcast_to((1 - down) * top + down * np.array(bottom), (LARGE, LARGE, 3)), deviation, grain)


def put(image: Image.Image, mask: Image.Image, color: Color, softness: float = 50, shadow: bool = True) -> Image.Image:
    """Return the image with a body on it, lit from the upper left, darker near its edge."""
    image = image.copy()
    if shadow:
        behind = blur(ImageChops.offset(mask, 15, 25), 20).point(lambda value: value // 2)
        image.paste((25, 20, 15), mask=behind)
    inside = np.asarray(blur(mask, softness), float) / 255
    lit = np.asarray(ImageChops.offset(blur(mask, softness), -50, -60), float) / 255
    light = (0.35 + 0.5 * inside + 0.35 * lit)[..., None]
    image.paste(Image.fromarray((np.array(color) * light).clip(0, 255).astype(np.uint8)), mask=mask)
    return image


def lines(image: Image.Image, paths: Sequence[Points], color: Color, width: int) -> None:
    for path in paths:
        ImageDraw.Draw(image).line(scale(path), fill=color, width=width, joint="curve")


# ── clothes: the left half of most, gray on black ─────────────────────────────────────────────────

CLOTHES = {
    "T-shirt": polygon(
        [(0.4, 0.04), (0.25, 0.08), (0.06, 0.28), (0.2, 0.4), (0.27, 0.33), (0.27, 0.96), (0.5, 0.96), (0.5, 0.1)], True
    ),
    "Trouser": polygon(
        [(0.34, 0.02), (0.31, 0.4), (0.3, 0.98), (0.44, 0.98), (0.49, 0.3), (0.5, 0.3), (0.5, 0.02)], True
    ),
    "Pullover": polygon(
        [(0.42, 0.06), (0.24, 0.12), (0.05, 0.88), (0.17, 0.92), (0.27, 0.48), (0.27, 0.94), (0.5, 0.94), (0.5, 0.09)],
        True,
    ),
    "Dress": polygon(
        [(0.42, 0.02), (0.39, 0.02), (0.36, 0.22), (0.4, 0.42), (0.28, 0.98), (0.5, 0.98), (0.5, 0.16)], True
    ),
    "Bag": union(
        polygon([(0.05, 0.38), (0.95, 0.38), (0.92, 0.9), (0.08, 0.9)]),
        ImageChops.subtract(ellipse(0.25, 0.08, 0.75, 0.7), ellipse(0.32, 0.15, 0.68, 0.75)),
    ),
    "Sneaker": polygon(
        [(0.02, 0.52), (0.12, 0.47), (0.27, 0.53), (0.47, 0.4), (0.58, 0.44), (0.72, 0.57), (0.96, 0.63), (0.98, 0.72),
         (0.02, 0.72)]
    ),
    "Ankle boot": polygon(
        [(0.08, 0.1), (0.48, 0.12), (0.54, 0.48), (0.78, 0.62), (0.97, 0.7), (0.98, 0.86), (0.32, 0.86), (0.28, 0.8),
         (0.24, 0.9), (0.06, 0.9)]
    ),
}  # fmt: skip


def draw_clothes() -> dict[str, Image.Image]:
    black = Image.new("RGB", (LARGE, LARGE))
    drawn = {name: noise(np.asarray(put(black, mask, (190, 190, 190), 25)), 0) for name, mask in CLOTHES.items()}
    return {name: image.convert("L").resize((28, 28), Image.Resampling.BOX) for name, image in drawn.items()}


# ── things: in color, lit, with shadows and noise ─────────────────────────────────────────────────


def draw_things() -> dict[str, Image.Image]:
    white = background((250, 250, 250), (215, 215, 215), 3)
    cut = ImageChops.subtract(ellipse(0.05, 0, 0.95, 0.85), ellipse(0, -0.35, 1, 0.55))
    peel = union(ellipse(0.15, 0.25, 0.85, 0.78), ellipse(0.05, 0.42, 0.95, 0.6))
    body = union(ellipse(0.12, 0.22, 0.5, 0.9), ellipse(0.3, 0.2, 0.7, 0.95), ellipse(0.5, 0.22, 0.88, 0.9))
    stalk = polygon([(0.46, 0.06), (0.54, 0.04), (0.56, 0.3), (0.44, 0.3)])
    stick, ice = box(0.46, 0.66, 0.54, 0.97), union(ellipse(0.3, 0.06, 0.7, 0.4), box(0.3, 0.23, 0.7, 0.68))
    lolly = put(background((120, 170, 120), (70, 110, 70), 10, 16), stick, (225, 190, 140), 20)
    bag = put(background((150, 150, 155), (110, 110, 115)), box(0.36, 0.22, 0.64, 0.95), (170, 30, 30))
    lines(bag, [[(0.38, 0.22), (0.5, 0), (0.62, 0.22)]], (60, 60, 60), 6)
    white_box = put(background((215, 205, 190), (180, 165, 145)), box(0.25, 0.04, 0.75, 0.97), (245, 246, 248), 30)
    lines(white_box, [[(0.25, 0.36), (0.75, 0.36)]], (120, 120, 120), 5)
    lines(white_box, [[(0.31, 0.14), (0.31, 0.3)], [(0.31, 0.42), (0.31, 0.62)]], (130, 130, 130), 10)
    drawn = {
        "banana": put(white, cut, (255, 220, 50), 40),
        "bell_pepper": put(put(white, body, (210, 25, 20)), stalk, (70, 120, 40), 20),
        "coral_reef": reef(),
        "ice_lolly": put(lolly, ice, (235, 50, 80), 60),
        "king_penguin": penguin(),
        "lemon": put(white, peel, (255, 225, 30), 70),
        "orange": put(white, ellipse(0.12, 0.12, 0.88, 0.88), (255, 140, 5), 90),
        "punching_bag": bag,
        "refrigerator": white_box,
        "suspension_bridge": bridge(),
        "tarantula": tarantula(),
        "torch": torch(),
    }
    return {name: noise(np.asarray(x), 7, 2).resize((64, 64), Image.Resampling.BOX) for name, x in drawn.items()}


def reef() -> Image.Image:
    random, image = np.random.default_rng(1), background((20, 110, 180), (10, 60, 110))
    colors = [(230, 90, 110), (240, 150, 60), (170, 80, 160), (220, 200, 90), (120, 60, 90), (90, 150, 110)]
    for _ in range(60):
        x, y, size = random.uniform(0, 1), random.uniform(0.35, 1), random.uniform(0.04, 0.12)
        image = put(image, ellipse(x - size, y - size, x + size, y + size), colors[random.integers(6)], 15)
    return noise(np.asarray(image), 12, 8)


def penguin() -> Image.Image:
    image = put(background((200, 215, 225), (235, 240, 245), 8, 16), ellipse(0.28, 0.15, 0.72, 0.98), (40, 45, 60), 40)
    image = put(image, ellipse(0.35, 0.28, 0.65, 0.95), (245, 245, 240), 60, shadow=False)
    image = put(image, ellipse(0.37, 0.04, 0.63, 0.3), (25, 25, 30), 20, shadow=False)
    image = put(image, ellipse(0.38, 0.14, 0.46, 0.27), (250, 170, 30), 20, shadow=False)
    return put(image, polygon([(0.6, 0.12), (0.82, 0.17), (0.6, 0.19)]), (60, 40, 30), 20, shadow=False)


def bridge() -> Image.Image:
    image, red = background((90, 150, 220), (190, 215, 235), 4), (120, 50, 40)
    image.paste((60, 90, 110), mask=box(0, 0.72, 1, 1))
    for part in (box(0, 0.62, 1, 0.655), box(0.23, 0.12, 0.27, 0.8), box(0.73, 0.12, 0.77, 0.8)):
        image.paste(red, mask=part)
    across = np.linspace(0.25, 0.75, 40)
    middle = [(x, 0.15 + 0.43 * (1 - ((x - 0.5) / 0.25) ** 2)) for x in across]
    left = [(0.25 - 0.25 * t, 0.15 + 0.43 * t) for t in np.linspace(0, 1, 10)]
    cables = [middle, left, [(1 - x, y) for x, y in left]]
    lines(image, cables, red, 6)
    lines(image, [[(x, y), (x, 0.62)] for cable in (middle[::2], *cables[1:]) for x, y in cable], red, 2)
    return image


def tarantula() -> Image.Image:
    image = background((205, 185, 150), (180, 150, 115), 14, 8)
    legs = [
        [(0.5, 0.5), (0.5 + 0.24 * side, 0.5 + 0.35 * place), (0.5 + 0.44 * side, 0.52 + 0.62 * place)]
        for side in (-1, 1)
        for place in (-0.75, -0.25, 0.25, 0.75)
    ]
    lines(image, legs, (45, 32, 28), 20)
    image = put(image, ellipse(0.38, 0.48, 0.62, 0.82), (70, 48, 40), 30)
    return noise(np.asarray(put(image, ellipse(0.4, 0.3, 0.6, 0.54), (60, 42, 36), 30)), 12)


def torch() -> Image.Image:
    image = background((10, 10, 20), (5, 5, 8), 4)
    image.paste((140, 50, 5), mask=blur(ellipse(0.2, 0.02, 0.8, 0.62), 50))
    flame = [(0.5, 0.04), (0.66, 0.38), (0.58, 0.56), (0.42, 0.56), (0.34, 0.38)]
    core = [(0.5, 0.22), (0.58, 0.42), (0.54, 0.54), (0.46, 0.54), (0.42, 0.42)]
    image.paste((255, 150, 20), mask=blur(polygon(flame), 12))
    image.paste((255, 240, 170), mask=blur(polygon(core), 8))
    handle = polygon([(0.44, 0.55), (0.56, 0.55), (0.53, 0.99), (0.47, 0.99)])
    return put(image, handle, (120, 80, 50), 20, shadow=False)


if __name__ == "__main__":
    for folder, drawn in {"fashion-mnist": draw_clothes(), "tiny-imagenet-50": draw_things()}.items():
        for name, image in drawn.items():
            path = Path(sys.argv[1]) / folder / name / "1.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
