"""Damage done to a folder of good pictures, in fifteen ways, each under a name by which a test can ask for it.

Run it to try `alexnet check` by hand:  python tests/damage.py PICTURES NEW_FOLDER
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


def photographs(folder: Path, count: int, size: tuple[int, int] = (200, 150)) -> Path:
    """`count` JPEGs that are like photographs in what matters here: smooth, textured, no two alike."""
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


def grouped(pictures: Path, root: Path) -> Path:
    """The pictures by turns in three classes of train/, and every fifth in val/."""
    for i, path in enumerate(sorted(p for p in pictures.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))):
        split = "val" if i % 5 == 4 else "train"
        target = root / split / CLASSES[i % 3] / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return root


def damage(root: Path) -> dict[str, str]:
    """Damage the data set that `grouped` made; for each way the file (or class) that it was done to, below `root`."""
    train = sorted((root / "train" / "ant").iterdir())
    done: dict[str, str] = {}

    def new(way: str, name: str, split: str = "train", label: str = "ant") -> Path:
        path = root / split / label / name
        done[way] = path.relative_to(root).as_posix()
        return path

    def picture(i: int) -> Image.Image:
        return Image.open(train[i]).convert("RGB")

    new("empty", "empty.jpg").write_bytes(b"")
    whole = train[0].read_bytes()
    new("cut short", "cut.jpg").write_bytes(whole[: len(whole) // 2])
    new("web page", "page.jpg").write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    new("bomb", "bomb.png").write_bytes(bomb())
    new("no reader", "phone.jpg").write_bytes(struct.pack(">I4s4sI4s", 20, b"ftyp", b"heic", 0, b"mif1") + bytes(2000))
    still = picture(1).rotate(45)
    still.save(new("animated GIF", "moves.gif"), save_all=True, append_images=[still.rotate(180)])
    still = picture(8).rotate(55)
    still.save(new("animated WebP", "moves.webp"), save_all=True, append_images=[still.rotate(180)], duration=100)
    Image.new("RGB", (1, 1), "red").save(new("one pixel", "dot.png"))
    deep = np.linspace(0, 65535, 90 * 70).reshape(70, 90).astype(np.uint16)
    Image.fromarray(deep).save(new("16 bits", "deep.png"))
    picture(5).rotate(15).convert("CMYK").save(new("print colours", "print.jpg"))
    picture(6).rotate(25).save(new("lying name", "lying.jpg"), format="PNG")
    turned = picture(7).rotate(35)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(new("turned", "turned.jpg"), exif=exif)
    shutil.copyfile(train[2], new("exact copy", "copy.jpg", "val", "bee"))
    still = picture(3)
    shrunk = still.resize((still.width // 2, still.height // 2))
    shrunk.save(new("near copy", "shrunk.jpg", "val", "ant"), quality=60)
    for split in ("train", "val"):  # "cat " beside "cat": some of its pictures go over
        folder = root / split / "cat "
        folder.mkdir()
        for path in sorted((root / split / "cat").iterdir())[::2]:
            path.rename(folder / path.name)
    done["label with a space"] = "cat "
    done["the original of the exact copy"] = train[2].relative_to(root).as_posix()
    done["the original of the near copy"] = train[3].relative_to(root).as_posix()
    return done


def bomb(side: int = 40_000) -> bytes:
    """A PNG of side×side white pixels in some 200 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit a pixel, grey
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


if __name__ == "__main__":
    for way, where in damage(grouped(Path(sys.argv[1]), Path(sys.argv[2]))).items():
        print(f"{way}: {where}")
