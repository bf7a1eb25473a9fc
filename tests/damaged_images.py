"""A dataset of good images damaged in fifteen named ways, for tests of `alexnet check`.

To try `alexnet check` by hand:  python tests/damaged_images.py IMAGES NEW_FOLDER
"""

from __future__ import annotations

import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def make_photos(folder: Path, count: int, size: tuple[int, int] = (200, 150)) -> Path:
    """Write `count` JPEGs that resemble photographs: smooth, textured, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        random = np.random.default_rng(i)
        layers = [
            np.asarray(
                Image.fromarray(random.integers(0, 256, (n, n, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
            )
            for n in (3, 7, 15)
        ]
        mixed = np.average(np.stack(layers).astype(float), axis=0, weights=(4, 2, 1))
        Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.jpg", quality=90)
    return folder


def split_photos(photos: Path, root: Path) -> Path:
    """Copy the photos into three classes in turn, every fifth to val/, the rest to train/."""
    for i, path in enumerate(sorted(p for p in photos.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))):
        split = "val" if i % 5 == 4 else "train"
        target = root / split / CLASSES[i % 3] / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return root


def damage_dataset(root: Path) -> dict[str, str]:
    """Damage a dataset of `split_photos`. Return the affected file (or class) below `root` by kind of damage."""
    train = sorted((root / "train" / "ant").iterdir())
    damaged: dict[str, str] = {}

    def new(kind: str, name: str, split: str = "train", label: str = "ant") -> Path:
        path = root / split / label / name
        damaged[kind] = path.relative_to(root).as_posix()
        return path

    def photo(i: int) -> Image.Image:
        return Image.open(train[i]).convert("RGB")

    new("empty", "empty.jpg").write_bytes(b"")
    complete = train[0].read_bytes()
    new("cut short", "cut.jpg").write_bytes(complete[: len(complete) // 2])
    new("web page", "page.jpg").write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    new("bomb", "bomb.png").write_bytes(decompression_bomb())
    new("no reader", "phone.jpg").write_bytes(struct.pack(">I4s4sI4s", 20, b"ftyp", b"heic", 0, b"mif1") + bytes(2000))
    still = photo(1).rotate(45)
    still.save(new("animated GIF", "moves.gif"), save_all=True, append_images=[still.rotate(180)])
    still = photo(8).rotate(55)
    still.save(new("animated WebP", "moves.webp"), save_all=True, append_images=[still.rotate(180)], duration=100)
    Image.new("RGB", (1, 1), "red").save(new("one pixel", "dot.png"))
    deep = np.linspace(0, 65535, 90 * 70).reshape(70, 90).astype(np.uint16)
    Image.fromarray(deep).save(new("16 bits", "deep.png"))
    photo(5).rotate(15).convert("CMYK").save(new("CMYK", "print.jpg"))
    photo(6).rotate(25).save(new("wrong extension", "wrong.jpg"), format="PNG")
    rotated = photo(7).rotate(35)
    exif = rotated.getexif()
    exif[0x0112] = 6
    rotated.save(new("rotated", "rotated.jpg"), exif=exif)
    shutil.copyfile(train[2], new("exact copy", "copy.jpg", "val", "bee"))
    still = photo(3)
    shrunk = still.resize((still.width // 2, still.height // 2))
    shrunk.save(new("near copy", "shrunk.jpg", "val", "ant"), quality=60)
    for split in ("train", "val"):  # move some images of "cat" to a class "cat " with a trailing space
        folder = root / split / "cat "
        folder.mkdir()
        for path in sorted((root / split / "cat").iterdir())[::2]:
            path.rename(folder / path.name)
    damaged["label with a space"] = "cat "
    damaged["the original of the exact copy"] = train[2].relative_to(root).as_posix()
    damaged["the original of the near copy"] = train[3].relative_to(root).as_posix()
    return damaged


def decompression_bomb(side: int = 40_000) -> bytes:
    """Return a PNG of side×side white pixels in about 200 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit per pixel, grayscale
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


if __name__ == "__main__":
    for kind, name in damage_dataset(split_photos(Path(sys.argv[1]), Path(sys.argv[2]))).items():
        print(f"{kind}: {name}")
