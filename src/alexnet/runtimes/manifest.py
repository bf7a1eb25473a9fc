"""What is known of an exported file: its classes, its preprocessing, its checksum. Needs neither torch nor a runtime.

The description stands in `<file>.json` beside the file (`alexnet.json` inside a folder) and, where the format has a
place for it, without the checksums in the file too. A file whose checksum is not the one beside it is not opened; one
of a format that can run code is opened only if this user signed it (`signature.py`), or if they say that they trust it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import sha256_file
from alexnet.runtimes.signature import is_signed

MARK = "alexnet-export-1"  # of a description; a reader refuses what it does not know
KEY = "alexnet"  # under which a file holds its own description
INSIDE = "alexnet.json"  # the description in a folder

PRECISIONS = {"fp32": "", "half": "-half", "int8": "-int8", "int8-fc": "-int8-fc"}
"""What an exported network keeps its numbers in, and what this adds to the name of its file. half: weights, and where
the engine can, sums in float16. int8: weights and activations of 8 bits. int8-fc: the weights of the fully connected
layers in 8 bits, all sums in float32."""


@dataclass(frozen=True)
class Format:
    """One of the formats that networks are exported to."""

    what: str
    suffix: str
    """Of the file; empty for a folder."""
    reads: tuple[str, ...] = ()
    """The packages that open it."""
    writes: tuple[str, ...] = ()
    """Those that it takes to write it, too."""
    extra: str = ""
    """What of ours installs them."""
    precisions: tuple[str, ...] = ("fp32", "half")
    without_torch: bool = False
    """Whether it is opened without torch."""
    runs_code: bool = False
    """Whether opening it can run what somebody wrote into it."""
    graph: bool = True
    """Whether it holds the computation, and so can normalise by itself, and not the weights alone."""


FORMATS = {
    "onnx": Format(
        "ONNX, for onnxruntime and most other engines", ".onnx", ("onnxruntime",), ("onnx", "onnxscript"), "fast",
        ("fp32", "half", "int8", "int8-fc"), without_torch=True,
    ),
    "openvino": Format(
        "OpenVINO's .xml and .bin, for CPUs", ".xml", ("openvino",), ("onnx", "onnxscript"), "fast",
        ("fp32", "half", "int8", "int8-fc"), without_torch=True,
    ),
    "torchscript": Format("TorchScript, for C++ programs that read it already", ".pt", runs_code=True),
    "pt2": Format("torch.export's archive, for torch and its compilers", ".pt2", runs_code=True),
    "executorch": Format(
        "ExecuTorch with XNNPACK, for phones", ".pte", ("executorch",), ("torchao",), "executorch",
        ("fp32", "half", "int8"),
    ),
    "torchvision-weights": Format("a state dict that torchvision's own network loads", ".pth", graph=False),
    "huggingface": Format(
        "a folder for the Hugging Face Hub", "", ("huggingface_hub",), (), "hub", ("fp32", "half"), graph=False
    ),
}  # fmt: skip


def check_installed(kind: str, writing: bool = False, precision: str = "fp32") -> None:
    """Raise `UserError`, with the command that installs it, if a package is missing that opens the format, or, if
    `writing`, that writes it in this precision."""
    form = FORMATS[kind]
    wanted = dict.fromkeys((*form.reads, *(form.writes if writing else ())), form.extra)
    if writing and (kind, precision) == ("openvino", "int8"):
        wanted["nncf"] = "int8"
    for package, extra in wanted.items():
        if importlib.util.find_spec(package) is None:
            raise UserError(f"The format {kind} needs {package}; pip install 'alexnet[{extra}]' adds it.")


@dataclass(frozen=True)
class Manifest:
    """All that using an exported file needs to know."""

    kind: str
    """A key of `FORMATS`."""
    network: str
    """The architecture's name."""
    spec: Mapping[str, Any]
    """The architecture, as `model.json` has it."""
    classes: tuple[str, ...]
    preprocess: EvalTransform
    """Without a mean image, which only the file itself can hold."""
    pixels: bool = False
    """Whether it takes uint8 pixels and normalises by itself; else float32 that is normalised already."""
    precision: str = "fp32"
    calibration: Mapping[str, Any] | None = None
    """The checkpoint's temperature and threshold, if it has any, which tell the unsure answers."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else is told: names and shapes of input and output, opset, versions, and how parity was measured."""
    sums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file, by name; empty in the file's own copy."""
    signature: str = ""
    """Of the kind and the checksums, for formats that can run code; empty where no key could be kept."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("about", "sums", "signature")}
        values |= {"classes": list(self.classes), "preprocess": self.preprocess.to_dict()}
        sums = {"sha256": dict(self.sums)} if self.sums else {}
        signed = {"signature": self.signature} if self.signature else {}
        return {"format": MARK, **values, **self.about, **sums, **signed}

    @classmethod
    def from_dict(cls, found: Any, where: str) -> Manifest:
        """The inverse of `to_dict`. Raises `UserError` for what is damaged or another program's."""
        if not isinstance(found, dict) or found.get("format") != MARK:
            raise UserError(f"{where} was written by other software: its format is not '{MARK}'.")
        own = {f.name for f in fields(cls)} - {"about", "sums", "signature"}
        try:
            values = {key: found[key] for key in own}
            for key, (holds, what) in _HOLDS.items():
                if key in found and not holds(found[key]):
                    raise ValueError(f"{key} is not {what}")
            if values["kind"] not in FORMATS or values["precision"] not in PRECISIONS:
                raise ValueError(f"there is no format {values['kind']} in {values['precision']}")
            values["preprocess"] = EvalTransform.from_dict(found["preprocess"])
            values["classes"] = tuple(found["classes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where} is damaged ({error}); export the network again.") from error
        about = {key: v for key, v in found.items() if key not in own | {"format", "sha256", "signature"}}
        return cls(**values, about=about, sums=found.get("sha256", {}), signature=found.get("signature", ""))


def _texts(x: Any) -> bool:
    return all(isinstance(one, str) for one in x)


_HOLDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network": (lambda x: isinstance(x, str), "a name"),
    "spec": (lambda x: isinstance(x, dict), "an object"),
    "classes": (lambda x: isinstance(x, list) and bool(x) and _texts(x), "a list of names"),
    "pixels": (lambda x: isinstance(x, bool), "true or false"),
    "calibration": (lambda x: x is None or isinstance(x, dict), "an object"),
    "sha256": (lambda x: isinstance(x, dict) and _texts(x.values()), "an object of checksums"),
    "signature": (lambda x: isinstance(x, str), "text"),
}
"""What a description's values must be, where nothing else checks them; and in words."""


def manifest_path(path: Path) -> Path:
    """Where the description of the exported file or folder `path` stands."""
    return path / INSIDE if path.is_dir() else path.with_name(path.name + ".json")


def is_exported_model(name: str | Path) -> bool:
    """Whether `name` is a file or folder of ours, or a file in a format that nothing else of ours has."""
    path = Path(name)
    if path.is_dir():
        return (path / INSIDE).is_file() or _saved_by_hub(path)
    own = {form.suffix for kind, form in FORMATS.items() if form.suffix not in ("", ".pt", ".pth")}
    return path.is_file() and (path.suffix.lower() in own or manifest_path(path).is_file() or is_torchscript(path))


def _saved_by_hub(folder: Path) -> bool:
    """Whether `folder` is what `HubModel.save_pretrained` and `push_to_hub` write, which needs no description."""
    try:
        config = (folder / "config.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return (folder / "model.safetensors").is_file() and all(f'"{key}"' in config for key in ("spec", "preprocess"))


def is_torchscript(path: Path) -> bool:
    """Whether `path` is an archive that holds code, and not weights alone."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return path.suffix.lower() == ".pt" and any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_manifest(path: Path, trust: bool = False) -> Manifest | None:
    """The description beside `path`, once the file is known to be what it describes; None where there is none and the
    format is harmless, or if `trust`.

    Raises `UserError` for a file that is not there or of another kind than its ending says, for one that is damaged or
    swapped, and for one that could run code and was not signed by this user; `trust` allows these two.
    """
    if not path.exists():
        raise UserError(f"There is no file {path}; give an exported file or a run.")
    beside, kind = manifest_path(path), kind_of(path)
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if FORMATS[kind].runs_code and not trust:
            raise UserError(
                f"{path} has no {beside.name} beside it, so nothing says that it was exported here, and opening "
                f"{kind} files can run code; if you know where it comes from, add --trust."
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{beside} is damaged ({error}); export the network again.") from error
    description = Manifest.from_dict(found, str(beside))
    if description.kind != kind:  # its sender could else choose what opens it
        raise UserError(
            f"{beside} describes a file of the format {description.kind}, and {path} is of the format {kind} by its "
            "ending; export the network again."
        )
    if not trust:
        check_sums(path, description)
        if FORMATS[kind].runs_code and not is_signed(description.signature, kind, description.sums):
            raise UserError(
                f"{path} is not signed as exported by you on this machine, and opening {kind} files can run code; if "
                "you know where it comes from, add --trust, or else export the network again."
            )
    return description


def check_sums(path: Path, description: Manifest) -> None:
    """Raise `UserError` unless `path` is, to the last bit, what was described, whatever it is called now."""
    parts = [
        (path / Path(name).name if path.is_dir() else path.with_suffix(Path(name).suffix), told)
        for name, told in description.sums.items()
    ]
    for part, told in parts:
        if not part.is_file():
            raise UserError(f"{part}, a part of {path}, is missing; export the network again.")
        if sha256_file(part) != told:
            raise UserError(
                f"{part} is damaged or another file: its checksum is not the one in {manifest_path(path)}; "
                "export the network again."
            )
    if not parts or (path.is_file() and path not in dict(parts)):
        raise UserError(f"{manifest_path(path)} has no checksum of {path.name}; export the network again.")


def exported_model_id(path: Path, trust: bool = False) -> str:
    """The same for the same files with the same description, in hexadecimal digits. Unless there is none, or nobody
    compares with it because of `trust`, the checksums are taken from the description."""
    description = read_manifest(path, trust=True)
    sums = dict(description.sums) if description and not trust else {p.name: sha256_file(p) for p in _parts(path)}
    told = replace(description, about={}, sums={}, signature="").to_dict() if description else {}
    return hashlib.sha256(json.dumps([told, sums], sort_keys=True).encode()).hexdigest()


def _parts(path: Path) -> list[Path]:
    """The files of an exported file or folder, less the description."""
    if path.is_dir():
        return [part for part in path.iterdir() if part.is_file() and part.name != INSIDE]
    weights = path.with_suffix(".bin")  # OpenVINO's
    return [path, weights] if kind_of(path) == "openvino" and weights.is_file() else [path]


def kind_of(path: Path) -> str:
    """The format that the ending of `path` tells. Raises `UserError` for others."""
    if path.is_dir():
        return "huggingface"
    for kind, form in FORMATS.items():
        if form.suffix == path.suffix.lower():
            return kind
    raise UserError(f"{path} has no ending of an exported file; those are {', '.join(suffixes())}.")


def suffixes() -> list[str]:
    """The endings of exported files."""
    return [form.suffix for form in FORMATS.values() if form.suffix]
