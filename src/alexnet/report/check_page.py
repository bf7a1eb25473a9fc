"""The page of `alexnet check --html`: its findings as tables, diagrams and thumbnails, in one self-contained file.

Each function computes the values of a section of templates/check.html. The number of thumbnails and rows is limited, so
that the page stays below 5 MB for any dataset. It states what it leaves out; the JSON document has everything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alexnet.data.augment import augment
from alexnet.data.dataset import ImageFiles
from alexnet.data.decode import decode_image, map_in_threads
from alexnet.data.in_memory import decode_files
from alexnet.data.quality.findings import Findings, min_median_max
from alexnet.data.transforms import EvalTransform
from alexnet.files import write_text
from alexnet.inference.load import evenly_spaced
from alexnet.messages.translator import Translator, load_template
from alexnet.notebook.display import image_url
from alexnet.report.page import fit_square
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import build_augment

SIDE = 72  # of a thumbnail, in pixels
MAX_SAMPLES = 480  # thumbnails of all classes together
SAMPLES_PER_CLASS = 12
MAX_ROWS = 60  # of a table
MAX_FILES = 12  # that cannot be read for one reason
MAX_PAIRS = 30  # of duplicates
MAX_DOTS = 1500  # in the diagram of sizes
DIAGRAM_SIDE = 380  # of the diagram of sizes, in pixels
AUGMENTED_IMAGES, VERSIONS = 12, 3  # and augmented versions of each
AUGMENTED_SIDE = 84

Values = dict[str, Any]
"""Values of a section of the template."""


def write_page(findings: Findings, path: Path, lang: str = "en") -> Path:
    """Write the page of `findings` to `path` atomically, and return it. The shown images are decoded again.

    The English sentences of `findings` are translated.
    """
    template, translate = load_template("alexnet.report", "check.html", lang), Translator(lang)
    unusual = [(findings.names[i], translate.clauses(findings.infos[i].anomalies)) for i in findings.unusual]
    page = template.render(
        found=findings,
        totals=_totals(findings),
        classes=_classes(findings),
        sizes=_sizes(findings),
        formats=_first_rows(_formats(findings, translate("check_no_file"))),
        unreadable=_unreadable(findings, translate),
        unusual=_first_rows(unusual) | {"thumbnails": _thumbnails(findings, findings.unusual[:MAX_ROWS])},
        duplicates=_duplicates(findings),
        samples=_samples(findings),
        augmented=_augmented(findings),
    )
    write_text(path, page)
    return path


def _first_rows(rows: Sequence[Sequence[str]]) -> Values:
    return {"rows": rows[:MAX_ROWS], "omitted": max(0, len(rows) - MAX_ROWS)}


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────


def _totals(found: Findings) -> dict[str, int]:
    return {
        "check_images": len(found.names), "check_classes": len(found.present),
        "check_unreadable": sum(map(len, found.by_reason.values())),
        "check_exact": sum(len(group) - 1 for group in found.exact), "check_near": len(found.near),
        "check_unusual": len(found.unusual),
    }  # fmt: skip


def _unreadable(found: Findings, translate: Translator) -> list[tuple[str, list[str], int]]:
    """Return each reason with the first of its files and the number of all."""
    return [(translate.sentence(reason), names[:MAX_FILES], len(names)) for reason, names in found.by_reason.items()]


def _classes(found: Findings) -> Values:
    """Return the classes by number of images: name, images in each split, and in all."""
    splits = found.by_split
    rows = sorted(found.present.items(), key=lambda row: -row[1])
    omitted = max(0, len(rows) - 2 * MAX_ROWS)
    return {
        "splits": list(splits),
        "most": max(1, rows[0][1]) if rows else 1,
        "rows": [
            (_class_name(label), [by_class.get(label, 0) for by_class in splits.values()], total)
            for label, total in (rows[:MAX_ROWS] + rows[-MAX_ROWS:] if omitted else rows)
        ],
        "omitted": omitted,
    }


def _sizes(found: Findings) -> Values | None:
    """Return the one size of all images, or dots and ticks of a diagram with logarithmic axes."""
    good = [found.infos[i] for i in found.readable]
    if not good:
        return None
    sizes = Counter((image.width, image.height) for image in good)
    if len(sizes) == 1:
        (width, height), _ = sizes.popitem()
        return {"count": 1, "width": width, "height": height}
    low, median, high = min_median_max([image.width / image.height for image in good]) or (0, 0, 0)
    first = math.log10(min(min(size) for size in sizes)) - 0.05
    last = math.log10(max(max(size) for size in sizes)) + 0.05
    most = max(sizes.values())

    def position(value: float) -> float:
        return (math.log10(value) - first) / (last - first) * DIAGRAM_SIDE

    ticks = [t * 10**e for e in range(6) for t in (1, 2, 5) if first <= math.log10(t * 10**e) <= last]
    dots = [
        {"x": position(width), "y": position(height), "radius": 2.5 + 5 * math.sqrt(count / most),
         "title": f"{width}×{height}: {count:,}"}
        for (width, height), count in sizes.most_common(MAX_DOTS)
    ]  # fmt: skip
    return {
        "count": len(sizes), "low": low, "median": median, "high": high, "side": DIAGRAM_SIDE, "dots": dots,
        "ticks": [(tick, position(tick)) for tick in ticks],
    }  # fmt: skip


def _formats(found: Findings, no_file: str) -> list[tuple[str, str, str]]:
    """Return file format, color mode and number of images."""
    images = [found.infos[i] for i in found.readable]
    counts = Counter((image.format or no_file, image.mode) for image in images)
    return [(form, mode, f"{n:,}") for (form, mode), n in counts.most_common()]


# ── images ────────────────────────────────────────────────────────────────────────────────────────


def _thumbnails(found: Findings, indices: Sequence[int]) -> list[Values]:
    """Return name and data URL of each image, "" for one that cannot be read; they are decoded on all cores."""
    value_range = found.value_range.value_range if found.value_range else None

    def render(i: int) -> str:
        if found.pixels is not None:
            return _thumbnail_url(_to_image(found.pixels[i]), SIDE)
        image = decode_image(found.root / found.names[i], value_range=value_range)
        return _thumbnail_url(image, SIDE)

    urls = map_in_threads(render, indices)
    return [{"name": found.names[i], "url": url} for i, url in zip(indices, urls, strict=True)]


def _duplicates(found: Findings) -> Values:
    """Return pairs of duplicates, those across splits or classes first."""
    across = found.duplicates_across(found.splits) + found.duplicates_across(found.labels)
    pairs = list(dict.fromkeys(across + found.duplicates))
    shown = pairs[:MAX_PAIRS]
    images = iter(_thumbnails(found, [i for pair in shown for i in pair]))
    exact = {i for group in found.exact for i in group}
    kinds = (("check_two_splits", found.splits), ("check_two_labels", found.labels))
    return {
        "pairs": [
            {
                "images": (next(images), next(images)),
                "exact": {a, b} <= exact and found.infos[a].digest == found.infos[b].digest,
                "differences": [key for key, values in kinds if values[a] != values[b]],
            }
            for a, b in shown
        ],
        "omitted": len(pairs) - len(shown),
    }


def _samples(found: Findings) -> Values:
    """Return name and size of each class, and some of its images, evenly spaced in its list."""
    labels = list(found.present)[:MAX_SAMPLES]
    per_class = max(1, min(SAMPLES_PER_CLASS, MAX_SAMPLES // max(1, len(labels))))
    members: dict[str, list[int]] = {label: [] for label in labels}
    for i in found.readable:
        if found.labels[i] in members:
            members[found.labels[i]].append(i)
    samples = {label: evenly_spaced(indices, per_class) for label, indices in members.items() if indices}
    images = iter(_thumbnails(found, [i for indices in samples.values() for i in indices]))
    return {
        "rows": [
            (_class_name(label), len(members[label]), [next(images) for _ in indices])
            for label, indices in samples.items()
        ],
        "omitted": len(found.present) - len(labels),
    }


def _augmented(found: Findings) -> list[tuple[str, list[str]]]:
    """Return training images, each with its augmented versions in the recipe's first epochs, as data URLs."""
    recipe = named_recipe(found.recipe)
    train = [
        i
        for i in found.readable
        if found.splits[i] in ("train", "all") and min(found.infos[i].width, found.infos[i].height) > 1
    ]
    if not train:
        return []
    chosen = evenly_spaced(train, AUGMENTED_IMAGES)
    config = replace(build_augment(recipe.augmentation), crop_group=1)  # different crops show more
    if found.pixels is None:
        size = 112
        value_range = found.value_range.value_range if found.value_range else None
        names = [found.names[i] for i in chosen]
        files = ImageFiles(found.root, names, torch.zeros(len(chosen), dtype=torch.int64))
        originals = decode_files(files, EvalTransform(size, value_range=value_range), config).images
    else:
        originals = found.pixels[chosen]
        channels = originals.shape[1]
        size = recipe.model.image_size or originals.shape[-1]
        transform = EvalTransform(size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
        originals = transform.resize_batch(originals)
    rows = np.arange(len(chosen))
    versions = [originals, *(augment(originals, rows, epoch, 0, config, size) for epoch in range(VERSIONS))]
    return [
        (found.names[i], [_thumbnail_url(_to_image(version[k]), AUGMENTED_SIDE) for version in versions])
        for k, i in enumerate(chosen)
    ]


def _class_name(label: str) -> str:
    """Return a class name, in quotes if it has leading or trailing spaces."""
    return label if label == label.strip() else repr(label)


def _to_image(pixels: torch.Tensor) -> Image.Image:
    """Convert a uint8 C×H×W tensor to an image."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array if array.shape[-1] == 3 else array[..., 0])


def _thumbnail_url(image: Image.Image, side: int) -> str:
    return image_url(fit_square(image, side), quality=72)
