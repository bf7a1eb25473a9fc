"""Data sets by name, all in one form: class names and splits of samples, read and checked before training.

A split is `Arrays` (decoded, in memory) or `Files` (class folders, decoded as needed). Splits are honest: where a
data set has no validation part, one is held out of train by class and by seed, and recorded by file name, so
that nothing is ever chosen by the test part.

| name | what | on disk |
|---|---|---|
| digits | scikit-learn's 1,797 real handwritten digits, enlarged to 32×32 grey | embedded |
| cifar10 | 60,000 photographs, 32×32 RGB, 10 classes | torchvision's layout or archive, or class folders |
| fashion-mnist | 70,000 articles of clothing, 28×28 grey, 10 classes | torchvision's layout, or the IDX files |
| imagenet | class folders in train/ and val/ | as `folder` |
| folder | any class folders, with or without splits (`folders.py`), or a table of labels (`labels.py`) | |

Whatever is read from a folder is also read from an archive of it, zip or tar (`archives.py`), and from what
`alexnet pack` makes of it (`packed.py`).
"""

from __future__ import annotations

import contextlib
import gzip
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, check_md5, extract_archive

from alexnet.data import image_folder
from alexnet.data.archives import unpack_if_archive
from alexnet.data.augment import Augment
from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles, SplitRows
from alexnet.data.decode import BadImage, decode_crop, decode_image, image_size
from alexnet.data.download import fetch
from alexnet.data.image_folder import Progress
from alexnet.data.shards.manifest import is_packed, open_packed
from alexnet.data.shards.reader import FAILED
from alexnet.data.split import make_splits, order_splits
from alexnet.data.transforms import EvalTransform
from alexnet.device import cache_dir
from alexnet.errors import UserError, unknown_name

Download = tuple[list[str], Path, str]  # addresses of a file, where it belongs, its md5

DATASETS = ("digits", "cifar10", "fashion-mnist", "imagenet", "folder")

CIFAR10_ARCHIVE = datasets.CIFAR10.filename
"""The name of CIFAR-10's own archive: the one whose pickles are read, after its checksum."""

_CIFAR10_FILES = (CIFAR10_ARCHIVE, "data_batch_1")


def load_dataset(
    name: str,
    data: Path | None = None,
    *,
    labels: Path | None = None,
    download: bool = True,
    seed: int = 0,
    skip_bad: bool = False,
    hold_out: bool = True,
    split: SplitRows | None = None,
    progress: Progress | None = None,
) -> ImageDataset:
    """The data set called `name`, from the file or folder `data` where it is not embedded or downloaded; its classes
    from the table `labels` where one is given, whose own folder is `data` unless that is given too.

    Without `data`, cifar10 and fashion-mnist are read from the cache, and downloaded into it if `download`; a
    folder that the user names is only read. Held out by class, seeded with `seed`: of digits 15 % each for val
    and test; of class folders without splits 20 % for val; where there is train and test but no val, 5 % of train
    for val, unless `hold_out` is false (protocols that train on all of train and validate on test). `split`, the
    `split_rows` of an earlier run, is used again instead. Files that cannot be read are an error that lists
    them, or are left out and listed in `Source.bad` with `skip_bad`.

    Raises `UserError` for an unknown name, missing or malformed data, and all that `folders.scan` refuses.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if labels is not None and name not in ("imagenet", "folder"):
        raise UserError(f"The data set '{name}' brings its own labels; leave --labels out, or use 'folder'.")
    if data is not None and not data.name.endswith(".tar.gz"):  # CIFAR-10's own, whose pickles need a checksum first
        data = unpack_if_archive(data, progress)
    if name == "digits":
        source = _load_digits(data)
    elif data is not None and is_packed(data):
        source = _load_packed(name, data, labels, progress)
    elif name == "cifar10":
        source = _load_cifar10(data, download, skip_bad, progress)
    elif name == "fashion-mnist":
        source = _load_fashion_mnist(data, download, progress)
    else:
        if data is None and labels is None:
            raise UserError(f"The data set '{name}' needs the folder that holds it; give --data DIR.")
        source = _load_images(name, data, skip_bad, progress, labels)
        if name == "imagenet" and not {"val", "test"} & set(source.splits):
            source.notes.append(f"{data} has no val/ beside train/, as ImageNet has.")
    return make_splits(source, seed, hold_out, split)


def decode_files(
    files: ImageFiles, preprocess: EvalTransform, augment: Augment | None = None, *, progress: Progress | None = None
) -> ImageArrays:
    """Every picture decoded into memory, on all cores.

    Without `augment` as `preprocess.evaluation` makes it, N×C×size×size. With it, what random crops are cut
    from: N×C×square×square. For crop resized, which can use more, pictures that are all squares of one size
    stay as they are (up to one and a half times `square`). Raises `BadImage` for a file that cannot be read.
    """
    files.check(preprocess)
    side, channels = preprocess.size, preprocess.channels
    if augment is not None:
        side = preprocess.resize_side
        common = _common_side(files, progress) if augment.crop == "resized" else 0
        if preprocess.size <= common <= 1.5 * preprocess.resize_side:
            side = common
    square = replace(preprocess, size=side, resize=side, mean_image=None)
    images = np.empty((len(files), channels, side, side), dtype=np.uint8)

    def read(i: int) -> None:
        try:
            if augment is None:
                images[i] = preprocess.eval_tensor(decode_image(files.raw(i), channels)).numpy()
            else:
                images[i] = square.training_square(decode_crop(files.raw(i), side, channels)).numpy()
        except BadImage as error:
            raise BadImage(error.reason, files.describe(i)) from error

    for _ in image_folder.map_in_threads(read, range(len(files)), progress, "reading images"):
        pass
    return ImageArrays(torch.from_numpy(images), files.targets, files.names, eval_ready=augment is None)


def resize_for_eval(arrays: ImageArrays, preprocess: EvalTransform) -> ImageArrays:
    """`arrays` as `preprocess.evaluation` makes each picture, N×C×size×size: by Pillow, so that they are to the last
    bit what a picture file gives in prediction."""
    if (
        arrays.eval_ready
        or arrays.images.shape[-2:] == (preprocess.resize_side, preprocess.resize_side) == (preprocess.size,) * 2
    ):
        return arrays
    images = np.empty((len(arrays), preprocess.channels, preprocess.size, preprocess.size), dtype=np.uint8)

    def shape(i: int) -> None:
        pixels = arrays.images[i].permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels if preprocess.channels == 3 else pixels[..., 0])
        images[i] = preprocess.eval_tensor(picture).numpy()

    for _ in image_folder.map_in_threads(shape, range(len(arrays)), None, "resizing images"):
        pass
    return ImageArrays(torch.from_numpy(images), arrays.targets, arrays.names, eval_ready=True)


def _common_side(files: ImageFiles, progress: Progress | None) -> int:
    """The side in pixels if all the pictures are squares of one size, else 0."""
    sizes = set(
        image_folder.map_in_threads(lambda i: image_size(files.raw(i)), range(len(files)), progress, "measuring images")
    )
    width, height = next(iter(sizes)) if len(sizes) == 1 else (0, 1)
    return width if width == height else 0


# ── the data sets ─────────────────────────────────────────────────────────────────────────────────────────────


def load_for_evaluation(
    name: str, data: Path | None, progress: Progress | None = None, *, labels: Path | None = None
) -> ImageDataset:
    """Pictures to measure a network on: class folders of any kind or a table of labels, or the layouts of the data set
    `name` that it was trained on. Splits are those given, and `all` where there are none. Raises `UserError`."""
    data = image_folder.resolve_data_folder(data, labels, progress)
    if is_packed(data):
        return _load_packed("folder", data, labels, progress, training=False)
    if labels is not None:
        tree = image_folder.scan_label_table(data, image_folder.resolve_labels_path(labels, data), training=False)
        tree, bad = image_folder.drop_unreadable(tree, skip_bad=False, progress=progress)
        return ImageDataset(
            "folder", tree.classes, order_splits({**tree.splits}), channels=3, bad=bad, notes=tree.notes
        )
    if name in ("cifar10", "fashion-mnist"):
        # contextlib: what is not in that layout may still be class folders
        with contextlib.suppress(UserError):
            return load_dataset(name, data, hold_out=False, progress=progress)
    tree, bad = image_folder.drop_unreadable(
        image_folder.scan_class_folders(data, training=False), skip_bad=False, progress=progress
    )
    return ImageDataset("folder", tree.classes, order_splits({**tree.splits}), channels=3, bad=bad, notes=tree.notes)


def load_known_layout(data: Path, progress: Progress | None = None) -> ImageDataset | None:
    """The data set whose files, as its authors publish them, `data` is or holds; None where it holds other things."""
    if data.name == datasets.CIFAR10.filename:
        return _load_cifar10(data, False, False, progress)
    if not data.is_dir():
        return None
    if (data / datasets.CIFAR10.base_folder).is_dir() or any((data / n).is_file() for n in _CIFAR10_FILES):
        return _load_cifar10(data, False, False, progress)
    if any(_find_idx(data / d / _fashion_files("train")[0]) for d in ("", "raw", "FashionMNIST/raw")):
        return _load_fashion_mnist(data, False, progress)
    return None


def _load_packed(
    name: str, data: Path, labels: Path | None, progress: Progress | None, training: bool = True
) -> ImageDataset:
    if labels is not None:
        raise UserError(f"{data} is packed together with its labels; leave --labels out.")
    pack = open_packed(data, progress)
    if training:
        if "train" not in pack.splits:
            raise UserError(f"{data} was packed from pictures without a train/ to learn from; pack those with one.")
        counts = torch.bincount(pack.splits["train"].targets, minlength=len(pack.classes)).tolist()
        if 0 in counts:
            raise UserError(
                f"{data} has no picture of class '{pack.classes[counts.index(0)]}' to learn from; {data / FAILED} "
                "tells what could not be read."
            )
    notes = []
    if pack.failed:
        notes.append(f"{pack.failed} pictures could not be read when {data} was packed; {data / FAILED} lists them.")
    return ImageDataset(name, pack.classes, order_splits({**pack.splits}), channels=pack.format.channels, notes=notes)


def _load_images(
    name: str, data: Path | None, skip_bad: bool, progress: Progress | None, labels: Path | None = None
) -> ImageDataset:
    root = image_folder.resolve_data_folder(data, labels, progress)
    tree = (
        image_folder.scan_class_folders(root)
        if labels is None
        else image_folder.scan_label_table(root, image_folder.resolve_labels_path(labels, root))
    )
    tree, bad = image_folder.drop_unreadable(tree, skip_bad=skip_bad, progress=progress)
    splits: dict[str, ImageArrays | ImageFiles] = {**tree.splits}
    return ImageDataset(name, tree.classes, order_splits(splits), channels=3, bad=bad, notes=tree.notes)


def _load_digits(data: Path | None) -> ImageDataset:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 of 8×8 with values 0…16, 174 to 183 a class.

    Divided into 1,259 for train, 269 for val and 269 for test."""
    if data is not None:
        raise UserError(f"The data set 'digits' is embedded and reads no data; leave out {data}, or use 'folder'.")
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(small, (32, 32), mode="bicubic").round_().clamp_(0, 255).to(torch.uint8)
    train = ImageArrays(images, torch.from_numpy(digits.target).long(), [f"digits/{i:04d}" for i in range(len(images))])
    return ImageDataset("digits", tuple(map(str, range(10))), {"train": train}, channels=1)


def _load_cifar10(data: Path | None, download: bool, skip_bad: bool, progress: Progress | None) -> ImageDataset:
    archive = datasets.CIFAR10.filename
    layout = datasets.CIFAR10.base_folder
    if data is None:
        cache = cache_dir() / "cifar10"
        folder = cache / layout
        parts = datasets.CIFAR10.train_list + datasets.CIFAR10.test_list
        if not all(check_integrity(folder / part, md5) for part, md5 in parts):
            by_hand = (
                f"put {archive} (md5 {datasets.CIFAR10.tgz_md5}) into {cache}, or give --data a folder that has it"
            )
            if (cache / archive).is_file() and not download:
                _unpack_cifar10(cache / archive)
            else:
                _require_download("CIFAR-10", by_hand, download)
                needed = [([datasets.CIFAR10.url], cache / archive, datasets.CIFAR10.tgz_md5)]
                _download(datasets.CIFAR10, needed, cache, "CIFAR-10", by_hand, progress)
    elif data.name.endswith(".tar.gz") and data.is_file():
        folder = _unpack_cifar10(data)
    else:
        image_folder.require_folder(data)
        if (data / archive).is_file() and not (data / layout).is_dir():
            folder = _unpack_cifar10(data / archive)
        elif (data / layout).is_dir() or (data / "data_batch_1").is_file():
            folder = data / layout if (data / layout).is_dir() else data
        elif any(path.is_dir() and path.name.lower() in ("train", "training") for path in data.iterdir()):
            source = _load_images("cifar10", data, skip_bad, progress)
            splits: dict[str, ImageArrays | ImageFiles] = {}
            for split, files in source.splits.items():
                assert isinstance(files, ImageFiles)
                pictures = decode_files(files, EvalTransform(size=32), progress=progress)
                splits[split] = replace(pictures, eval_ready=False)  # they are 32×32 by nature
            return replace(source, splits=splits)
        else:
            raise UserError(
                f"{data} does not hold CIFAR-10; there should be {layout}/, {archive}, or class folders in train/ "
                "and test/."
            )

    class Unpacked(datasets.CIFAR10):
        base_folder = ""  # whatever the folder is called

    try:
        readers = {"train": Unpacked(folder, train=True), "test": Unpacked(folder, train=False)}
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"The CIFAR-10 files in {folder} are incomplete or changed (their md5 differs); unpack {archive} there "
            "again."
        ) from error
    arrays: dict[str, ImageArrays | ImageFiles] = {}
    for split, reader in readers.items():
        images = torch.from_numpy(np.ascontiguousarray(reader.data.transpose(0, 3, 1, 2)))
        arrays[split] = ImageArrays(
            images, torch.tensor(reader.targets), [f"{split}/{i:05d}" for i in range(len(images))]
        )
    return ImageDataset("cifar10", tuple(readers["train"].classes), arrays, channels=3)


def _unpack_cifar10(archive: Path) -> Path:
    """The archive unpacked into the cache; its md5 is checked first, for it holds pickles."""
    cache = cache_dir() / "cifar10"
    if not check_md5(archive, datasets.CIFAR10.tgz_md5):
        raise UserError(f"{archive} is not CIFAR-10's archive or is damaged (its md5 differs); download it again.")
    extract_archive(archive, cache)
    return cache / datasets.CIFAR10.base_folder


def _load_fashion_mnist(data: Path | None, download: bool, progress: Progress | None) -> ImageDataset:
    files = {split: _fashion_files(split) for split in ("train", "test")}
    where = cache_dir() / "fashion-mnist" if data is None else image_folder.require_folder(data)
    raw = next(
        (d for d in (where / "FashionMNIST" / "raw", where / "raw", where) if _find_idx(d / files["train"][0])), None
    )
    if raw is None:
        if data is not None:
            raise UserError(
                f"{data} does not hold Fashion-MNIST; there should be FashionMNIST/raw/, as torchvision has it, or "
                f"the IDX files themselves ({files['train'][0]}, ...)."
            )
        by_hand = f"put the four IDX files (.gz or not) into {where}, or give --data a folder that has them"
        _require_download("Fashion-MNIST", by_hand, download)
        raw = where / "FashionMNIST" / "raw"
        mirrors, resources = datasets.FashionMNIST.mirrors, datasets.FashionMNIST.resources
        needed = [([mirror + name for mirror in mirrors], raw / name, md5) for name, md5 in resources]
        _download(datasets.FashionMNIST, needed, where, "Fashion-MNIST", by_hand, progress)
    arrays: dict[str, ImageArrays | ImageFiles] = {}
    for split, (images, labels) in files.items():
        pixels, targets = _read_idx(raw / images, (28, 28)), _read_idx(raw / labels, ())
        if len(pixels) != len(targets) or targets.max() > 9:
            raise UserError(f"The {split} files of Fashion-MNIST in {raw} do not belong together; download them again.")
        names = [f"{split}/{i:05d}" for i in range(len(targets))]
        arrays[split] = ImageArrays(
            torch.from_numpy(pixels[:, None]), torch.from_numpy(targets.astype(np.int64)), names
        )
    return ImageDataset("fashion-mnist", tuple(datasets.FashionMNIST.classes), arrays, channels=1)


def _fashion_files(split: str) -> tuple[str, str]:
    """Of pictures and of labels."""
    stem = {"train": "train", "test": "t10k"}[split]
    return f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"


def _find_idx(path: Path) -> Path | None:
    """The file at `path`, or compressed beside it."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _read_idx(path: Path, item: tuple[int, ...]) -> np.ndarray:
    """uint8 of shape (N, *item). The format: two zeros, the type (8: uint8), the number of dimensions, then each
    as a big-endian 32-bit integer, then the values."""
    found = _find_idx(path)
    if found is None:
        raise UserError(f"{path} is missing, so Fashion-MNIST is incomplete; put it there.")
    try:
        data = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{found} cannot be read ({error}); download it again.") from error
    header = 4 * (2 + len(item))
    shape = np.frombuffer(data[4:header], ">u4") if len(data) >= header else np.zeros(1)
    expected = header + int(np.prod(shape))
    if data[:4] != bytes([0, 0, 8, 1 + len(item)]) or tuple(shape[1:]) != item or len(data) != expected:
        raise UserError(f"{found} is not an IDX file of the expected shape, or is cut short; download it again.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(-1, *item).copy()


def _require_download(title: str, by_hand: str, allowed: bool) -> None:
    if not allowed:
        raise UserError(f"{title} is not on this machine and downloading is switched off; {by_hand}.")


def _download(
    kind: type, files: list[Download], cache: Path, title: str, by_hand: str, progress: Progress | None
) -> None:
    """Our download, which goes on where it broke off, into the places where torchvision's own then finds all whole."""
    try:
        for urls, target, md5 in files:
            fetch(urls, target, md5, progress)
        with contextlib.redirect_stdout(sys.stderr):  # results alone go to stdout, and torchvision prints
            kind(cache, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{title} could not be downloaded ({error}); {by_hand}.") from error
