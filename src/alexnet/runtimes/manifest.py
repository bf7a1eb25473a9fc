"""The formats of exported files, and the manifest of one: its classes, preprocessing, checksums. Needs no torch or
runtime.

The manifest is `<file>.json` beside the file (`alexnet.json` inside a folder) and, without the checksums, in the file's
own metadata where the format has any. A file that does not match its checksums is not opened; one in a format that can
run code is opened only where the user says to trust it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from alexnet.data.transforms import EvalTransform
from alexnet.device import cpu_name, package_version
from alexnet.errors import UserError, missing_package, unknown_name
from alexnet.files import convert, sha256_file, write_json
from alexnet.runtimes.calibration import Calibration
from alexnet.text import clean_label

FORMAT = "alexnet-export-1"  # of a manifest; others are rejected
KEY = "alexnet"  # of the manifest in a file's own metadata
FOLDER_MANIFEST = "alexnet.json"
WEB = "web"
"""The format that runs in a browser only: no other program of ours opens it."""

PRECISIONS = ("fp32", "half", "int8", "int8-fc")
"""The number formats of an exported network. half: float16 weights, and float16 arithmetic where the runtime supports
it. int8: 8-bit weights and activations. int8-fc: 8-bit weights in the fully connected layers, float32 arithmetic."""


def choose_precision(half: bool, quantize: str | None, fp32: bool = False) -> str | None:
    """Return which of `PRECISIONS` the flags ask for, None for the format's own. Raises `UserError`."""
    if quantize not in (None, "int8", "int8-fc"):
        raise unknown_name("quantization", quantize, ("int8", "int8-fc"))
    if half and quantize:
        raise UserError("--half and --quantize both make a file smaller; give one of them.")
    if fp32 and (half or quantize):
        raise UserError("--fp32 keeps all weights as they are; omit it, or omit --half and --quantize.")
    return quantize or ("half" if half else "fp32" if fp32 else None)


@dataclass(frozen=True)
class Format:
    """A format that networks are exported to."""

    description: str
    suffix: str
    """Of the file; empty for a folder."""
    reads: tuple[str, ...] = ()
    """The packages that reading it needs."""
    writes: tuple[str, ...] = ()
    """The packages that writing it needs as well."""
    extra: str = ""
    """Our optional dependencies that include them."""
    precisions: tuple[str, ...] = ("fp32", "half")
    """The first is the format's own, which is written unless another is asked for."""
    without_torch: bool = False
    """Whether reading it needs no torch."""
    runs_code: bool = False
    """Whether reading it can run code from the file."""
    graph: bool = True
    """Whether it holds the computation, and so can normalize, and not only the weights."""


FORMATS = {
    "onnx": Format(
        "ONNX, for onnxruntime and most other engines", ".onnx", ("onnxruntime",), ("onnx", "onnxscript"), "fast",
        ("fp32", "half", "int8", "int8-fc"), without_torch=True,
    ),
    "openvino": Format(
        "OpenVINO's .xml and .bin, for CPUs", ".xml", ("openvino",), ("onnx", "onnxscript"), "fast",
        ("fp32", "half", "int8", "int8-fc"), without_torch=True,
    ),
    "torchscript": Format("TorchScript, for C++ programs that use it already", ".pt", runs_code=True),
    "pt2": Format("torch.export's archive, for torch and its compilers", ".pt2", runs_code=True),
    "executorch": Format(
        "ExecuTorch with XNNPACK, for phones", ".pte", ("executorch",), ("torchao",), "executorch",
        ("fp32", "half", "int8"),
    ),
    "torchvision-weights": Format("a state dict for torchvision's own network", ".pth", graph=False),
    "huggingface": Format(
        "a folder for the Hugging Face Hub", "", ("huggingface_hub",), (), "hub", ("fp32", "half"), graph=False
    ),
    WEB: Format(
        "a page that classifies images in any browser", ".html", precisions=("int8-fc", "fp32"), without_torch=True
    ),
}  # fmt: skip


def check_format(name: str) -> None:
    """Raise `UserError` unless `name` is a format."""
    if name not in FORMATS:
        raise unknown_name("format", name, (*FORMATS, "all"))


def check_request(
    kind: str,
    half: bool,
    quantize: str | None,
    opset: int | None,
    out: Path | None,
    fp32: bool = False,
    lang: str | None = None,
    parity: bool = True,
    samples: str | None = None,
) -> str | None:
    """Return the precision of an export to the format `kind`, or to "all"; None for the format's own.

    Raises `UserError` for what cannot be written on this machine, before torch is imported.
    """
    precision = choose_precision(half, quantize, fp32)
    if kind != "all":
        check_format(kind)
    if kind != WEB and not parity:
        raise UserError(f"--no-parity is for the format {WEB}, whose check needs a browser; omit it.")
    if lang is not None and kind not in (WEB, "all"):
        raise UserError(f"--lang is the language of the format {WEB}; omit it for {kind}.")
    if samples is not None and kind not in (WEB, "all"):
        raise UserError(f"--samples is for the format {WEB}; omit it for {kind}.")
    if opset is not None and kind not in ("onnx", "all"):
        raise UserError(f"--opset is a version of ONNX; omit it for {kind}, or export to onnx.")
    if kind == "all":
        if out is not None:
            raise UserError("--out names one file, but 'all' writes several; leave it out.")
    else:
        check_writable(kind, precision)
    return precision


def check_writable(kind: str, precision: str | None) -> None:
    """Raise `UserError` unless the format `kind` supports the precision, and can be written here."""
    if precision is not None and precision not in FORMATS[kind].precisions:
        supporting = ", ".join(name for name, other in FORMATS.items() if precision in other.precisions)
        raise UserError(f"The format {kind} does not support {precision}; omit it, or export to {supporting}.")
    check_installed(kind, True, precision or FORMATS[kind].precisions[0])


def check_installed(kind: str, writing: bool = False, precision: str = "fp32", engine: str | None = None) -> None:
    """Raise `UserError`, with the command that installs it, if a package is missing that reading the format (for
    `engine`) needs or, if `writing`, writing it in this precision."""
    if package := first_missing(kind, writing, precision):
        extra = "int8" if package == "nncf" else FORMATS[kind].extra
        user = f"--engine {engine}" if engine else f"The format {kind}"
        raise missing_package(user, package, extra)


def first_missing(kind: str, writing: bool = False, precision: str = "fp32") -> str | None:
    """Return the first package that is not installed and that `check_installed` needs."""
    form = FORMATS[kind]
    quantizer = ("nncf",) if (kind, precision) == ("openvino", "int8") else ()
    packages = (*form.reads, *((*form.writes, *quantizer) if writing else ()))
    return next((package for package in packages if not _is_installed(package)), None)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # an import hook of this process blocks it
        return False


class _Fields(TypedDict):
    """What must be in a manifest; it may hold further facts."""

    kind: str
    network: str
    spec: dict[str, Any]
    classes: Annotated[list[str], Meta(min_length=1)]
    preprocess: dict[str, Any]
    pixels: bool
    precision: str
    calibration: Calibration | None


class _AllFields(_Fields, total=False):
    sha256: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """All that using an exported file requires."""

    kind: str
    """A key of `FORMATS`."""
    network: str
    """The architecture's name."""
    spec: Mapping[str, Any]
    """The architecture, as in `model.json`."""
    classes: tuple[str, ...]
    preprocess: EvalTransform
    """Without a mean image, which only the file itself can hold."""
    pixels: bool = False
    """Whether it takes uint8 pixels and normalizes them itself, instead of normalized float32."""
    precision: str = "fp32"
    calibration: Calibration | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """Further facts: names and shapes of input and output, opset, versions, and how parity was measured."""
    sums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file, by name; empty in the file's own copy."""

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON stores it."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("about", "sums")}
        values |= {
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_dict(),
            "calibration": self.calibration.to_dict() if self.calibration else None,
        }
        return {"format": FORMAT, **values, **self.about, **({"sha256": dict(self.sums)} if self.sums else {})}

    def to_json(self) -> str:
        """Return the text that is stored in the file itself."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Return the inverse of `to_json`. Raises `UserError` if it is damaged or another program's."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UserError(f"{where} is damaged ({error}); export the network again.") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UserError(f"{where} was written by other software: its format is not '{FORMAT}'.")
        try:
            known: dict[str, Any] = dict(convert(found, _AllFields, "manifest"))
            if known["kind"] not in FORMATS or known["precision"] not in PRECISIONS:
                raise UserError(f"there is no format {known['kind']} in {known['precision']}.")
            preprocess = EvalTransform.from_dict(found["preprocess"])
        except UserError as error:
            raise UserError(f"{where} is damaged ({str(error).rstrip('.')}); export the network again.") from error
        about = {key: value for key, value in found.items() if key not in (*_AllFields.__annotations__, "format")}
        known |= {
            "classes": tuple(map(clean_label, found["classes"])),
            "preprocess": preprocess,
            "sums": known.pop("sha256", {}),
        }
        return cls(**known, about=about)


def write_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of the file or folder `path`, which is complete: with checksums, versions and machine.

    The folder of a file must hold nothing else.
    """
    parts = sorted(p for p in (path.rglob("*") if path.is_dir() else path.parent.iterdir()) if p.is_file())
    versions = {name: package_version(name) for name in ("alexnet", "torch", *FORMATS[manifest.kind].reads)}
    machine = f"{cpu_name()}, {platform.system()} {platform.machine()}"
    about = {**manifest.about, "versions": versions, "machine": machine}
    manifest = replace(manifest, about=about, sums={part.name: sha256_file(part) for part in parts})
    write_json(manifest_path(path), manifest.to_dict())
    return manifest


def manifest_path(path: Path) -> Path:
    """Return the path of the manifest of the exported file or folder `path`."""
    return path / FOLDER_MANIFEST if path.is_dir() else path.with_name(path.name + ".json")


def is_exported_model(name: str | Path) -> bool:
    """Whether `name` is an exported file or folder, recognized by its suffix, manifest or content."""
    path = Path(name)
    if path.is_dir():
        return (path / FOLDER_MANIFEST).is_file() or _is_hub_folder(path)
    suffix = path.suffix.lower()
    if suffix == FORMATS[WEB].suffix:
        return manifest_path(path).is_file()
    if suffix in (".pt", ".pth"):  # these hold other things, too
        return path.is_file() and (manifest_path(path).is_file() or _is_torchscript(path))
    return suffix in {form.suffix for form in FORMATS.values() if form.suffix} and path.is_file()


def _is_hub_folder(folder: Path) -> bool:
    """Whether `folder` is what `HubModel.save_pretrained` and `push_to_hub` write, which needs no manifest."""
    try:
        config = (folder / "config.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return (folder / "model.safetensors").is_file() and all(f'"{key}"' in config for key in ("spec", "preprocess"))


def _is_torchscript(path: Path) -> bool:
    """Whether `path` is an archive that holds code, and not only weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            return path.suffix.lower() == ".pt" and any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_manifest(path: Path, trust: bool = False) -> Manifest | None:
    """Return the manifest of `path` after verifying the file against it; None where there is none.

    Raises `UserError` for a file that is missing, damaged, swapped, or of another format than its manifest; and,
    without `trust`, for one in a format that can run code.
    """
    if not path.exists():
        raise UserError(f"There is no file {path}; give an exported file or a run.")
    manifest_file, kind = manifest_path(path), format_of(path)
    if FORMATS[kind].runs_code and not trust:
        raise UserError(
            f"{path} is not opened, because opening {kind} files can run code; if you trust where it comes from, add "
            "--trust, or else export the network as onnx."
        )
    try:
        content = manifest_file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{manifest_file} cannot be read ({error}); export the network again.") from error
    manifest = Manifest.from_json(content, str(manifest_file))
    if manifest.kind != kind:  # or the sender of the file could choose what opens it
        raise UserError(
            f"{manifest_file} describes a file in the format {manifest.kind}, but {path} has the suffix of the format "
            f"{kind}; export the network again."
        )
    verify_checksums(path, manifest)
    return manifest


def verify_checksums(path: Path, manifest: Manifest) -> None:
    """Raise `UserError` unless the files of `path` match the checksums of its manifest; they may have been renamed."""
    verified = set()
    for name, sha in manifest.sums.items():
        file = path / Path(name).name if path.is_dir() else path.with_suffix(Path(name).suffix)
        if not file.is_file():
            raise UserError(f"{file}, a part of {path}, is missing; export the network again.")
        if sha256_file(file) != sha:
            raise UserError(
                f"{file} is damaged or another file: its checksum is not the one in {manifest_path(path)}; "
                "export the network again."
            )
        verified.add(file)
    if not verified or (path.is_file() and path not in verified):
        raise UserError(f"{manifest_path(path)} has no checksum of {path.name}; export the network again.")


def exported_model_id(path: Path, manifest: Manifest | None) -> str:
    """Return a name that identifies the files of `path` and their manifest."""
    sums = dict(manifest.sums) if manifest else {part.name: sha256_file(part) for part in _list_parts(path)}
    content = replace(manifest, about={}, sums={}).to_dict() if manifest else {}
    return f"exported-{hashlib.sha256(json.dumps([content, sums], sort_keys=True).encode()).hexdigest()[:16]}"


def _list_parts(path: Path) -> list[Path]:
    """Return the files of an exported file or folder, without the manifest."""
    if path.is_dir():
        return [part for part in path.iterdir() if part.is_file() and part.name != FOLDER_MANIFEST]
    weights = path.with_suffix(".bin")  # OpenVINO's
    return [path, weights] if format_of(path) == "openvino" and weights.is_file() else [path]


def format_of(path: Path) -> str:
    """Return the format that the suffix of `path` belongs to. Raises `UserError` for unknown ones."""
    if path.is_dir():
        return "huggingface"
    suffixes = {form.suffix: kind for kind, form in FORMATS.items() if form.suffix}
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path} does not have the suffix of an exported file: {', '.join(suffixes)}.")
    return suffixes[path.suffix.lower()]
