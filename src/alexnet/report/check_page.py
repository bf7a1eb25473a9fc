"""The page of a check: what `alexnet check` found, drawn. One file without links, readable on a phone, in both themes.

Pictures are shown small and their number is limited, so that the page stays below 5 MB for any data set; what it leaves
out it says, and the JSON document has all.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from alexnet.data.augment import Augment, augment
from alexnet.data.dataset import ImageFiles
from alexnet.data.datasets import decode_files
from alexnet.data.decode import decode_image
from alexnet.data.image_folder import map_in_threads
from alexnet.data.quality.findings import Findings, min_median_max
from alexnet.data.transforms import EvalTransform
from alexnet.files import printable, write_text
from alexnet.training.recipes import named_recipe

SIDE = 72  # pixels of a small picture
SHEET = 480  # small pictures in all contact sheets together
PER_CLASS = 12
ROWS = 60  # of a table
PAIRS = 30  # of duplicates that are drawn
DOTS = 1500  # in the diagram of sizes
AUGMENTED, VERSIONS = 12, 3  # pictures, and versions of each

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --blue: #0072b2; --orange: #d55e00; --green: #009e73; }
@media (prefers-color-scheme: dark) { :root { --blue: #56b4e9; --orange: #e69f00; --green: #2fbf95; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: .95rem; margin: 1rem 0 .2rem; overflow-wrap: anywhere; }
.verdict { border-left: .4rem solid var(--green); padding: .2rem .8rem; }
.verdict.warned { border-color: var(--orange); }
.tiles { display: flex; flex-wrap: wrap; gap: .5rem 2rem; } .tiles b { display: block; font-size: 1.6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
td, th { padding: .15rem .5rem; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child, td.text { text-align: left; overflow-wrap: anywhere; }
td.bar { width: 40%; text-align: left; white-space: nowrap; } td.text { min-width: 8rem; }
td:first-child { min-width: 6rem; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
th i { display: inline-block; width: .7rem; height: .7rem; margin-right: .3rem; }
.bar div { height: .7rem; display: inline-block; vertical-align: middle; }
.wide { overflow-x: auto; } .row { display: flex; flex-wrap: wrap; gap: 4px; }
.row img, figure img { image-rendering: auto; border-radius: 3px; background: var(--soft); }
figure { margin: 0 0 .6rem; } figcaption { font-size: .8rem; overflow-wrap: anywhere; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .6rem 1rem; }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
@media print { body { max-width: none; } }
"""

COLOURS = {"all": "--blue", "train": "--blue", "val": "--orange", "test": "--green"}


def write_page(found: Findings, path: Path) -> Path:
    """Draw `found` to `path`, whole or not at all, and return it. The pictures are read again, a few of them."""
    name = escape(printable(str(found.data)))
    warned = " warned" if found.blocking_error or found.warnings else ""
    parts = [
        f"<h1>{name}</h1>",
        f'<div class="verdict{warned}"><p>{_text(found.verdict)}</p></div><pre>{_text(found.command)}</pre>',
        _tiles(found),
        _section("Warnings", "".join(f"<p>{_text(warning)}</p>" for warning in found.warnings)),
        _section("", "".join(f"<p>{_text(note)}</p>" for note in found.notes)),
        _section("Pictures of each class", _classes(found)),
        _section("Sizes", _sizes(found)),
        _section("Kinds", _kinds(found)),
        _section("Cannot be read", _table(("file", "why"), found.bad)),
        _section("Unusual", _unusual(found)),
        _section("Duplicates", _duplicates(found)),
        _section("A look at each class", _sheets(found)),
        _section("What training makes of them", _augmented(found)),
    ]
    head = f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>check {name}</title>'
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}<style>{STYLE}</style></head><body>'
    write_text(path, page + "\n".join(filter(None, parts)) + "</body></html>\n")
    return path


def _text(words: str) -> str:
    """Any text, a file name with odd bytes included, on a page."""
    return escape(printable(words))


def _label(label: str) -> str:
    """A class name, in quotes where spaces stand about it."""
    return _text(label if label == label.strip() else repr(label))


def _section(title: str, body: str) -> str:
    heading = f"<h2>{title}</h2>" if title else ""
    return f"<section>{heading}{body}</section>" if body else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    body = "".join(
        "<tr>" + "".join(f'<td class="text">{_text(cell)}</td>' for cell in row) + "</tr>" for row in rows[:ROWS]
    )
    return (
        '<table><tr><th class="text">'
        + '</th><th style="text-align:left">'.join(head)
        + f"</th></tr>{body}</table>"
        + _rest(len(rows), ROWS)
    )


def _rest(count: int, shown: int) -> str:
    return f"<p>… and {count - shown:,} more.</p>" if count > shown else ""


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────────


def _tiles(found: Findings) -> str:
    copies = sum(len(group) - 1 for group in found.exact)
    facts = [("pictures", len(found.names)), ("classes", len(found.classes)), ("cannot be read", len(found.bad))]
    facts += [("copies", copies), ("pairs that look the same", len(found.near)), ("unusual", len(found.unusual))]
    tiles = "".join(f"<div><b>{count:,}</b>{what}</div>" for what, count in facts)
    return f'<div class="tiles">{tiles}</div>'


def _classes(found: Findings) -> str:
    splits = found.by_split
    rows = sorted(found.classes.items(), key=lambda row: -row[1])
    if not rows:
        return ""
    left = max(0, len(rows) - 2 * ROWS)
    shown = rows if not left else rows[:ROWS] + rows[-ROWS:]
    most = max(1, rows[0][1])
    body = ""
    for label, total in shown:
        counts = {split: by_class.get(label, 0) for split, by_class in splits.items()}
        bars = "".join(
            f'<div title="{split} {n}" style="width:{100 * n / most:.2f}%;background:var({COLOURS[split]})"></div>'
            for split, n in counts.items()
        )
        numbers = "".join(f"<td>{n:,}</td>" for n in counts.values()) if len(counts) > 1 else ""
        body += f'<tr><td>{_label(label)}</td>{numbers}<td>{total:,}</td><td class="bar">{bars}</td></tr>'
    marks = "".join(f'<th><i style="background:var({COLOURS[split]})"></i>{split}</th>' for split in splits)
    names = marks if len(splits) > 1 else ""
    head = f"<tr><th>class</th>{names}<th>all</th><th></th></tr>"
    said = f"<p>{left:,} classes between the largest and the smallest are not shown.</p>" if left else ""
    return f'<div class="wide"><table>{head}{body}</table></div>{said}'


def _sizes(found: Findings) -> str:
    good = [found.infos[i] for i in found.good]
    if not good:
        return ""
    sizes = Counter((looked.width, looked.height) for looked in good)
    if len(sizes) == 1:
        (width, height), _ = sizes.popitem()
        return f"<p>All pictures are {width}×{height} pixels.</p>"
    low, middle, high = min_median_max([looked.width / looked.height for looked in good]) or (0, 0, 0)
    said = f"<p>{len(sizes):,} sizes. Width over height: {low:.2f} to {high:.2f}, median {middle:.2f}. "
    return (
        said + "Each dot is a size, larger where many pictures have it; both axes are logarithmic.</p>" + _dots(sizes)
    )


def _dots(sizes: Counter[tuple[int, int]]) -> str:
    """Width against height, both logarithmic."""
    low = math.log10(min(min(size) for size in sizes)) - 0.05
    high = math.log10(max(max(size) for size in sizes)) + 0.05
    side, margin = 380, 46
    most = max(sizes.values())

    def place(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * side

    ticks = [t * 10**e for e in range(6) for t in (1, 2, 5) if low <= math.log10(t * 10**e) <= high]
    parts = [f'<line x1="{margin}" y1="{side}" x2="{margin + side}" y2="0" stroke="var(--line)" stroke-dasharray="4"/>']
    for tick in ticks:
        x, y = margin + place(tick), side - place(tick)
        parts.append(f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{side}" stroke="var(--line)"/>')
        parts.append(f'<line x1="{margin}" y1="{y:.1f}" x2="{margin + side}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{x:.1f}" y="{side + 16}" text-anchor="middle">{tick}</text>')
        parts.append(f'<text x="{margin - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    for (width, height), count in sizes.most_common(DOTS):
        radius = 2.5 + 5 * math.sqrt(count / most)
        parts.append(
            f'<circle cx="{margin + place(width):.1f}" cy="{side - place(height):.1f}" r="{radius:.1f}" '
            f'fill="var(--blue)" fill-opacity=".5"><title>{width}×{height}: {count}</title></circle>'
        )
    parts.append(f'<text x="{margin + side / 2}" y="{side + 36}" text-anchor="middle">width in pixels</text>')
    parts.append(f'<text transform="translate(11 {side / 2}) rotate(-90)" text-anchor="middle">height in pixels</text>')
    box = f"0 -8 {margin + side + 12} {side + 52}"
    return f'<svg viewBox="{box}" width="{margin + side + 12}" role="img" aria-label="sizes">{"".join(parts)}</svg>'


def _kinds(found: Findings) -> str:
    good = [found.infos[i] for i in found.good]
    kinds = Counter((looked.format or "in memory", looked.mode) for looked in good)
    rows = [(kind, mode, f"{count:,}") for (kind, mode), count in kinds.most_common()]
    return _table(("format", "colours", "pictures"), rows)


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────────────────


def _image(found: Findings, i: int) -> Image.Image:
    if found.pixels is None:
        return decode_image(found.root / found.names[i])
    return _picture(found.pixels[i])


def _picture(pixels: torch.Tensor) -> Image.Image:
    """uint8 C×H×W as an image."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array if array.shape[-1] == 3 else array[..., 0])


def _data(image: Image.Image, side: int = SIDE) -> str:
    """An image element: fitted into a square of `side` pixels, small ones enlarged by whole pixels."""
    if max(image.size) < side:
        factor = max(1, side // max(image.size))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image = ImageOps.contain(image, (side, side)) if max(image.size) > side else image
    file = io.BytesIO()
    image.save(file, "JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _thumbnails(found: Findings, chosen: Sequence[int]) -> list[str]:
    """An `img` for each picture, read on all cores."""

    def draw(i: int) -> str:
        title = _text(found.names[i])
        return f'<img src="{_data(_image(found, i))}" alt="{title}" title="{title}" loading="lazy">'

    return list(map_in_threads(draw, chosen, None, ""))


def _unusual(found: Findings) -> str:
    chosen = found.unusual[:ROWS]
    rows = "".join(
        f'<tr><td>{image}</td><td class="text">{_text(found.names[i])}</td>'
        f'<td class="text">{_text("; ".join(found.infos[i].anomalies))}</td></tr>'
        for i, image in zip(chosen, _thumbnails(found, chosen), strict=True)
    )
    return f"<table>{rows}</table>{_rest(len(found.unusual), ROWS)}" if rows else ""


def _duplicates(found: Findings) -> str:
    """Pairs, those first that lie in two splits or classes."""
    grave = dict.fromkeys(found.crossing(found.splits) + found.crossing(found.labels) + found.duplicates)
    pairs = list(grave)[:PAIRS]
    if not pairs:
        return ""
    images = _thumbnails(found, [i for pair in pairs for i in pair])
    exact = {i for group in found.exact for i in group}
    body = ""
    for k, (a, b) in enumerate(pairs):
        how = (
            "the same to the byte"
            if {a, b} <= exact and found.infos[a].digest == found.infos[b].digest
            else "look alike"
        )
        apart = [what for what, of in (("splits", found.splits), ("labels", found.labels)) if of[a] != of[b]]
        how += f", <b>two {' and two '.join(apart)}</b>" if apart else ""
        names = f"{_text(found.names[a])}<br>{_text(found.names[b])}"
        body += f"<figure>{images[2 * k]} {images[2 * k + 1]}<figcaption>{how}<br>{names}</figcaption></figure>"
    return f'<div class="pairs">{body}</div>{_rest(len(grave), PAIRS)}'


def _sheets(found: Findings) -> str:
    """Some pictures of each class, evenly spread over it."""
    labels = list(found.classes)[:SHEET]
    each = max(1, min(PER_CLASS, SHEET // max(1, len(labels))))
    members: dict[str, list[int]] = {label: [] for label in labels}
    for i in found.good:
        if found.labels[i] in members:
            members[found.labels[i]].append(i)
    chosen = {
        label: [own[k] for k in np.unique(np.linspace(0, len(own) - 1, min(each, len(own))).astype(int))]
        for label, own in members.items()
        if own
    }
    images = iter(_thumbnails(found, [i for own in chosen.values() for i in own]))
    body = "".join(
        f'<h3>{_label(label)} ({len(members[label]):,})</h3><div class="row">{"".join(next(images) for _ in own)}</div>'
        for label, own in chosen.items()
    )
    return body + (_rest(len(found.classes), len(labels)) if body else "")


def _augmented(found: Findings) -> str:
    """Pictures, and what the recipe's random changes make of each in its first epochs."""
    recipe = named_recipe(found.recipe)
    pool = [i for i in found.good if found.splits[i] in ("train", "all") and min(found.infos[i][3:5]) > 1]
    if not pool:
        return ""
    chosen = [pool[k] for k in np.unique(np.linspace(0, len(pool) - 1, min(AUGMENTED, len(pool))).astype(int))]
    cfg = Augment(
        crop=recipe.crop, padding=recipe.padding, padding_mode=recipe.padding_mode, scale=recipe.scale,
        flip=recipe.flip, rotate=recipe.rotate, jitter=recipe.jitter,
    )  # fmt: skip
    if found.pixels is None:
        files = ImageFiles(found.root, [found.names[i] for i in chosen], torch.zeros(len(chosen), dtype=torch.int64))
        size = 112
        squares = decode_files(files, EvalTransform(size), cfg).images
    else:
        squares = found.pixels[chosen]
        size = recipe.image_size or squares.shape[-1]
        plain = (0.0,) * squares.shape[1], (1.0,) * squares.shape[1]
        squares = EvalTransform(size, channels=squares.shape[1], mean=plain[0], std=plain[1]).resize_batch(squares)
    versions = [augment(squares, np.arange(len(chosen)), epoch, 0, cfg, size) for epoch in range(VERSIONS)]
    body = ""
    for k, i in enumerate(chosen):
        images = [squares[k], *(version[k] for version in versions)]
        row = "".join(f'<img src="{_data(_picture(image), 84)}" alt="">' for image in images)
        body += f'<figure><div class="row">{row}</div><figcaption>{_text(found.names[i])}</figcaption></figure>'
    said = f"<p>On the left as it is, then as the recipe '{found.recipe}' changes it at random.</p>"
    return f'{said}<div class="many">{body}</div>'
