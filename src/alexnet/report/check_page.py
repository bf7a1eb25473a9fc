"""The page of `alexnet check --html`: its findings as tables, diagrams and thumbnails, in one self-contained file.

The number of thumbnails and rows is limited, so that the page stays below 5 MB for any dataset. It states what it
leaves out; the JSON document has everything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alexnet.data.augment import Augment, augment
from alexnet.data.dataset import ImageFiles
from alexnet.data.datasets import decode_files
from alexnet.data.decode import decode_image
from alexnet.data.image_folder import map_in_threads
from alexnet.data.quality.findings import Findings, min_median_max
from alexnet.data.transforms import EvalTransform
from alexnet.files import write_text
from alexnet.messages.translator import Translator
from alexnet.report.html import escape_text, jpeg_url
from alexnet.report.thumbnails import fit_square
from alexnet.training.recipes import named_recipe

SIDE = 72  # of a thumbnail, in pixels
MAX_SAMPLES = 480  # thumbnails of all classes together
SAMPLES_PER_CLASS = 12
MAX_ROWS = 60  # of a table
MAX_PAIRS = 30  # of duplicates
MAX_DOTS = 1500  # in the diagram of sizes
AUGMENTED_IMAGES, VERSIONS = 12, 3  # and augmented versions of each
AUGMENTED_SIDE = 84

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --blue: #0072b2; --orange: #d55e00; --green: #009e73; }
@media (prefers-color-scheme: dark) { :root { --blue: #56b4e9; --orange: #e69f00; --green: #2fbf95; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: .95rem; margin: 1rem 0 .2rem; overflow-wrap: anywhere; }
.verdict { border-left: .4rem solid var(--green); padding: .2rem .8rem; }
.verdict.warning { border-color: var(--orange); }
.tiles { display: flex; flex-wrap: wrap; gap: .5rem 2rem; } .tiles b { display: block; font-size: 1.6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
td, th { padding: .15rem .5rem; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child, .text { text-align: left; overflow-wrap: anywhere; }
td.bar { width: 40%; text-align: left; white-space: nowrap; } td.text, td:first-child { min-width: 6rem; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
th { word-break: keep-all; } th i { display: inline-block; width: .7rem; height: .7rem; margin-right: .3rem; }
.bar div { height: .7rem; display: inline-block; vertical-align: middle; }
.wide { overflow-x: auto; } .row { display: flex; flex-wrap: wrap; gap: 4px; }
.row img, figure img { image-rendering: auto; border-radius: 3px; background: var(--soft); }
figure { margin: 0 0 .6rem; } figcaption { font-size: .8rem; overflow-wrap: anywhere; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .6rem 1rem; }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
@media print { body { max-width: none; } }
"""

SPLIT_COLORS = {"all": "--blue", "train": "--blue", "val": "--orange", "test": "--green"}


def write_page(findings: Findings, path: Path, lang: str = "en") -> Path:
    """Write the page of `findings` to `path` atomically, and return it. The shown images are decoded again.

    The verdict, warnings and reasons inside `findings` are in English in every language.
    """
    return _CheckPage(findings, Translator(lang)).write(path)


class _CheckPage:
    """Findings and the language of their page; each section method returns HTML, empty if there is nothing to show."""

    def __init__(self, findings: Findings, translate: Translator) -> None:
        self.findings, self.translate = findings, translate

    def write(self, path: Path) -> Path:
        found = self.findings
        warning = " warning" if found.blocking_error or found.warnings else ""
        parts = [
            f"<h1>{escape_text(found.data)}</h1>",
            f'<div class="verdict{warning}"><p>{escape_text(found.verdict)}</p></div>'
            f"<pre>{escape_text(found.command)}</pre>",
            self._totals(),
            self._section("check_warnings", _paragraphs(found.warnings)),
            f"<section>{_paragraphs(found.notes)}</section>" if found.notes else "",
            self._section("check_by_class", self._classes()),
            self._section("check_sizes", self._sizes()),
            self._section("check_formats", self._formats()),
            self._section("check_unreadable_files", self._table(("file", "reason"), found.bad)),
            self._section("check_unusual_images", self._unusual()),
            self._section("check_duplicates", self._duplicates()),
            self._section("check_samples", self._samples()),
            self._section("check_augmentation", self._augmentation()),
        ]
        title = self._text("check_title", data=found.data)
        page = (
            f'<!doctype html><html lang="{self.translate.tag}"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
            f"<style>{STYLE}</style></head><body>" + "\n".join(filter(None, parts)) + "</body></html>\n"
        )  # fmt: skip
        write_text(path, page)
        return path

    def _text(self, key: str, **values: object) -> str:
        return escape_text(self.translate(key, **values))

    def _section(self, key: str, body: str) -> str:
        return f"<section><h2>{self._text(key)}</h2>{body}</section>" if body else ""

    def _omitted_note(self, count: int, shown: int) -> str:
        """Return the number of items that are not shown."""
        return f"<p>{self._text('check_more', n=count - shown)}</p>" if count > shown else ""

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        if not rows:
            return ""
        head = "".join(f'<th class="text">{self._text(key)}</th>' for key in columns)
        body = "".join(
            "<tr>" + "".join(f'<td class="text">{escape_text(cell)}</td>' for cell in row) + "</tr>"
            for row in rows[:MAX_ROWS]
        )
        return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>' + self._omitted_note(len(rows), MAX_ROWS)

    # ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _totals(self) -> str:
        found = self.findings
        totals = {
            "check_images": len(found.names), "check_classes": len(found.classes), "check_unreadable": len(found.bad),
            "check_exact": sum(len(group) - 1 for group in found.exact), "check_near": len(found.near),
            "check_unusual": len(found.unusual),
        }  # fmt: skip
        tiles = "".join(f"<div><b>{count:,}</b>{self._text(key)}</div>" for key, count in totals.items())
        return f'<div class="tiles">{tiles}</div>'

    def _classes(self) -> str:
        """Return the classes by number of images, as a table with a bar for each split."""
        splits = self.findings.by_split
        rows = sorted(self.findings.classes.items(), key=lambda row: -row[1])
        if not rows:
            return ""
        omitted = max(0, len(rows) - 2 * MAX_ROWS)
        most = max(1, rows[0][1])
        body = ""
        for label, total in rows[:MAX_ROWS] + rows[-MAX_ROWS:] if omitted else rows:
            counts = {split: by_class.get(label, 0) for split, by_class in splits.items()}
            bars = "".join(
                f'<div title="{split} {n}" style="width:{100 * n / most:.2f}%;background:var({SPLIT_COLORS[split]})">'
                "</div>"
                for split, n in counts.items()
            )
            numbers = "".join(f"<td>{n:,}</td>" for n in counts.values()) if len(counts) > 1 else ""
            body += f'<tr><td>{_class_name(label)}</td>{numbers}<td>{total:,}</td><td class="bar">{bars}</td></tr>'
        headings = "".join(
            f'<th><i style="background:var({SPLIT_COLORS[split]})"></i>{escape_text(self.translate.split(split))}</th>'
            for split in (splits if len(splits) > 1 else ())
        )
        head = f"<tr><th>{self._text('class')}</th>{headings}<th>{self._text('check_all')}</th><th></th></tr>"
        note = f"<p>{self._text('check_classes_omitted', n=omitted)}</p>" if omitted else ""
        return f'<div class="wide"><table>{head}{body}</table></div>{note}'

    def _sizes(self) -> str:
        good = [self.findings.infos[i] for i in self.findings.readable]
        if not good:
            return ""
        sizes = Counter((image.width, image.height) for image in good)
        if len(sizes) == 1:
            (width, height), _ = sizes.popitem()
            return f"<p>{self._text('check_one_size', width=width, height=height)}</p>"
        low, median, high = min_median_max([image.width / image.height for image in good]) or (0, 0, 0)
        note = self._text("check_many_sizes", n=len(sizes), low=low, high=high, median=median)
        return f"<p>{note}</p>{self._sizes_svg(sizes)}"

    def _sizes_svg(self, sizes: Counter[tuple[int, int]]) -> str:
        """Return a scatter plot of width and height on logarithmic axes."""
        low = math.log10(min(min(size) for size in sizes)) - 0.05
        high = math.log10(max(max(size) for size in sizes)) + 0.05
        side, margin = 380, 46
        most = max(sizes.values())

        def position(value: float) -> float:
            return (math.log10(value) - low) / (high - low) * side

        ticks = [t * 10**e for e in range(6) for t in (1, 2, 5) if low <= math.log10(t * 10**e) <= high]
        right, line = margin + side, 'stroke="var(--line)"'
        parts = [f'<line x1="{margin}" y1="{side}" x2="{right}" y2="0" {line} stroke-dasharray="4"/>']
        for tick in ticks:
            x, y = margin + position(tick), side - position(tick)
            parts.append(f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{side}" {line}/>')
            parts.append(f'<line x1="{margin}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" {line}/>')
            parts.append(f'<text x="{x:.1f}" y="{side + 16}" text-anchor="middle">{tick}</text>')
            parts.append(f'<text x="{margin - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
        for (width, height), count in sizes.most_common(MAX_DOTS):
            radius = 2.5 + 5 * math.sqrt(count / most)
            parts.append(
                f'<circle cx="{margin + position(width):.1f}" cy="{side - position(height):.1f}" r="{radius:.1f}" '
                f'fill="var(--blue)" fill-opacity=".5"><title>{width}×{height}: {count}</title></circle>'
            )
        middle = side / 2
        parts.append(
            f'<text x="{margin + middle}" y="{side + 36}" text-anchor="middle">{self._text("check_width")}</text>'
            f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{self._text("check_height")}'
            "</text>"
        )
        box, label = f"0 -8 {right + 12} {side + 52}", self._text("check_sizes")
        return f'<svg viewBox="{box}" width="{right + 12}" role="img" aria-label="{label}">{"".join(parts)}</svg>'

    def _formats(self) -> str:
        images = [self.findings.infos[i] for i in self.findings.readable]
        counts = Counter((image.format or self.translate("check_no_file"), image.mode) for image in images)
        rows = [(form, mode, f"{n:,}") for (form, mode), n in counts.most_common()]
        return self._table(("check_format", "check_mode", "images"), rows)

    # ── images ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _thumbnails(self, indices: Sequence[int]) -> list[str]:
        """Return an `img` element for each image; they are decoded on all cores."""
        root, names, pixels = self.findings.root, self.findings.names, self.findings.pixels

        def render(i: int) -> str:
            image = decode_image(root / names[i]) if pixels is None else _to_image(pixels[i])
            name = escape_text(names[i])
            return f'<img src="{_thumbnail_url(image, SIDE)}" alt="{name}" title="{name}" loading="lazy">'

        return list(map_in_threads(render, indices, None, ""))

    def _unusual(self) -> str:
        found = self.findings
        shown = found.unusual[:MAX_ROWS]
        rows = "".join(
            f'<tr><td>{image}</td><td class="text">{escape_text(found.names[i])}</td>'
            f'<td class="text">{escape_text("; ".join(found.infos[i].anomalies))}</td></tr>'
            for i, image in zip(shown, self._thumbnails(shown), strict=True)
        )
        more = self._omitted_note(len(found.unusual), MAX_ROWS)
        return f'<div class="wide"><table>{rows}</table></div>{more}' if rows else ""

    def _duplicates(self) -> str:
        """Return pairs of duplicates, those across splits or classes first."""
        found = self.findings
        across = found.duplicates_across(found.splits) + found.duplicates_across(found.labels)
        pairs = list(dict.fromkeys(across + found.duplicates))
        shown = pairs[:MAX_PAIRS]
        images = iter(self._thumbnails([i for pair in shown for i in pair]))
        exact = {i for group in found.exact for i in group}
        body = ""
        for a, b in shown:
            is_exact = {a, b} <= exact and found.infos[a].digest == found.infos[b].digest
            kind = self._text("check_exact_pair" if is_exact else "check_near_pair")
            for key, values in (("check_two_splits", found.splits), ("check_two_labels", found.labels)):
                if values[a] != values[b]:
                    kind += f" · <b>{self._text(key)}</b>"
            names = f"{escape_text(found.names[a])}<br>{escape_text(found.names[b])}"
            body += f"<figure>{next(images)} {next(images)}<figcaption>{kind}<br>{names}</figcaption></figure>"
        return f'<div class="pairs">{body}</div>{self._omitted_note(len(pairs), MAX_PAIRS)}' if shown else ""

    def _samples(self) -> str:
        """Return images of each class, evenly spaced in its list."""
        found = self.findings
        labels = list(found.classes)[:MAX_SAMPLES]
        per_class = max(1, min(SAMPLES_PER_CLASS, MAX_SAMPLES // max(1, len(labels))))
        members: dict[str, list[int]] = {label: [] for label in labels}
        for i in found.readable:
            if found.labels[i] in members:
                members[found.labels[i]].append(i)
        samples = {label: _evenly_spaced(indices, per_class) for label, indices in members.items() if indices}
        images = iter(self._thumbnails([i for indices in samples.values() for i in indices]))
        body = ""
        for label, indices in samples.items():
            row = "".join(next(images) for _ in indices)
            body += f'<h3>{_class_name(label)} ({len(members[label]):,})</h3><div class="row">{row}</div>'
        return body + self._omitted_note(len(found.classes), len(labels)) if body else ""

    def _augmentation(self) -> str:
        """Return training images next to their augmented versions in the recipe's first epochs."""
        found, recipe = self.findings, named_recipe(self.findings.recipe)
        train = [
            i
            for i in found.readable
            if found.splits[i] in ("train", "all") and min(found.infos[i].width, found.infos[i].height) > 1
        ]
        if not train:
            return ""
        chosen = _evenly_spaced(train, AUGMENTED_IMAGES)
        config = Augment(
            crop=recipe.crop, padding=recipe.padding, padding_mode=recipe.padding_mode, scale=recipe.scale,
            flip=recipe.flip, rotate=recipe.rotate, jitter=recipe.jitter,
        )  # fmt: skip
        if found.pixels is None:
            size = 112
            names = [found.names[i] for i in chosen]
            files = ImageFiles(found.root, names, torch.zeros(len(chosen), dtype=torch.int64))
            originals = decode_files(files, EvalTransform(size), config).images
        else:
            originals = found.pixels[chosen]
            channels = originals.shape[1]
            size = recipe.image_size or originals.shape[-1]
            transform = EvalTransform(size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
            originals = transform.resize_batch(originals)
        rows = np.arange(len(chosen))
        versions = [augment(originals, rows, epoch, 0, config, size) for epoch in range(VERSIONS)]
        body = ""
        for k, i in enumerate(chosen):
            images = [originals[k], *(version[k] for version in versions)]
            row = "".join(f'<img src="{_thumbnail_url(_to_image(x), AUGMENTED_SIDE)}" alt="">' for x in images)
            caption = escape_text(found.names[i])
            body += f'<figure><div class="row">{row}</div><figcaption>{caption}</figcaption></figure>'
        note = self._text("check_augmentation_note", recipe=found.recipe)
        return f'<p>{note}</p><div class="many">{body}</div>'


def _paragraphs(sentences: Sequence[str]) -> str:
    return "".join(f"<p>{escape_text(sentence)}</p>" for sentence in sentences)


def _class_name(label: str) -> str:
    """Return a class name, in quotes if it has leading or trailing spaces."""
    return escape_text(label if label == label.strip() else repr(label))


def _evenly_spaced(indices: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of `indices`, evenly spaced."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)
    return [indices[k] for k in np.unique(places)]


def _to_image(pixels: torch.Tensor) -> Image.Image:
    """Convert a uint8 C×H×W tensor to an image."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array if array.shape[-1] == 3 else array[..., 0])


def _thumbnail_url(image: Image.Image, side: int) -> str:
    return jpeg_url(fit_square(image, side), quality=72)
