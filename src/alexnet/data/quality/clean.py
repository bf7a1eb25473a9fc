"""A cleaned copy of a data set that was checked: class folders of links, beside which the original stays as it is.

What is left out is counted and said. Of copies one stays: in test rather than in val, in val rather than in train, so
that nothing is tested that was learnt. Of copies with two labels none stays, for nobody knows which label is right.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from PIL import Image

from alexnet.data.quality.findings import Findings, alike_labels
from alexnet.errors import UserError

_KEPT_FIRST = {"test": 0, "val": 1, "train": 2, "all": 2}


def check_target(out: Path, data: Path | None) -> None:
    """Raise `UserError` unless a cleaned copy of `data` can be written to `out`; to be asked before the long look."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--fix {out} is not empty; choose a folder that is empty or does not exist yet.")
    if data is not None and data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise UserError(
            f"--fix {out} lies in the data itself, which stays as it is; choose a folder outside of {data}."
        )


def write_cleaned(found: Findings, out: Path) -> list[str]:
    """Write the copy to `out`, whole or not at all, and return what was done, in sentences.

    Files are hard links where the file system allows, else symbolic links (of an archive's: copies), and PNG where the
    data set has no files. Raises `UserError` as `check_target`, where nothing would be left, and if the disk refuses.
    """
    check_target(out, found.data)
    alike = alike_labels(found.classes)
    merged = {label: group[0] for group in alike for label in group}
    labels = [merged.get(label, label) for label in found.labels]
    kept, said = _chosen(found, labels)
    said += [f"Merged the labels {', '.join(map(repr, sorted(g)))} into {_folder_name(g[0])!r}." for g in alike]
    if not kept:
        raise UserError(f"Nothing of {found.data} would be left in the cleaned copy; there is nothing to train on.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"--fix {out} cannot be written ({error.strerror}); choose another folder.") from error
    try:
        ways: Counter[str] = Counter()
        taken: Counter[Path] = Counter()
        for i in kept:
            folder = beside / ("" if found.splits[i] == "all" else found.splits[i]) / _folder_name(labels[i])
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / PurePosixPath(found.names[i]).name
            taken[path] += 1
            if taken[path] > 1:  # pictures of several folders come together
                path = path.with_name(f"{path.stem}~{taken[path]}{path.suffix}")
            ways[_place(found, i, path)] += 1
        beside.chmod(0o755)
        if out.exists():
            out.rmdir()
        beside.rename(out)
    except OSError as error:
        raise UserError(f"--fix {out} cannot be written ({error}); choose another folder.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    counts = ", ".join(f"{count} as {way}" for way, count in ways.items())
    return [*said, f"Wrote {len(kept)} of {len(found.names)} pictures to {out}, {counts}; {found.data} is unchanged."]


def _chosen(found: Findings, labels: list[str]) -> tuple[list[int], list[str]]:
    """The pictures that stay, and why others do not; `labels` are those that they will have."""
    out: dict[int, str] = {}
    for i, looked in enumerate(found.seen):
        if looked.reason is not None:
            out[i] = "cannot be read"
        elif not found.labels[i]:
            out[i] = "lie in no class"
    for group in found.exact:
        first = min(group, key=lambda i: _KEPT_FIRST[found.splits[i]])
        if len({labels[i] for i in group}) == 1:
            out |= {i: "are copies of another" for i in group if i != first}
        else:
            out |= dict.fromkeys(group, "are copies under two labels")
    for pair in found.near:
        a, b = sorted(pair, key=lambda i: _KEPT_FIRST[found.splits[i]])
        leak = labels[a] == labels[b] and found.splits[a] != found.splits[b]
        if leak and a not in out and b not in out:
            out[b] = "look like one that is in another split"
    said = [f"Left out {count} pictures that {why}." for why, count in Counter(out.values()).items()]
    return [i for i in range(len(found.names)) if i not in out], said


def _place(found: Findings, i: int, path: Path) -> str:
    """Put picture `i` at `path`; how, in a word or two."""
    if found.pixels is not None:
        pixels = found.pixels[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(f"{path}.png")
        return "PNG files"
    source = (found.root / found.names[i]).resolve()
    ways: list[tuple[str, Callable[[Path, Path], object]]] = [("hard links", os.link), ("symbolic links", os.symlink)]
    if found.root != found.data and found.labels_file is None:
        del ways[1]  # the cache, where archives are unpacked, may be emptied
    for way, link in ways:
        try:
            link(source, path)
            return way
        except OSError:
            continue
    shutil.copy2(source, path)
    return "copies"


def _folder_name(label: str) -> str:
    """A label as the name of a folder that is read as a class again: what would lead elsewhere, or be passed over or
    unreadable, is written as %2F."""
    label = label.strip()
    name = quote(label, safe=" ") if not label.isprintable() else label.replace("/", "%2F").replace("\\", "%5C")
    return f"%{ord(name[0]):02X}{name[1:]}" if name.startswith((".", "@", "__MACOSX")) else name or "%20"
