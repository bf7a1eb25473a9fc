"""From a run to a file that other programs run, handed over only if it agrees with the trainer.

A file is written into a temporary folder beside its place, with its description, opened there by its own runtime in a
process of its own, and compared with the run on real pictures (`parity.py`). Only then is it moved into place; if it
is off by more than the tolerance, or anything fails, nothing is left.
"""

from __future__ import annotations

import functools
import os
import platform
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
from alexnet.device import cpu_name, package_version
from alexnet.errors import UserError, unknown_name
from alexnet.export import parity, writers
from alexnet.export.parity import TOLERANCE, ExportFailed, Parity, Reference
from alexnet.files import sha256_file, write_json
from alexnet.inference.calibration import find_calibration
from alexnet.inference.evaluate import calibration_images, run_dataset
from alexnet.inference.load import load_model
from alexnet.runtimes.manifest import FORMATS, PRECISIONS, check_installed, manifest_path
from alexnet.runtimes.signature import key_path, sign

Say = Callable[[str], object]

DEPRECATED = "TorchScript is deprecated since torch 2.12: for programs that read it already; new ones should take pt2."


@dataclass(frozen=True)
class Export:
    """An exported file, and how it compares with the run."""

    file: Path
    kind: str
    precision: str
    size: int
    """Bytes, of all its files."""
    parity: Parity
    tolerance: float
    truth: Reference

    def to_dict(self) -> dict[str, Any]:
        """A part of the JSON document of `alexnet export`."""
        return {
            "file": str(self.file), "format": self.kind, "precision": self.precision, "size": self.size,
            "max_abs_diff": self.parity.max_abs_diff, "tolerance": self.tolerance,
            "top1_agreement": self.parity.top1_agreement, "images": self.parity.images,
            "top1": self.parity.top1, "run_top1": self.truth.top1,
            "seconds": self.parity.seconds, "run_seconds": self.truth.seconds,
            "without_torch": self.parity.without_torch, "unreadable": self.truth.unreadable, "note": self.truth.note,
        }  # fmt: skip


def check_format(name: str) -> None:
    """Raise `UserError` unless there is a format `name`."""
    if name not in FORMATS:
        raise unknown_name("format", name, (*FORMATS, "all"))


class Exporter:
    """Exports one run, to as many formats as are asked for: its data is read, and its answers are found, once.

    Use it in a `with` statement. Raises `UserError` where `open_model` does, and where `images` holds no pictures.
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
        say: Say = lambda _: None,
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        if tolerance is not None and not 0 < tolerance <= 1:
            raise UserError(f"--tolerance is a difference of probabilities, above 0 and up to 1, not {tolerance:g}.")
        self.opened = load_model(run, checkpoint)
        self._images, self._pixels, self._precision, self._say = images, with_preprocessing, precision, say
        self._tolerance = TOLERANCE[precision] if tolerance is None else tolerance
        self._temporary = tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True)

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._temporary.cleanup()

    def check(self, kind: str) -> None:
        """Raise `UserError` unless the run can be exported to `kind` here."""
        check_format(kind)
        writers.check_fits(self.opened, kind, self._pixels, self._precision)
        check_installed(kind, True, self._precision)

    def export(self, kind: str, out: Path | None = None) -> Export:
        """Write the run as `kind` to `out`, by default a file in its own folder `export/`.

        Raises `UserError` where `check` does, and for an `out` that cannot be; `ExportFailed` where the file cannot be
        written or differs from the run by more than the tolerance.
        """
        self.check(kind)
        target = self._target(kind, out)
        with _beside(target) as temporary:
            truth = self.truth  # found first: without pictures nothing is written
            written = temporary / target.name
            try:
                description = self._write(kind, written)
                unsigned = FORMATS[kind].runs_code and not description.signature
                found = parity.compare(written, kind, truth, trust=unsigned)
                if not found.max_abs_diff <= self._tolerance:
                    raise ExportFailed(self._refusal(kind, found))
                folder = written if written.is_dir() else temporary
                size = sum((folder / name).stat().st_size for name in description.sums)
                measured = {
                    "images": found.images, "pictures": truth.pictures.what, "max_abs_diff": found.max_abs_diff,
                    "tolerance": self._tolerance, "top1_agreement": found.top1_agreement,
                    "unreadable": truth.unreadable, "note": truth.note,
                }  # fmt: skip
                complete = replace(description, about={**description.about, "parity": measured})
                write_json(manifest_path(written), complete.to_dict())
                _move(temporary, target)
            except (UserError, ExportFailed):
                raise
            except Exception as error:  # each library reports a full disk, or a network it cannot express, in its way
                free = shutil.disk_usage(temporary).free
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ExportFailed(
                    f"'{self.opened.model.spec.name}' could not be written as {kind} ({reason}; {free / 2**20:,.0f} "
                    "MiB are free there); nothing was left behind."
                ) from error
        return Export(target, kind, self._precision, size, found, self._tolerance, truth)

    # ── what all formats share ────────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def truth(self) -> Reference:
        """What the run itself says of the pictures."""
        opened = self.opened
        if self._images is not None:
            pictures = parity.pictures_below(self._images, opened.classes)
        elif opened.run is None:
            raise UserError(
                "This network comes without pictures to compare the exported file on; give --images with a folder of "
                "pictures like those that it will see."
            )
        else:
            pictures = parity.own_pictures(self._source, opened.classes, Path(self._temporary.name))
        found = parity.reference(opened, pictures)
        n = len(found.pictures.files)
        self._say(f"Comparing on {n:,} pictures {pictures.what}.")
        if found.note:
            self._say(f"Note: {found.note}.")
        return found

    @functools.cached_property
    def _source(self) -> ImageDataset:
        assert self.opened.run is not None
        try:
            return run_dataset(self.opened.run, None)
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}; or compare on other pictures, with --images DIR.") from error

    def _seen(self) -> np.ndarray:
        return calibration_images(self.opened, self._images, "--images")

    def _calibration(self) -> dict[str, Any] | None:
        """Temperature and threshold of the checkpoint, if there are any."""
        found, _ = find_calibration(self.opened.checkpoint, self.opened.run)
        return found.to_dict() if found else None

    def _target(self, kind: str, out: Path | None) -> Path:
        """Where to write. Raises `UserError` where something else would be overwritten."""
        suffix = FORMATS[kind].suffix
        if out is None:
            home = self.opened.run.path / "export" if self.opened.run else Path("export")
            name = f"{self.opened.model.spec.name.replace('/', '-')}{PRECISIONS[self._precision]}"
            out = home / (name + suffix if suffix else f"{name}-huggingface")
        if out.suffix.lower() != suffix and suffix:
            raise UserError(f"Files of the format {kind} end in {suffix}, and {out} does not; change --out.")
        if suffix and out.is_dir():
            raise UserError(f"{out} is a folder; name a file with --out.")
        weights = out.with_suffix(".bin")
        if kind == "openvino" and weights.exists() and not out.exists():
            raise UserError(f"{weights}, where the weights of {out} would go, is another file; choose another --out.")
        if (
            not suffix
            and out.exists()
            and not (out.is_dir() and (not any(out.iterdir()) or manifest_path(out).is_file()))
        ):
            raise UserError(f"--out {out} exists and is no exported folder; choose one that does not exist yet.")
        return out

    def _write(self, kind: str, path: Path) -> writers.Manifest:
        job = writers.Job(self.opened, kind, self._pixels, self._precision, self._calibration(), self._seen)
        if kind == "torchscript":
            self._say(DEPRECATED)
        found = writers.write(job, path)
        parts = sorted(p for p in (path.rglob("*") if path.is_dir() else path.parent.iterdir()) if p.is_file())
        packages = ("alexnet", "torch", *FORMATS[kind].reads)
        about = {**found.about, "versions": {p: package_version(p) for p in packages}, "machine": _machine()}
        found = replace(found, about=about, sums={p.name: sha256_file(p) for p in parts})
        if FORMATS[kind].runs_code:
            found = replace(found, signature=sign(kind, found.sums))
            if not found.signature:
                self._say(
                    f"The {kind} file could not be signed, as no key of your own can be kept in {key_path()}; opening "
                    "it will take --trust."
                )
        write_json(manifest_path(path), found.to_dict())
        return found

    def _refusal(self, kind: str, found: Parity) -> str:
        way = " --quantize int8-fc is far closer;" if "int8-fc" in FORMATS[kind].precisions else ""
        way = way if self._precision == "int8" else ""
        return (
            f"The {kind} file differs from the run by {found.max_abs_diff:.2g} of a probability, more than "
            f"{self._tolerance:g}, at {found.worst} (the same label on {found.top1_agreement:.1%} of {found.images:,} "
            f"pictures); nothing was left behind.{way} --tolerance allows more, if that is what you want."
        )


def _machine() -> str:
    return f"{cpu_name()}, {platform.system()} {platform.machine()}"


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `target`, whose own folder is made if need be and not left empty."""
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


def _move(temporary: Path, target: Path) -> None:
    """All that is in `temporary` into the folder of `target`; the description last, as it vouches for the others.

    A folder that is there gives way first, as none can be renamed over it, and comes back if the new one cannot move.
    """
    if (temporary / target.name).is_dir() and target.exists():
        before = temporary / f"{target.name}-before"
        os.replace(target, before)
        try:
            os.replace(temporary / target.name, target)
        except OSError:
            os.replace(before, target)
            raise
        return
    vouching = manifest_path(target).name
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == vouching):
        os.replace(path, target.parent / path.name)
