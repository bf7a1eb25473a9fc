"""Loading of whatever RUN may be on the command line: a run, a checkpoint folder, torchvision's published weights, or
an exported file. Needs no torch until weights are loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alexnet.checkpoint import MODEL, checkpoint_id, load_checkpoint
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.inference.calibration import find_calibration
from alexnet.run_dir import Run, find_run
from alexnet.runtimes.engines import LoadedModel
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import is_exported_model
from alexnet.runtimes.select import open_cached

# torchvision's AlexNet_Weights.IMAGENET1K_V1.transforms(): ImageClassification(crop_size=224), its defaults
TORCHVISION_PREPROCESS = EvalTransform(
    size=224, resize=256, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
)
WEIGHT_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".caffemodel", ".h5", ".onnx"}


def is_run_reference(word: str) -> bool:
    """Whether `word` names what `load_network` loads, and not an image or a folder of images."""
    path = Path(word)
    return (
        word.startswith("torchvision:")
        or is_exported_model(path)
        or (word == "last" and not path.exists())
        or any((path / name).is_file() for name in ("recipe.json", MODEL))
    )


def load_network(name: str | Path, checkpoint: str = "best", trust: bool = False) -> LoadedModel:
    """Load what `load_model` does, or an exported file; `trust` opens one in a format that can run code. Raises
    `UserError`."""
    return open_exported(name, trust) if is_exported_model(name) else load_model(name, checkpoint)


def load_model(name: str | Path, checkpoint: str = "best") -> LoadedModel:
    """Load the network called `name`, on the CPU and in evaluation mode, with its calibration.

    `name`: a run folder (its `checkpoint`, `best` or `last`), `last` for the newest run, a checkpoint folder, or
    `torchvision:IMAGENET1K_V1`, which torchvision downloads. Raises `UserError` for everything else.
    """
    if str(name).startswith("torchvision:"):
        from alexnet.models.model import create_model
        from alexnet.models.weights import load_weights, torchvision_weights

        weights, categories = torchvision_weights(str(name).split(":", 1)[1])
        model = create_model("torchvision", num_classes=len(categories))
        load_weights(model, weights)
        loaded = LoadedModel(model.eval(), tuple(categories), TORCHVISION_PREPROCESS, None, None, model_id(name))
    else:
        folder, run = resolve_checkpoint(name, checkpoint)
        found = load_checkpoint(folder)
        loaded = LoadedModel(found.model, found.classes, found.preprocess, run, folder, checkpoint_id(folder))
    return _with_calibration(loaded)


def _with_calibration(loaded: LoadedModel) -> LoadedModel:
    calibration, note = find_calibration(loaded.checkpoint, loaded.run)
    return replace(loaded, calibration=calibration, calibration_note=note)


def find_cached(name: str | Path, checkpoint: str, engine: str, device: str, single: bool) -> LoadedModel | None:
    """Return the network called `name` in `engine` if its file is in the engine cache; needs no torch.

    Arguments as for `load_network` and `open_cached`. Raises `UserError` as `load_network` does.
    """
    found = open_cached(model_id(name, checkpoint), engine, device, single)
    if found is None:
        return None
    published = str(name).startswith("torchvision:")
    folder, run = (None, None) if published else resolve_checkpoint(name, checkpoint)
    return _with_calibration(replace(found, run=run, checkpoint=folder))


def model_id(name: str | Path, checkpoint: str = "best") -> str:
    """Return a file name that identifies a network with its classes and preprocessing; needs no torch.

    Raises `UserError` as `load_model` does, except for damaged weights.
    """
    if str(name).startswith("torchvision:"):
        return str(name).replace(":", "-").replace("/", "-")  # torchvision verifies its downloads
    return checkpoint_id(resolve_checkpoint(name, checkpoint)[0])


def resolve_checkpoint(name: str | Path, checkpoint: str = "best") -> tuple[Path, Run | None]:
    """Return the checkpoint folder that `name` (see `load_model`) refers to, and its run if it is in one.

    Raises `UserError`.
    """
    path = Path(name)
    if is_exported_model(path):
        raise UserError(f"{path} is an exported file, which only predict and eval take; give the run instead.")
    if path.is_file():
        if path.suffix.lower() in WEIGHT_SUFFIXES:
            raise UserError(
                f"{path} is a file of weights, not a run; give a run folder, or load it in Python with "
                "alexnet.load_weights(alexnet.create_model(…), path)."
            )
        raise UserError(f"{path} is a file; give a run folder or a checkpoint folder.")
    if (path / MODEL).is_file():
        run = Run(path.resolve().parent.parent)
        return path, run if run.recipe_json.is_file() else None
    if path.is_dir() and not (path / "recipe.json").is_file():
        raise UserError(f"{path} is neither a run (it has no recipe.json) nor a checkpoint (it has no {MODEL}).")
    run = find_run(name)
    folder = run.named_checkpoint(checkpoint)
    if folder is None:
        raise UserError(f"The run {run.path} has no checkpoint yet; 'alexnet resume {run.path}' restarts it.")
    return folder, run
