"""Export of a run to a file for other runtimes, kept only if it agrees with the trainer.

The file and its manifest are written to a temporary folder next to the target, opened there by their own runtime in a
separate process, and compared with the run on real images (`parity.py`). Only then are they moved to the target; if
the difference exceeds the tolerance, or anything fails, nothing is left behind.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from alexnet.data.dataset import ImageDataset
from alexnet.errors import UserError, unknown_name
from alexnet.export import parity, writers
from alexnet.export.parity import TOLERANCE, ExportFailed, Parity, Reference
from alexnet.files import write_json
from alexnet.inference.evaluate import calibration_images, load_run_dataset
from alexnet.inference.load import load_model
from alexnet.runtimes.convert import describe
from alexnet.runtimes.manifest import FORMATS, PRECISIONS, Manifest, check_installed, manifest_path

DEPRECATED = "Warning: TorchScript is deprecated since torch 2.12; use it for existing programs and pt2 for new ones."


@dataclass(frozen=True)
class Export:
    """An exported file, and how it compares with the run."""

    file: Path
    kind: str
    precision: str
    size: int
    """Total bytes of its files."""
    parity: Parity
    tolerance: float
    reference: Reference

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet export`."""
        return {
            "file": str(self.file), "format": self.kind, "precision": self.precision, "size": self.size,
            "max_abs_diff": self.parity.max_abs_diff, "tolerance": self.tolerance,
            "top1_agreement": self.parity.top1_agreement, "images": self.parity.images,
            "top1": self.parity.top1, "run_top1": self.reference.top1,
            "seconds": self.parity.seconds, "run_seconds": self.reference.seconds,
            "without_torch": self.parity.without_torch,
            "unreadable": self.reference.unreadable, "note": self.reference.note,
        }  # fmt: skip


def check_format(name: str) -> None:
    """Raise `UserError` unless `name` is a format."""
    if name not in FORMATS:
        raise unknown_name("format", name, (*FORMATS, "all"))


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
        precision: str = "fp32",
        tolerance: float | None = None,
        log: Callable[[str], object] = lambda _: None,
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        if tolerance is not None and not 0 < tolerance <= 1:
            raise UserError(f"--tolerance must be a difference of probabilities between 0 and 1, not {tolerance:g}.")
        self.loaded = load_model(run, checkpoint)
        self._images, self._pixels, self._precision, self._log = images, with_preprocessing, precision, log
        self._tolerance = TOLERANCE[precision] if tolerance is None else tolerance
        self._temporary = tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True)

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._temporary.cleanup()

    def check(self, kind: str) -> None:
        """Raise `UserError` unless the run can be exported to `kind` on this machine."""
        check_format(kind)
        writers.check_supported(self.loaded, kind, self._pixels, self._precision)
        check_installed(kind, True, self._precision)

    def export(self, kind: str, out: Path | None = None) -> Export:
        """Write the run as `kind` to `out`, by default a file in the run's folder `export/`.

        Raises `UserError` where `check` does and for an unusable `out`; `ExportFailed` if the file cannot be written
        or differs from the run by more than the tolerance.
        """
        self.check(kind)
        target = self._target(kind, out)
        with _temporary_folder_beside(target) as temporary:
            reference = self.reference  # computed first: without images nothing is written
            written = temporary / target.name
            try:
                manifest = self._write(kind, written)
                result = parity.compare(written, kind, reference)
                if not result.max_abs_diff <= self._tolerance:  # NaN fails too
                    raise ExportFailed(self._mismatch_message(kind, result))
                folder = written if written.is_dir() else temporary
                size = sum((folder / name).stat().st_size for name in manifest.sums)
                measured = {
                    "images": result.images, "compared_on": reference.images.description,
                    "max_abs_diff": result.max_abs_diff, "tolerance": self._tolerance,
                    "top1_agreement": result.top1_agreement, "unreadable": reference.unreadable,
                    "note": reference.note,
                }  # fmt: skip
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
        return Export(target, kind, self._precision, size, result, self._tolerance, reference)

    @functools.cached_property
    def reference(self) -> Reference:
        """The run's own predictions on the images to compare on."""
        loaded = self.loaded
        if self._images is not None:
            images = parity.folder_images(self._images, loaded.classes)
        elif loaded.run is None:
            raise UserError(
                "This model comes without images to compare the exported file on; pass a folder of typical images "
                "with --images."
            )
        else:
            images = parity.dataset_images(self._dataset, loaded.classes, Path(self._temporary.name))
        reference = parity.compute_reference(loaded, images)
        self._log(f"Comparing on {len(reference.images.files):,} images {images.description}.")
        if reference.note:
            self._log(f"Note: {reference.note}.")
        return reference

    @functools.cached_property
    def _dataset(self) -> ImageDataset:
        assert self.loaded.run is not None
        try:
            return load_run_dataset(self.loaded.run, None)
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}; or compare on other images with --images DIR.") from error

    def _calibration_images(self) -> np.ndarray:
        return calibration_images(self.loaded, self._images, "--images")

    def _target(self, kind: str, out: Path | None) -> Path:
        """Return the path to write. Raises `UserError` if something else would be overwritten."""
        suffix = FORMATS[kind].suffix
        if out is None:
            home = self.loaded.run.path / "export" if self.loaded.run else Path("export")
            name = f"{self.loaded.model.spec.name.replace('/', '-')}{PRECISIONS[self._precision]}"
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

    def _write(self, kind: str, path: Path) -> Manifest:
        if kind == "torchscript":
            self._log(DEPRECATED)
        manifest = describe(self.loaded, kind, self._pixels, self._precision)
        return writers.write(self.loaded, manifest, path, self._calibration_images)

    def _mismatch_message(self, kind: str, result: Parity) -> str:
        closer = self._precision == "int8" and "int8-fc" in FORMATS[kind].precisions
        advice = "--quantize int8-fc is far closer, and " if closer else ""
        return (
            f"The {kind} file differs from the run by {result.max_abs_diff:.2g} in probability, more than the "
            f"tolerance of {self._tolerance:g}, at {result.worst} (same label on {result.top1_agreement:.1%} of "
            f"{result.images:,} images), so nothing was left behind; {advice}--tolerance allows a larger difference."
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
