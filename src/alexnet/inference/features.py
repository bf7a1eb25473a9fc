"""Activations of one layer as vectors: a table for feature extraction, and the space of nearest-neighbor search.

A layer with weights means its output after the activation: `fc7` is the output of fc7's ReLU, as in
the paper's figure 4 and in Caffe's blobs, and so for every convolution or linear layer that its
activation follows (or batch norm and then its activation). Every other name, `relu7`, `pool5`,
`norm1`, means the output of that module; so does `conv1` of `code2012`, which is normalized and
pooled before its ReLU.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.data.decode import BadImage, map_in_threads
from alexnet.data.image_folder import find_images
from alexnet.data.image_names import describe_ignored
from alexnet.data.label_table import SPLIT_NAMES
from alexnet.device import pick_device
from alexnet.errors import UserError, unknown_name
from alexnet.files import atomic_write, printable
from alexnet.inference.load import load_image, load_model
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions
from alexnet.models.model import AlexNet, Network
from alexnet.models.spec import ACTIVATIONS, Layer, layers
from alexnet.models.torchvision_models import TorchvisionNetwork, summarize_torchvision
from alexnet.progress import Progress, Silent
from alexnet.runtimes.engines import LoadedModel
from alexnet.text import clean_label

BATCH_SIZE = 128
SUFFIXES = (".parquet", ".csv")


def output_of(stack: Sequence[Layer], name: str) -> str:
    """Return the module of an AlexNet whose output the layer `name` means: "relu7" for "fc7". Raises `UserError`."""
    names = [layer.name for layer in stack]
    if name not in names:
        raise unknown_name("layer", name, [n for n in names if n != "flatten"])
    i = names.index(name)
    if stack[i].kind not in ("conv", "linear"):
        return name
    i += 1
    if i < len(stack) and stack[i].kind == "batchnorm":
        i += 1
    return names[i] if i < len(stack) and stack[i].kind in ACTIVATIONS else name


class Features(nn.Module):
    """A network up to one layer: normalized images, float N×C×H×W → its activations, N×`shape`.

    It shares the weights of `model`, which should be in evaluation mode. `layer` is any name in
    `alexnet arch NAME` or, for a torchvision network, any of its modules; by default the last
    hidden layer, fc7. Raises `UserError` for an unknown name.
    """

    layer: str
    """The name that was given."""
    module: str
    """The module whose output it is."""
    shape: tuple[int, ...]
    """(C, H, W) or (F,)."""

    def __init__(self, model: Network, layer: str | None = None) -> None:
        super().__init__()
        if isinstance(model, AlexNet):
            stack = layers(model.spec)
            self.layer = layer or _last_hidden_layer(stack)
            self.module = output_of(stack, self.layer)
            index = [entry.name for entry in stack].index(self.module)
            self.shape = stack[index].output
            self.body = model[: index + 1]
        else:
            self.layer = self.module = self._torchvision_layer(model, layer)
            self.body = model
            model.network.get_submodule(self.module).register_forward_hook(self._store_output)
            spec = model.spec
            with torch.no_grad():
                self.shape = tuple(self(torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size)).shape[1:])

    @staticmethod
    def _torchvision_layer(model: TorchvisionNetwork, layer: str | None) -> str:
        parts = [part.name for part in summarize_torchvision(model.spec).parts]
        if layer is None:
            raise UserError(f"Name a layer of '{model.spec.name}' with --layer: {', '.join(parts)}, or any module.")
        if layer not in dict(model.network.named_modules()):
            raise unknown_name("layer", layer, parts, f" in '{model.spec.name}'")
        return layer

    def _store_output(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.output = output.clone()  # the next module may work in place

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body(x)
        return output if isinstance(self.body, nn.Sequential) else self.output


def _last_hidden_layer(stack: Sequence[Layer]) -> str:
    names = ["flatten", *(layer.name for layer in stack if layer.kind == "linear")]
    return names[-2]


@torch.no_grad()
def extract_features(features: Features, loaded: LoadedModel, images: np.ndarray | Tensor) -> np.ndarray:
    """Return the flattened activations, float32 (n, d), of uint8 images (n, C, size, size)."""
    pixels = torch.as_tensor(images).to(next(loaded.model.parameters()).device)
    x = loaded.preprocess.normalize(pixels).contiguous(memory_format=torch.channels_last)
    return features(x).flatten(1).float().cpu().numpy()


@dataclass(frozen=True)
class FeatureFile:
    """The result of `write_features`."""

    file: Path
    n: int
    layer: str
    module: str
    shape: tuple[int, ...]
    errors: tuple[tuple[str, str], ...]
    """Images that could not be read: (path, reason)."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet features`."""
        return {
            "file": str(self.file), "n": self.n, "layer": self.layer, "module": self.module, "shape": list(self.shape),
            "errors": [{"path": path, "reason": reason} for path, reason in self.errors],
        }  # fmt: skip


def write_features(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    layer: str | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    file: FileOptions = NO_OPTIONS,
    progress: Progress | None = None,
) -> FeatureFile:
    """Write the activations of `layer` for an image, or every image below a folder, to a .parquet or .csv file.

    One row per image, in order of path: `path` as found; `label`, the class folder's name, empty
    where there is none; and the activations, float32, flattened in the order C, H, W: in Parquet
    one list column `features` of fixed size, in CSV the columns f0, f1 …. Parquet's metadata holds
    layer, module, shape, network and checkpoint. Unreadable images have no row. Only one batch is
    in memory at a time, and the file appears when it is complete. Raises `UserError`, also if no
    image can be read.
    """
    out, data = Path(out), Path(data)
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"Features are written as {' or '.join(SUFFIXES)}, not as {out}; change its suffix.")
    progress = progress or Silent()
    loaded = load_model(run, checkpoint, file, progress.log)
    features = Features(loaded.model, layer)
    features.to(pick_device(device))
    ignored: list[str] = []
    paths = find_images([data], ignored)
    if ignored:
        progress.log(describe_ignored(ignored))
    labels = [_label(path, data) for path in paths]
    about = {
        "layer": features.layer, "module": features.module, "shape": json.dumps(list(features.shape)),
        "network": loaded.model.spec.name, "checkpoint": str(loaded.checkpoint or run),
    }  # fmt: skip
    errors: list[tuple[str, str]] = []

    def read(i: int) -> np.ndarray | BadImage:
        try:
            return load_image(paths[i], loaded.preprocess)
        except BadImage as error:
            return error

    out.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with atomic_write(out) as temporary:
        with _open_table(temporary, out.suffix.lower(), int(np.prod(features.shape)), about) as write:
            results = map_in_threads(read, range(len(paths)))
            for start in range(0, len(paths), BATCH_SIZE):
                batch = range(start, min(start + BATCH_SIZE, len(paths)))
                found = dict(zip(batch, results, strict=False))  # its images are the next ones
                errors += [(printable(str(paths[i])), e.reason) for i, e in found.items() if isinstance(e, BadImage)]
                readable = {i: image for i, image in found.items() if isinstance(image, np.ndarray)}
                if readable:
                    images = np.stack(list(readable.values()))
                    names = [printable(str(paths[i])) for i in readable]
                    write(names, [labels[i] for i in readable], extract_features(features, loaded, images))
                rows += len(readable)
                progress(batch.stop, len(paths), "features")
        if not rows:
            raise UserError(
                "None of the images could be read: " + "; ".join(f"{path}: {why}" for path, why in errors[:3]) + "."
            )
    return FeatureFile(out, rows, features.layer, features.module, features.shape, tuple(errors))


def _label(path: Path, root: Path) -> str | None:
    """Return the class folder of `path`, below `root` and below a split's folder if there is one."""
    folders = path.relative_to(root).parts[:-1] if root.is_dir() else ()
    return next((clean_label(folder) for folder in folders if folder.lower() not in SPLIT_NAMES), None)


Write = Callable[[list[str], list[str | None], np.ndarray], None]


@contextmanager
def _open_table(path: Path, suffix: str, width: int, about: dict[str, str]) -> Iterator[Write]:
    """Open a table for writing rows: paths, labels and their vectors, float32 (n, width)."""
    if suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:  # Excel needs the mark
            writer = csv.writer(file)
            writer.writerow(["path", "label", *(f"f{i}" for i in range(width))])

            def write_csv_rows(paths: list[str], labels: list[str | None], values: np.ndarray) -> None:
                for name, label, row in zip(paths, labels, values, strict=True):
                    writer.writerow([name, label or "", *(f"{v:.9g}" for v in row)])  # nine digits restore a float32

            yield write_csv_rows
        return
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        [("path", pa.string()), ("label", pa.string()), ("features", pa.list_(pa.float32(), width))], metadata=about
    )
    with parquet.ParquetWriter(path, schema) as writer:

        def write_parquet_rows(paths: list[str], labels: list[str | None], values: np.ndarray) -> None:
            column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
            writer.write_table(pa.table([pa.array(paths), pa.array(labels, pa.string()), column], schema=schema))

        yield write_parquet_rows
