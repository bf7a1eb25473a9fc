"""Thumbnails of a run's images for its report, cached in the run folder so that they outlive the dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from alexnet.files import atomic_write
from alexnet.inference.neighbors import load_run_images
from alexnet.report.html import data_url
from alexnet.run_dir import Run

SIDE = 224  # pixels of the longer side: shown at 112 in the page, sharp on high-density screens


@dataclass(frozen=True)
class Thumbnails:
    """Data URLs by image name, and why others are missing."""

    urls: dict[str, str]
    error: str = ""

    def html(self, name: str) -> str:
        """Return an `img` element, or nothing if the image is missing."""
        return f'<img alt="" src="{self.urls[name]}">' if name in self.urls else ""


def load_thumbnails(run: Run, names: Sequence[str], folder: Path) -> Thumbnails:
    """Load thumbnails of the images that evaluations call `names`, from `folder` or, if they are not cached there yet,
    from the dataset."""
    paths = {
        name: folder / f"{hashlib.sha1(name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.jpg" for name in names
    }
    error = ""
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, image in zip(missing, load_run_images(run, missing), strict=True):
                _save_thumbnail(image, paths[name])
        except Exception as failure:  # missing, moved or damaged data raises exceptions of many libraries
            error = str(failure).rstrip(".")
            _save_readable_files(run, {name: paths[name] for name in missing})
    urls = {name: data_url("image/jpeg", path.read_bytes()) for name, path in paths.items() if path.is_file()}
    return Thumbnails(urls, error)


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """Fit an image into a square of `side` pixels; small images are enlarged by an integer factor to stay sharp."""
    longest = max(image.size)
    if longest > side:
        return ImageOps.contain(image, (side, side))
    factor = side // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _save_readable_files(run: Run, paths: dict[str, Path]) -> None:
    """Save thumbnails of those image files that still exist, one by one."""
    try:
        root = Path(json.loads(run.recipe_json.read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name, path in paths.items():
        try:
            if (root / name).is_file():
                _save_thumbnail(load_run_images(run, [name])[0], path)
        except Exception:
            continue


def _save_thumbnail(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        fit_square(image.convert("RGB"), SIDE).save(temporary, "JPEG", quality=75)
