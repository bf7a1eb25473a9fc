"""Small pictures of a run's data set for its page, kept in the run folder so that the page can be made again after the
data set has moved."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from alexnet.files import atomic_write
from alexnet.inference.neighbors import load_run_images
from alexnet.run_dir import Run

SIDE = 224  # pixels of the longer side: 112 on a page, sharp on a phone's screen


@dataclass(frozen=True)
class Thumbnails:
    """What could be had of some pictures, as data addresses by name, and why others could not."""

    found: dict[str, str]
    why: str = ""

    def html(self, name: str) -> str:
        """An image element, or nothing."""
        return f'<img alt="" src="{self.found[name]}">' if name in self.found else ""


def thumbnails(run: Run, names: Sequence[str], folder: Path) -> Thumbnails:
    """Pictures by the names that evaluations call them: from `folder` where they were kept before, else from the data
    set, and then kept."""
    places = {
        name: folder / f"{hashlib.sha1(name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.jpg" for name in names
    }
    why = ""
    wanted = [name for name, place in places.items() if not place.is_file()]
    if wanted:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, image in zip(wanted, load_run_images(run, wanted), strict=True):
                _keep(image, places[name])
        except Exception as error:  # gone, moved, damaged: any of many libraries may say so
            why = str(error).rstrip(".")
            _keep_those_left(run, wanted, places)
    found = {}
    for name, place in places.items():
        if place.is_file():
            found[name] = "data:image/jpeg;base64," + base64.b64encode(place.read_bytes()).decode()
    return Thumbnails(found, why)


def _keep_those_left(run: Run, wanted: Sequence[str], places: dict[str, Path]) -> None:
    """One by one, those whose files are still there."""
    try:
        root = Path(json.loads(run.recipe_json.read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in wanted:
        try:
            if (root / name).is_file():
                _keep(load_run_images(run, [name])[0], places[name])
        except Exception:
            continue


def _keep(image: Image.Image, place: Path) -> None:
    """Fitted into the square; small ones are enlarged by whole pixels, so that they stay sharp."""
    image = image.convert("RGB")
    if 2 * max(image.size) <= SIDE:
        factor = SIDE // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    elif max(image.size) > SIDE:
        image = ImageOps.contain(image, (SIDE, SIDE))
    with atomic_write(place) as beside:
        image.save(beside, "JPEG", quality=75)
