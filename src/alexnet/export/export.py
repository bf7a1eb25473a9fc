"""Export of a run to a file for other runtimes, kept only if it agrees with the trainer.

The file and its manifest are written to a temporary folder next to the target, opened there by their own runtime in a
separate process, and compared with the run on real images (`parity.py`). Only then are they moved to the target; if
the difference exceeds the tolerance, or anything fails, nothing is left behind. ONNX and OpenVINO are written by
`runtimes.convert`, which engines need too, the other formats by the functions at the end of this file.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from alexnet.errors import UserError, unknown_name
from alexnet.export import parity
from alexnet.export.browser import find_browser
from alexnet.export.parity import TOLERANCE, ExportFailed, ImageSet, Parity, Reference
from alexnet.export.web import Sample, check_web, sample_images, write_web
from alexnet.files import write_json
from alexnet.inference.load import calibration_images, load_model, load_run_dataset
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions
from alexnet.models.torchvision_models import TorchvisionNetwork
from alexnet.models.weights import to_torchvision
from alexnet.runtimes.convert import (
    OLDEST_ONNXRUNTIME,
    LoadImages,
    calibration_input,
    describe,
    quiet,
    to_convert,
    write_onnx,
    write_openvino,
)
from alexnet.runtimes.engines import CHUNK, LoadedModel
from alexnet.runtimes.manifest import (
    FORMATS,
    KEY,
    PRECISIONS,
    WEB,
    Manifest,
    check_format,
    check_writable,
    manifest_path,
    write_manifest,
)
from alexnet.text import escape

DEPRECATED = "Warning: TorchScript is deprecated since torch 2.12; use it for existing programs and pt2 for new ones."

COMPATIBILITY = ("opset", "ir_version", "oldest_onnxruntime")
"""Facts in the manifest of an ONNX file about who can read it."""

MIN_OPSET = 7  # the lowest that onnxruntime reads


@dataclass(frozen=True, repr=False)
class Export:
    """An exported file, and how it compares with the run."""

    file: Path
    kind: str
    precision: str
    size: int
    """Total bytes of its files."""
    parity: Parity | None
    """None for a file that was not compared."""
    tolerance: float
    reference: Reference | None
    """None as above."""
    compatibility: Mapping[str, Any] = field(default_factory=dict)
    """Of ONNX: its opset, IR version, and the oldest onnxruntime that reads it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet export`."""
        written = {"file": str(self.file), "format": self.kind, "precision": self.precision, "size": self.size}
        found, reference = self.parity, self.reference
        if found is None or reference is None:
            return {**written, "max_abs_diff": None, "top1_agreement": None, "images": 0}
        return {
            **written, "max_abs_diff": found.max_abs_diff, "tolerance": self.tolerance,
            "top1_agreement": found.top1_agreement, "images": found.images,
            "top1": found.top1, "run_top1": found.run_top1,
            "seconds": found.seconds, "run_seconds": reference.seconds, "without_torch": found.without_torch,
            "unreadable": reference.unreadable + found.unreadable, "note": reference.note, **self.compatibility,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"Export({escape(str(self.file))}, {self.size:,} bytes)"

    def _repr_html_(self) -> str:
        from alexnet.notebook.display import render_table

        found = self.parity
        size = ("size", f"{self.size / 1e6:.2f} MB")
        if found is None:
            return render_table(f"{self.file} was not compared with the run", [size])
        rows = [
            size,
            ("largest difference of a probability", f"{found.max_abs_diff:.1e}"),
            ("images with the same label", f"{found.top1_agreement:.2%} of {found.images:,}"),
            *((f"{n} image" + "s" * (n != "1"), f"{1000 * s:.2f} ms") for n, s in found.seconds.items()),
        ]
        return render_table(f"{self.file} agrees with the run", rows)


class Exporter:
    """Exports one run to any number of formats, loading its data and computing its predictions once.

    Use it as a context manager. Raises `UserError` where `load_model` does, and if `images` contains no images.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        images: Path | None = None,
        checkpoint: str = "best",
        with_preprocessing: bool = False,
        precision: str | None = None,
        tolerance: float | None = None,
        opset: int | None = None,
        file: FileOptions = NO_OPTIONS,
        lang: str = "en",
        parity: bool = True,
        samples: str | None = None,
        log: Callable[[str], object] = lambda _: None,
    ) -> None:
        if precision is not None and precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        if tolerance is not None and not 0 < tolerance <= 1:
            raise UserError(f"--tolerance must be a difference of probabilities between 0 and 1, not {tolerance:g}.")
        if opset is not None and not MIN_OPSET <= opset <= max(OLDEST_ONNXRUNTIME):
            raise UserError(f"--opset must be between {MIN_OPSET} and {max(OLDEST_ONNXRUNTIME)}, not {opset}.")
        self.loaded = load_model(run, checkpoint, file, log)
        self._images, self._pixels, self._precision, self._log = images, with_preprocessing, precision, log
        self._opset, self._tolerance, self._lang, self._compares = opset, tolerance, lang, parity
        self._samples = samples
        self._temporary = tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True)

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._temporary.cleanup()

    def check(self, kind: str) -> None:
        """Raise `UserError` unless the run can be exported to `kind` on this machine."""
        check_format(kind)
        check_writable(kind, self._precision)
        model = self.loaded.model
        if kind == WEB:
            check_web(self.loaded)
            if self._compares:
                find_browser()
            return
        if self._pixels and not FORMATS[kind].graph and kind != "huggingface":
            raise UserError(f"The format {kind} holds only weights and cannot normalize; omit --with-preprocessing.")
        if self.loaded.preprocess.mean_image is not None and not self._pixels:
            fix = "only the file can hold; add --with-preprocessing"
            if kind == "torchvision-weights":
                fix = f"the format {kind} cannot hold; use another"
            raise UserError(f"This model subtracts a mean image, which {fix}.")
        if kind == "torchvision-weights":
            if not isinstance(model, TorchvisionNetwork):
                to_torchvision(model)
            elif model.spec.in_channels != 3:
                channels = model.spec.in_channels
                raise UserError(f"'{model.spec.name}' with {channels} channel has no counterpart in torchvision.")

    def export(self, kind: str, out: Path | None = None) -> Export:
        """Write the run as `kind` to `out`, by default a file in the run's folder `export/`.

        Raises `UserError` where `check` does and for an unusable `out`; `ExportFailed` if the file cannot be written
        or differs from the run by more than the tolerance.
        """
        self.check(kind)
        target, precision = self._target(kind, out), self._precision_of(kind)
        tolerance = TOLERANCE[precision] if self._tolerance is None else self._tolerance
        with _temporary_folder_beside(target) as temporary:
            reference = self.reference if self._compares else None  # first: without images nothing is written
            written = temporary / target.name
            try:
                if kind == "torchscript":
                    self._log(DEPRECATED)
                manifest = describe(self.loaded, kind, self._pixels or kind == WEB, precision)
                load_images = partial(calibration_images, self.loaded, self._images, "--images")
                with quiet():
                    manifest = self._writer(kind)(self.loaded, manifest, written, load_images)
                    manifest = write_manifest(written, manifest)
                result, measured = None, None
                if reference is not None:
                    if kind == WEB:
                        self._log(f"The browser computes {parity.count_in_browser(reference.images)} of them.")
                    result = parity.compare(written, kind, reference)
                    if not result.max_abs_diff <= tolerance:  # NaN fails too
                        raise ExportFailed(_mismatch_message(kind, precision, result, tolerance))
                    measured = {
                        "images": result.images, "compared_on": reference.images.description,
                        "max_abs_diff": result.max_abs_diff, "tolerance": tolerance,
                        "top1_agreement": result.top1_agreement,
                        "unreadable": reference.unreadable + result.unreadable, "note": reference.note,
                    }  # fmt: skip
                folder = written if written.is_dir() else temporary
                size = sum((folder / name).stat().st_size for name in manifest.sums)
                complete = replace(manifest, about={**manifest.about, "parity": measured})
                write_json(manifest_path(written), complete.to_dict())
                _move_into_place(temporary, target)
            except (UserError, ExportFailed):
                raise
            except Exception as error:  # each library has its own exceptions for a full disk or an unsupported network
                free = shutil.disk_usage(temporary).free
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ExportFailed(
                    f"'{self.loaded.model.spec.name}' could not be written as {kind} ({reason}; {free / 2**20:,.0f} "
                    "MiB are free there); nothing was left behind."
                ) from error
        compatibility = {key: manifest.about[key] for key in COMPATIBILITY if key in manifest.about}
        return Export(target, kind, precision, size, result, tolerance, reference, compatibility)

    @cached_property
    def images(self) -> ImageSet:
        """The images to compare on. Raises `UserError` where there are none."""
        loaded = self.loaded
        if self._images is not None:
            return parity.folder_images(self._images, loaded.classes)
        if loaded.run is None:
            raise UserError(
                "This model comes without images to compare the exported file on; pass a folder of typical images "
                "with --images."
            )
        try:
            dataset = load_run_dataset(loaded.run, None)
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}; or compare on other images with --images DIR.") from error
        return parity.dataset_images(dataset, loaded.classes, Path(self._temporary.name))

    @cached_property
    def reference(self) -> Reference:
        """The run's own predictions on these images."""
        reference = parity.compute_reference(self.loaded, self.images)
        self._log(f"Comparing on {len(reference.images.files):,} images {reference.images.description}.")
        if reference.note:
            self._log(f"Note: {reference.note}.")
        return reference

    def _page_samples(self) -> list[Sample]:
        """Return the sample images of the format web."""
        if self._samples == "none":
            return []
        if self._samples is not None:
            return sample_images(parity.folder_images(Path(self._samples), self.loaded.classes, "--samples"))
        try:
            return sample_images(self.images)
        except UserError:  # only where they are not needed for the comparison either
            return []

    def _precision_of(self, kind: str) -> str:
        return self._precision or FORMATS[kind].precisions[0]

    def _writer(self, kind: str) -> Writer:
        if kind == "onnx":
            return partial(write_onnx, opset=self._opset)
        if kind == WEB:
            return partial(write_web, samples=self._page_samples(), lang=self._lang, checked=self._compares)
        return _WRITERS[kind]

    def _target(self, kind: str, out: Path | None) -> Path:
        """Return the path to write. Raises `UserError` if something else would be overwritten."""
        suffix = FORMATS[kind].suffix
        if out is None:
            run = self.loaded.run
            home = run.path / "export" if run else Path("export")
            name = run.name if run else self.loaded.model.spec.name.replace("/", "-")
            precision = self._precision_of(kind)
            name += "" if precision == FORMATS[kind].precisions[0] else f"-{precision}"
            out = home / (name + suffix if suffix else f"{name}-huggingface")
        if not suffix:
            ours = out.is_dir() and (not any(out.iterdir()) or manifest_path(out).is_file())
            if out.exists() and not ours:
                raise UserError(f"--out {out} exists and is not an exported folder; choose a path that does not exist.")
            return out
        if out.suffix.lower() != suffix:
            raise UserError(f"--out {out} must end in {suffix} for the format {kind}.")
        if out.is_dir():
            raise UserError(f"{out} is a folder; name a file with --out.")
        weights = out.with_suffix(".bin")
        if kind == "openvino" and weights.exists() and not out.exists():
            raise UserError(f"{weights}, where the weights of {out} would go, is another file; choose another --out.")
        return out


def _mismatch_message(kind: str, precision: str, result: Parity, tolerance: float) -> str:
    closer = ""
    if precision == "int8" and "int8-fc" in FORMATS[kind].precisions:
        closer = "--quantize int8-fc is far closer, and "
    if kind == WEB and precision != "fp32":
        closer = "--fp32 is far closer, and "
    return (
        f"The {kind} file differs from the run by {result.max_abs_diff:.2g} in probability, more than the "
        f"tolerance of {tolerance:g}, at {result.worst} (same label on {result.top1_agreement:.1%} of "
        f"{result.images:,} images), so nothing was left behind; {closer}--tolerance allows a larger difference."
    )


@contextmanager
def _temporary_folder_beside(target: Path) -> Iterator[Path]:
    """Create a temporary folder on the disk of `target`, and its parents; remove what stays empty."""
    missing = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    temporary: Path | None = None
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".exporting-", dir=target.parent))
        except OSError as error:
            raise UserError(f"{target} cannot be written: {error.strerror}; choose another --out.") from error
        yield temporary
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _move_into_place(temporary: Path, target: Path) -> None:
    """Move everything in `temporary` to the folder of `target`; the manifest last, because it vouches for the rest.

    An existing folder is moved away first, as nothing can be renamed over it, and restored if the new one cannot move.
    """
    for path in temporary.rglob("*"):  # some writers leave files that only this user can read
        path.chmod(path.stat().st_mode | 0o444)
    if (temporary / target.name).is_dir() and target.exists():
        previous = temporary / f"{target.name}-before"
        os.replace(target, previous)
        try:
            os.replace(temporary / target.name, target)
        except OSError:
            os.replace(previous, target)
            raise
        return
    manifest = manifest_path(target).name
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == manifest):
        os.replace(path, target.parent / path.name)


# ── one writer per format ─────────────────────────────────────────────────────────────────────────

Writer = Callable[[LoadedModel, Manifest, Path, LoadImages], Manifest]
"""Writes a network as its manifest says, and returns the manifest with what the format adds to it."""


def _save(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Save through memory: on a full disk, torch's own writer aborts the process."""
    file = io.BytesIO()
    save(file)
    path.write_bytes(file.getbuffer())


def _torchscript(loaded: LoadedModel, manifest: Manifest, path: Path, _: LoadImages) -> Manifest:
    model, example, _dynamic = to_convert(loaded, manifest)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the command line warns that TorchScript is deprecated
        traced = torch.jit.trace(model, example)
    extra_files = {f"{KEY}.json": manifest.to_json()}
    _save(path, lambda file: torch.jit.save(traced, file, _extra_files=extra_files))
    return manifest


def _pt2(loaded: LoadedModel, manifest: Manifest, path: Path, _: LoadImages) -> Manifest:
    model, example, dynamic = to_convert(loaded, manifest)
    program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)
    extra_files = {f"{KEY}.json": manifest.to_json()}
    _save(path, lambda file: torch.export.save(program, file, extra_files=extra_files))
    return manifest


def _executorch(loaded: LoadedModel, manifest: Manifest, path: Path, load_images: LoadImages) -> Manifest:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model, example, _ = to_convert(loaded, manifest)
    example = example.new_zeros(CHUNK, *example.shape[1:])  # memory is planned for the batch size of the example
    dynamic = {0: torch.export.Dim("batch", min=1, max=CHUNK)}
    program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)
    if manifest.precision == "int8":
        images = torch.from_numpy(calibration_input(loaded, manifest, load_images))
        model = _quantize_pt2e(program.module(), images)
        program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return replace(manifest, about={**manifest.about, "most_at_once": CHUNK})


def _quantize_pt2e(graph: torch.fx.GraphModule, images: torch.Tensor) -> torch.nn.Module:
    """Return `graph` with int8 weights and activations, the activation ranges calibrated on `images`."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    observed = prepare_pt2e(graph, xnnpack.XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for chunk in images.split(CHUNK):
            observed(chunk)
    quantized: torch.nn.Module = convert_pt2e(observed)
    return quantized


def _torchvision_weights(loaded: LoadedModel, manifest: Manifest, path: Path, _: LoadImages) -> Manifest:
    model, half = loaded.model, manifest.precision == "half"
    state = model.network.state_dict() if isinstance(model, TorchvisionNetwork) else to_torchvision(model)
    state = {name: x.half() if half and x.is_floating_point() else x for name, x in state.items()}
    _save(path, lambda file: torch.save(state, file))
    return manifest


def _huggingface(loaded: LoadedModel, manifest: Manifest, path: Path, _: LoadImages) -> Manifest:
    from alexnet.runtimes.hub import HubModel

    preprocess = loaded.preprocess.to_dict()
    model = HubModel(loaded.model.spec.to_dict(), list(loaded.classes), preprocess, manifest.pixels)
    converted, _example, _dynamic = to_convert(loaded, replace(manifest, precision="fp32"))
    model.network.load_state_dict(converted.state_dict())
    (model.half() if manifest.precision == "half" else model).save_pretrained(path)
    return manifest


_WRITERS: dict[str, Writer] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "torchscript": _torchscript,
    "pt2": _pt2,
    "executorch": _executorch,
    "torchvision-weights": _torchvision_weights,
    "huggingface": _huggingface,
}
