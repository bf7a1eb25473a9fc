"""Images in pages, as data URLs; thumbnails of a run's images are cached in its folder and outlive the dataset."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from alexnet.errors import UserError
from alexnet.files import atomic_write, read_json
from alexnet.inference.neighbors import load_run_images
from alexnet.run_dir import Run

SIDE = 224  # pixels of the longer side: shown at 112 in the page, sharp on high-density screens


def data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image_url(image: Image.Image, form: str = "JPEG", **options: Any) -> str:
    """Return an image as a data URL of a JPEG or PNG file; `options` are those of Pillow's `save`."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return data_url(f"image/{form.lower()}", file.getvalue())


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """Fit an image into a square of `side` pixels; small images are enlarged by an integer factor to stay sharp."""
    longest = max(image.size)
    if longest > side:
        return ImageOps.contain(image, (side, side))
    factor = side // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def load_thumbnails(run: Run, names: Sequence[str], folder: Path) -> tuple[dict[str, str], str]:
    """Return data URLs of the images that evaluations call `names`, and why others are missing.

    Images come from `folder` or, if they are not cached there yet, from the dataset.
    """
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
    return urls, error


def _save_readable_files(run: Run, paths: dict[str, Path]) -> None:
    """Save thumbnails of those image files that still exist, one by one."""
    try:
        root = Path(read_json(run.recipe_json, dict[str, Any])["data"])
    except (OSError, UserError, KeyError, TypeError):
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
