"""Datasets by name: each becomes an `ImageDataset` of class names and splits.

A split is `ImageArrays` (decoded in memory) or `ImageFiles` (decoded when needed). If a dataset has no validation
split, one is held out of train, stratified and seeded, and recorded by file name: nothing is chosen on the test split.

| name | contents | on disk |
|---|---|---|
| digits | scikit-learn's 1,797 handwritten digits, upscaled to 32×32 gray | embedded |
| cifar10 | 60,000 photographs, 32×32 RGB, 10 classes | torchvision's layout or archive, or class folders |
| mnist | 70,000 handwritten digits, 28×28 gray, 10 classes | torchvision's layout, or the IDX files |
| fashion-mnist | 70,000 articles of clothing, 28×28 gray, 10 classes | the same |
| imagenet | class folders in train/ and val/ | as `folder` |
| folder | any class folders, with or without splits, or a table of labels | see image_folder.py |

A folder may also be an archive, zip or tar (archives.py), or the output of `alexnet pack` (shards/).

torchvision is imported only where its datasets are read: its import takes a second.
"""

from __future__ import annotations

import contextlib
import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock

from alexnet import rng
from alexnet.data import idx, image_folder
from alexnet.data.dataset import (
    UNREADABLE_CLASS,
    BadFiles,
    ImageArrays,
    ImageDataset,
    SplitRows,
    hold_out_samples,
    list_first,
    order_splits,
    restore_splits,
)
from alexnet.data.image_folder import scan_images
from alexnet.data.in_memory import check_files, decode_splits, leave_out
from alexnet.data.recognize import CIFAR10_ARCHIVE, CIFAR10_FOLDER, is_cifar10, is_packed, is_published
from alexnet.data.shards.manifest import open_packed
from alexnet.data.shards.reader import FAILED
from alexnet.data.transforms import EvalTransform
from alexnet.device import cache_dir
from alexnet.errors import UserError, unknown_name
from alexnet.progress import Progress
from alexnet.text import BY_CONTENT, TextOptions, clean_label

DATASETS = ("digits", "mnist", "cifar10", "fashion-mnist", "imagenet", "folder")

DOWNLOAD_TIMEOUT = 30  # seconds without a byte before a connection is considered broken
DOWNLOAD_TRIES = 3  # per URL and call
_BLOCK = 1 << 18


def load_dataset(
    name: str,
    data: Path | None = None,
    *,
    labels: Path | None = None,
    text: TextOptions = BY_CONTENT,
    download: bool = True,
    seed: int = 0,
    bad: Sequence[tuple[str, str]] = (),
    hold_out: bool = True,
    split: SplitRows | None = None,
    progress: Progress | None = None,
) -> ImageDataset:
    """Load the dataset `name` for training: of image files the names, without opening any.

    `data` is its file or folder, unless it is embedded or downloaded. `labels` is a table of labels, whose folder is
    the default for `data`; `text` says how the table and names are read. Without `data`, cifar10, mnist and
    fashion-mnist are read from the cache, and downloaded into it if `download`; a folder given by the user is only
    read.

    Held out by class, seeded with `seed`: 15 % of digits for val and for test; 20 % of class folders without splits
    for val; 5 % of train for val with train and test but no val, unless `hold_out` is false (protocols that train on
    all of train and validate on test). `split`, the `split_rows` of an earlier run, reproduces that split instead.
    `bad` lists files to leave out, (name, reason), because they cannot be read.

    Raises `UserError` for an unknown name, for missing or malformed data, and as `image_folder` and `leave_out` do;
    `BadFiles` for empty class folders, and for class folders of CIFAR-10, which are decoded here.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    if labels is not None and name not in ("imagenet", "folder"):
        raise UserError(f"The dataset '{name}' includes its labels; omit --labels, or use 'folder'.")
    if data is not None and not data.name.endswith(".tar.gz"):  # CIFAR-10's archive needs a checksum first
        data = image_folder.unpack_data(data, labels is None, progress, text)
    if name == "digits":
        source = _load_digits(data)
    elif data is not None and is_packed(data):
        source = _load_packed(name, data, labels, progress, bad)
    elif name == "cifar10":
        source = _load_cifar10(data, download, bad, progress)
    elif name in idx.DATASETS:
        source = _load_idx(name, data, download, progress)
    else:
        if data is None and labels is None:
            raise UserError(f"The dataset '{name}' needs the folder that holds it; give --data DIR.")
        source = leave_out(replace(scan_images(data, labels, progress=progress, text=text, bad=bad), name=name), bad)
        if name == "imagenet" and not {"val", "test"} & set(source.splits):
            source.notes.append(f"{data} has no val/ beside train/, as ImageNet has.")
    return make_splits(source, seed, hold_out, split)


def make_splits(source: ImageDataset, seed: int, hold_out: bool, rows: SplitRows | None) -> ImageDataset:
    """Hold out the missing validation and test splits of `source`, or reproduce the recorded split `rows`.

    Predefined splits stay unchanged; see `load_dataset` for the fractions. Copies of a file within a
    class stay in one split, so that no model is tested on an image it was trained on.
    """
    if "val" in source.splits or not hold_out:
        return source
    if rows:
        return restore_splits(source, rows)
    if "test" in source.splits:
        fractions = {"val": 0.05}
    elif source.name == "digits":
        fractions = {"test": 0.15, "val": 0.15 / 0.85}
    else:
        fractions = {"val": 0.20}
    train, splits = source.splits["train"], dict(source.splits)
    total = len(train)
    for split, fraction in fractions.items():
        kept, held_out = hold_out_samples(train, fraction, rng.derive_seed(seed, split))
        if len(held_out) == 0:
            check_files(source)  # none is readable: a better explanation
            raise UserError(
                f"The {total} images of '{source.name}' are one per class, which leaves none to validate on; add more."
            )
        splits[split], train = train.take(held_out), train.take(kept)
    splits["train"] = train
    counts = " and ".join(f"{len(splits[split])} for {split}" for split in fractions)
    note = f"Held out {counts} of {total} images, by class, with seed {seed}."
    return replace(source, splits=order_splits(splits), held_out=tuple(fractions), notes=[*source.notes, note])


# ── evaluation data, published files and packed datasets ──────────────────────────────────────────


def load_for_evaluation(
    name: str,
    data: Path | None,
    progress: Progress | None = None,
    *,
    labels: Path | None = None,
    text: TextOptions = BY_CONTENT,
) -> ImageDataset:
    """Load images to evaluate a model on: class folders, a table of labels, a packed dataset, or the original files
    of the dataset `name` that it was trained on. Data without splits is the split `all`. Raises `UserError`."""
    folder = image_folder.resolve_data_folder(data, labels, progress, text)
    if is_packed(folder):
        return _load_packed("folder", folder, labels, progress, None)
    if labels is None and idx.find_folder(folder) is not None:
        return _load_idx(None, folder, False, progress)
    if labels is None and name == "cifar10":
        with contextlib.suppress(UserError):  # data in another layout may still be class folders
            return load_dataset(name, folder, hold_out=False, progress=progress)
    return scan_images(folder, labels, training=False, text=text)


def load_known_layout(data: Path, progress: Progress | None = None) -> ImageDataset | None:
    """Load `data` if it is CIFAR-10 or a dataset like MNIST in the files that their authors publish, else return
    None."""
    if is_cifar10(data):
        return _load_cifar10(data, False, (), progress)
    return _load_idx(None, data, False, progress) if is_published(data) else None


def _load_packed(
    name: str,
    data: Path,
    labels: Path | None,
    progress: Progress | None,
    bad: Sequence[tuple[str, str]] | None,
) -> ImageDataset:
    """Open a packed dataset, for evaluation if `bad` is None. Raises `UserError`, and for training `BadFiles` if train
    lacks classes that are not in `bad`."""
    if labels is not None:
        raise UserError(f"{data} is packed with its labels; omit --labels.")
    pack = open_packed(data, progress)
    classes = tuple(map(clean_label, pack.manifest.classes))
    if bad is not None:
        if "train" not in pack.splits:
            raise UserError(f"{data} was packed from images without a train/ to learn from; pack a folder with one.")
        empty = [classes[i] for i in pack.unreadable_classes]
        if not {f"{name}/" for name in empty} <= {name for name, _ in bad}:
            raise BadFiles(
                f"Classes in {data} without a training image that could be read when it was packed ({len(empty)}): "
                f"{list_first(empty)}",
                [(f"{name}/", UNREADABLE_CLASS) for name in empty],
            )
    notes = []
    if failed := pack.manifest.failed:
        notes.append(f"{failed} images could not be read when {data} was packed; {data / FAILED} lists them.")
    dataset = ImageDataset(
        name, classes, order_splits({**pack.splits}), channels=pack.manifest.form.channels, notes=notes,
        value_range=pack.manifest.value_range,
    )  # fmt: skip
    return leave_out(dataset, bad or ())


# ── datasets with their own files ─────────────────────────────────────────────────────────────────


def _load_digits(data: Path | None) -> ImageDataset:
    """Load scikit-learn's copy of the UCI handwritten digits: 1,797 of 8×8 with values 0…16, 174 to 183 per class.

    `make_splits` divides them into 1,259 for train, 269 for val and 269 for test.
    """
    if data is not None:
        raise UserError(f"The dataset 'digits' is embedded and reads no data; omit {data}, or use 'folder'.")
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(small, (32, 32), mode="bicubic").round_().clamp_(0, 255).to(torch.uint8)
    train = ImageArrays(images, torch.from_numpy(digits.target).long(), [f"digits/{i:04d}" for i in range(len(images))])
    return ImageDataset("digits", tuple(map(str, range(10))), {"train": train}, channels=1)


def _load_cifar10(
    data: Path | None, download: bool, bad: Sequence[tuple[str, str]], progress: Progress | None
) -> ImageDataset:
    from torchvision.datasets import CIFAR10

    archive, layout = CIFAR10_ARCHIVE, CIFAR10_FOLDER
    if data is None:
        cache = cache_dir() / "cifar10"
        folder = cache / layout
        if not _is_cifar10(folder):
            md5 = CIFAR10.tgz_md5
            by_hand = f"put {archive} (md5 {md5}) into {cache}, or give --data a folder that has it"
            if (cache / archive).is_file() and not download:
                _unpack_cifar10(cache / archive)
            else:
                files = [([CIFAR10.url], cache / archive, md5)]
                with _lock(cache):
                    _download(CIFAR10, files, cache, "CIFAR-10", by_hand, download, progress)
    elif data.name.endswith(".tar.gz") and data.is_file():
        folder = _unpack_cifar10(data)
    else:
        image_folder.require_folder(data)
        if (data / archive).is_file() and not (data / layout).is_dir():
            folder = _unpack_cifar10(data / archive)
        elif (data / layout).is_dir() or (data / "data_batch_1").is_file():
            folder = data / layout if (data / layout).is_dir() else data
        elif any(path.is_dir() and path.name.lower() in ("train", "training") for path in data.iterdir()):
            source = leave_out(replace(scan_images(data, None, bad=bad), name="cifar10"), bad)
            decoded = decode_splits(source, EvalTransform(size=32), progress=progress)
            # 32×32 is their original size
            return replace(decoded, splits={k: replace(v, eval_ready=False) for k, v in decoded.arrays.items()})
        else:
            raise UserError(
                f"{data} does not hold CIFAR-10; there should be {layout}/, {archive}, or class folders in train/ "
                "and test/."
            )

    class Unpacked(CIFAR10):
        base_folder = ""  # the folder may have any name

    try:
        readers = {"train": Unpacked(folder, train=True), "test": Unpacked(folder, train=False)}
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"The CIFAR-10 files in {folder} are incomplete or changed (their md5 differs); unpack {archive} there "
            "again."
        ) from error
    arrays = {
        split: _numbered(split, np.ascontiguousarray(reader.data.transpose(0, 3, 1, 2)), reader.targets)
        for split, reader in readers.items()
    }
    return ImageDataset("cifar10", tuple(readers["train"].classes), arrays, channels=3)


def _numbered(split: str, images: np.ndarray, targets: Sequence[int] | np.ndarray) -> ImageArrays:
    """Return images uint8 N×C×H×W that have no file, named by split and number."""
    names = [f"{split}/{i:05d}" for i in range(len(images))]
    return ImageArrays(torch.from_numpy(images), torch.as_tensor(targets, dtype=torch.int64), names)


def _unpack_cifar10(archive: Path) -> Path:
    """Unpack the archive into the cache and return the folder; its md5 is checked first, since it contains pickles."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_md5, extract_archive

    cache = cache_dir() / "cifar10"
    if not check_md5(archive, CIFAR10.tgz_md5):
        raise UserError(f"{archive} is not CIFAR-10's archive or is damaged (its md5 differs); download it again.")
    with _lock(cache):
        if not _is_cifar10(cache / CIFAR10_FOLDER):
            extract_archive(archive, cache)
    return cache / CIFAR10_FOLDER


def _is_cifar10(folder: Path) -> bool:
    """Whether `folder` has the files of CIFAR-10, complete and unchanged."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    return all(check_integrity(folder / part, md5) for part, md5 in CIFAR10.train_list + CIFAR10.test_list)


@contextlib.contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """Let one process at a time fill the folder `cache`; the others wait, and find it filled."""
    lock = FileLock(cache / ".lock")
    with contextlib.suppress(OSError):  # where nothing can be written, nothing will be
        cache.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _load_idx(name: str | None, data: Path | None, download: bool, progress: Progress | None) -> ImageDataset:
    """Load `name`, mnist or fashion-mnist, or with None whatever IDX files are in `data`: KMNIST and unknown ones are
    called mnist. Raises `UserError` if they are known to be another dataset."""
    title = idx.DATASETS.get(name or "", "")
    root = cache_dir() / str(name) if data is None else image_folder.require_folder(data)
    with _lock(root) if data is None else contextlib.nullcontext():
        raw = idx.find_folder(root)
        if raw is None:
            torchvision_name = title.replace("-", "")
            if data is not None:
                raise UserError(
                    f"{data} does not hold {title}; there should be {torchvision_name}/raw/, as torchvision has it, or "
                    f"the IDX files themselves ({idx.file_names('train')[0]}, ...)."
                )
            by_hand = f"put the four IDX files (.gz or not) into {root}, or give --data a folder that has them"
            raw, theirs = root / torchvision_name / "raw", idx.torchvision_class(title)
            needed = [([mirror + file for mirror in theirs.mirrors], raw / file, md5) for file, md5 in theirs.resources]
            _download(theirs, needed, root, title, by_hand, download, progress)
    found, notes = idx.read_idx_files(raw), []
    fashion = found.title == "Fashion-MNIST"
    if name and found.title and fashion != (name == "fashion-mnist"):
        other = "fashion-mnist" if fashion else "mnist"
        raise UserError(f"{raw} holds {found.title}, not {title}; train on it with 'alexnet train {other} --data DIR'.")
    if not found.title:
        notes = [f"The IDX files in {raw} are of no known dataset, so that their classes are named by their numbers."]
    elif found.title != idx.DATASETS.get(name or "", found.title):
        notes = [f"The IDX files in {raw} are {found.title}; its classes are {', '.join(found.classes)}."]
    arrays = {split: _numbered(split, pixels[:, None], targets) for split, (pixels, targets) in found.splits.items()}
    name = name or ("fashion-mnist" if fashion else "mnist")
    return ImageDataset(name, found.classes, arrays, channels=1, notes=notes)


def _download(
    dataset: type,
    files: list[tuple[list[str], Path, str]],
    cache: Path,
    title: str,
    by_hand: str,
    allowed: bool,
    progress: Progress | None,
) -> None:
    """Download `files`, (URLs, target, md5), to where torchvision's `dataset` finds and unpacks them.

    Unlike torchvision's own download this resumes a partial file.
    """
    if not allowed:
        raise UserError(f"{title} is not on this machine and downloading is turned off; {by_hand}.")
    try:
        for urls, target, md5 in files:
            fetch(urls, target, md5, progress)
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints, and stdout is for results
            dataset(cache, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{title} could not be downloaded ({error}); {by_hand}.") from error


def fetch(urls: Sequence[str], target: Path, md5: str, progress: Progress | None = None) -> Path:
    """Download `target` from the first of `urls` that provides it, unless it already exists; return `target`.

    `md5` is the hexadecimal checksum of the file. `progress(done, total, what)` counts bytes; total is 0 if the host
    does not give it. Raises `OSError` with the last reason for each URL. The partial file, `<name>.part`, stays, and
    the next attempt, in this process or a later one, requests only the rest: hosts throttle and drop connections.
    """
    from torchvision.datasets.utils import check_md5

    if target.is_file() and check_md5(target, md5):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    reasons = []
    for url in urls:
        reason = ""
        for _ in range(DOWNLOAD_TRIES):
            try:
                _download_rest(url, part, progress)
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
                if isinstance(error, urllib.error.HTTPError) and error.code != 416:
                    break  # a definite answer, which a retry will not change
                if not isinstance(error, urllib.error.HTTPError):
                    continue
            if part.is_file() and check_md5(part, md5):
                part.replace(target)
                return target
            part.unlink(missing_ok=True)  # complete but wrong: resuming would not help
            reason = "the downloaded file has another checksum"
        reasons.append(f"{url}: {reason}")
    raise OSError("; ".join(reasons))


def _download_rest(url: str, part: Path, progress: Progress | None) -> None:
    """Append the missing bytes to `part`. Raises `OSError` if the connection breaks."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
        if response.status != 206:  # the host does not support ranges: start over
            have = 0
        length = int(response.headers.get("Content-Length") or 0)
        total = have + length if length else 0
        with part.open("ab" if have else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total, f"downloading {part.stem}")
    if total and have < total:
        raise ConnectionError(f"the connection broke after {have:,} of {total:,} bytes")
