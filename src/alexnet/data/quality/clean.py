"""A cleaned copy of a checked dataset: class folders of links; the original is not changed.

Everything skipped is counted and reported. One of several duplicates is kept, preferring test over val over train, so
that no test image is trained on. Duplicates with two labels are all skipped, since either label may be wrong.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from PIL import Image

from alexnet.data.image_folder import check_folders_for_training
from alexnet.data.image_names import is_hidden
from alexnet.data.quality.findings import Findings, pluralize, similar_labels
from alexnet.errors import UserError
from alexnet.files import atomic_folder

_SPLIT_PRIORITY = {"test": 0, "val": 1, "train": 2, "all": 2}


def check_target(out: Path, data: Path | None) -> None:
    """Raise `UserError` unless a cleaned copy of `data` can be written to `out`; call this before the slow check."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--fix {out} is not empty; choose an empty or new folder.")
    if data is not None and data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise UserError(f"--fix {out} is inside the dataset, which is not changed; choose a folder outside of {data}.")


def write_cleaned(found: Findings, out: Path) -> list[str]:
    """Write the copy to `out`, completely or not at all, and return sentences about what was done.

    Folders nested in class folders are not kept. Files are hard links if possible, else symbolic links (copies for an
    archive), and PNG if the dataset has no files.

    Raises `UserError` as `check_target` does, if nothing would be left, and if writing fails.
    """
    check_target(out, found.data)
    similar, labels = similar_labels(found.classes), _merge_labels(found)
    kept, actions = _choose_images(found, labels)
    actions += [f"Merged the labels {', '.join(map(repr, sorted(g)))} into {_to_folder_name(g[0])!r}." for g in similar]
    if not kept:
        raise UserError(f"The cleaned copy of {found.data} would be empty; add readable images.")
    methods: Counter[str] = Counter()
    used: Counter[Path] = Counter()
    moved: list[tuple[str, str]] = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out, flush=False) as partial:
            for i in kept:
                folder = partial / ("" if found.splits[i] == "all" else found.splits[i]) / _to_folder_name(labels[i])
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / PurePosixPath(found.names[i]).name
                used[path] += 1
                if used[path] > 1:  # several folders were merged
                    path = path.with_name(f"{path.stem}~{used[path]}{path.suffix}")
                inside = path.relative_to(partial)
                if found.labels_file is None and len(PurePosixPath(found.names[i]).parts) > len(inside.parts):
                    moved.append((found.names[i], inside.as_posix()))
                methods[_write_image(found, i, path)] += 1
            if out.exists():
                out.rmdir()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--fix {out} cannot be written ({reason}); choose another folder.") from error
    if moved:
        before, after = moved[0]
        actions.append(
            f"Placed in the folder of their class, without its nested folders: {pluralize(len(moved), 'image')}, "
            f"such as {before} as {after}."
        )
    counts = "; ".join(f"{count:,} as {method}" for method, count in methods.items())
    actions.append(f"Wrote {len(kept):,} of {len(found.names):,} images to {out}, {counts}; {found.data} is unchanged.")
    if methods["hard links"]:
        actions.append(
            "A hard link is a second name of the same file: it takes no space, and deleting one keeps the other, but "
            "editing one in place changes both."
        )
    return actions


def is_mendable(found: Findings) -> bool:
    """Return whether the copy would leave something out or merge labels, and can be trained on."""
    merged = _merge_labels(found)
    kept, _ = _choose_images(found, merged)
    by_split: dict[str, dict[str, list[str]]] = {"train": {}}
    for i in kept:
        split = "train" if found.splits[i] == "all" else found.splits[i]
        by_split.setdefault(split, {}).setdefault(merged[i], []).append(found.names[i])
    try:
        check_folders_for_training(found.root, {split: found.root / split for split in by_split}, by_split)
    except UserError:
        return False
    return bool(found.bad) or len(kept) < len(found.names) or merged != found.labels


def _merge_labels(found: Findings) -> list[str]:
    """Return the label of each image, of spellings that differ only in case or spacing the most frequent one."""
    merged = {label: group[0] for group in similar_labels(found.classes) for label in group}
    return [merged.get(label, label) for label in found.labels]


def _choose_images(found: Findings, labels: list[str]) -> tuple[list[int], list[str]]:
    """Return the images to keep and sentences about the others; `labels` are the labels after merging."""
    skipped: dict[int, str] = {}
    for i, info in enumerate(found.infos):
        if info.reason is not None:
            skipped[i] = "unreadable"
        elif not found.labels[i]:
            skipped[i] = "no class"
    for group in found.exact:
        first = min(group, key=lambda i: _SPLIT_PRIORITY[found.splits[i]])
        if len({labels[i] for i in group}) == 1:
            skipped |= {i: "exact duplicate" for i in group if i != first}
        else:
            skipped |= dict.fromkeys(group, "exact duplicates with two labels")
    for pair in found.near:
        a, b = sorted(pair, key=lambda i: _SPLIT_PRIORITY[found.splits[i]])
        leaks = labels[a] == labels[b] and found.splits[a] != found.splits[b]
        if leaks and a not in skipped and b not in skipped:
            skipped[b] = "near duplicate in another split"
    counts = Counter(skipped.values())
    actions = [f"Skipped ({reason}): {pluralize(count, 'image')}." for reason, count in counts.items()]
    return [i for i in range(len(found.names)) if i not in skipped], actions


def _write_image(found: Findings, i: int, path: Path) -> str:
    """Write image `i` to `path` and return the method, in a word or two."""
    if found.pixels is not None:
        pixels = found.pixels[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(f"{path}.png")
        return "PNG files"
    source = (found.root / found.names[i]).resolve()
    links: list[tuple[str, Callable[[Path, Path], object]]] = [("hard links", os.link), ("symbolic links", os.symlink)]
    if found.root != found.data and found.labels_file is None:
        del links[1]  # archives are extracted to the cache, which may be deleted
    for method, link in links:
        try:
            link(source, path)
            return method
        except OSError:
            continue
    shutil.copy2(source, path)
    return "copies"


def _to_folder_name(label: str) -> str:
    """Return a folder name that is read as a class again: characters that would be unsafe, ignored or unprintable are
    percent-encoded."""
    label = label.strip()
    name = quote(label, safe=" ") if not label.isprintable() else label.replace("/", "%2F").replace("\\", "%5C")
    return f"%{ord(name[0]):02X}{name[1:]}" if is_hidden(name) else name or "%20"
