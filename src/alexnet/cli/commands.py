"""The commands that train, use and describe networks, each a typed function.

Results are printed on stdout. Everything heavy is imported inside the command that needs it, so that `alexnet --help`
answers at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alexnet.cli.arguments import _parse
from alexnet.cli.printing import _print_json, _speaks, _table
from alexnet.errors import UserError

if TYPE_CHECKING:
    from alexnet.training.start import TrainingResult


def command_train(arguments: list[str]) -> None:
    """Train a recipe, a recipe.json, or a folder of pictures; the embedded digits if none is named."""
    from alexnet.training.recipe import FLAG_NAMES, Flags, flags_of, with_settings
    from alexnet.training.recipes import RECIPES, describe, find_recipe
    from alexnet.training.settings import parse_settings

    @dataclass(frozen=True, kw_only=True)
    class TrainFlags(Flags):
        out: Path | None = None
        """The run folder; runs/<recipe>-<time> unless given."""
        resume: bool = False
        """Go on if --out already holds a run."""
        force: bool = False
        """With --resume: go on also with settings that make another experiment of it."""
        set: tuple[str, ...] = ()
        """Other settings of recipe.json, such as padding_mode=reflect clip_norm=1."""
        json: bool = False
        """Print the summary as one JSON document."""

    named = bool(arguments) and not arguments[0].startswith("-")
    given = arguments[0] if named else "digits"
    recipe = find_recipe(given)
    about = describe(given) if given in RECIPES else f"Train {given}."
    if not named:
        about += f"\n\nOther recipes: {', '.join(RECIPES)}; 'alexnet train NAME --help' tells their settings."
    defaults = TrainFlags(**dataclasses.asdict(flags_of(recipe)))
    flags = _parse(TrainFlags, arguments[named:], f"alexnet train {given}", about, default=defaults)
    said = {re.sub(r"^--(no-)?", "", word.split("=")[0]).replace("-", "_") for word in arguments if word[:2] == "--"}
    settings = {name: getattr(flags, name) for name in FLAG_NAMES if name in said}
    recipe = with_settings(recipe, {**settings, **parse_settings(flags.set)}, where=" in --set" if flags.set else "")

    from alexnet.training.start import train

    _show_training(train(recipe, out=flags.out, resume=flags.resume, force=flags.force), flags.json)


def resume(
    run: str,
    /,
    *,
    epochs: str | None = None,
    parallel: Literal["auto", "none", "data", "towers"] | None = None,
    set: tuple[str, ...] = (),
    force: bool = False,
    json: bool = False,
) -> None:
    """Go on with a run where it stopped, or extend a finished one.

    Args:
        run: The run folder, or 'last' for the newest one in runs/.
        epochs: Extend to this many epochs, or by +N; the learning rate goes on as that of a run of so many.
        parallel: How several processes share the work, as in 'alexnet train'; the run's own way unless given.
        set: Settings of recipe.json to go on with, such as workers=4 data=/new/place.
        force: Also with such as make another experiment of it.
        json: Print the summary as one JSON document.
    """
    from alexnet.runs import find_run
    from alexnet.training.settings import parse_settings
    from alexnet.training.start import resume_run

    found = find_run(run)
    result = resume_run(found, epochs=epochs, parallel=parallel, force=force, settings=parse_settings(set))
    if result.already_finished and _speaks():
        print(f"{found.path} is finished; --epochs +N extends it.", file=sys.stderr)
    _show_training(result, json)


def evaluate(
    run: str,
    more: tuple[str, ...] = (),
    /,
    *,
    data: Path | None = None,
    labels: Path | None = None,
    split: Literal["auto", "train", "val", "test"] = "auto",
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    ten_crop: bool = False,
    crops: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    engine: str = "exact",
    calibrate: Path | None = None,
    trust: bool = False,
    json: bool = False,
) -> None:
    """Measure a trained network: top-1 with its interval, top-5, loss, and precision and recall of each class.

    Args:
        run: A run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1, or an exported file.
        more: Further runs that know the same classes: an ensemble, whose probabilities are averaged.
        data: Other pictures than the run's own: a folder of class folders, or an archive of it.
        labels: A CSV or Parquet file with the columns path and label, in place of class folders.
        split: Which part of the data; auto is test where there is one, else val.
        checkpoint: Which checkpoint of the run.
        device: Where to compute.
        ten_crop: Average four corners, the centre and their mirror images, as the paper tests.
        crops: Average this many views instead: 2, 8, 18, 32, 50 … make grids.
        scales: Average over the picture resized by each of these factors, such as 1 1.15 1.3.
        engine: What computes: exact (torch in float32, as in training), fast (the fastest installed here that stays
            close to exact), torch-bf16, onnxruntime, onnxruntime-int8, openvino, openvino-bf16, openvino-int8-fc or
            openvino-int8.
        calibrate: A folder of pictures for the int8 engines to see the ranges of their numbers; the run's own unless
            given.
        trust: Open an exported file even if nothing says that it was exported here; such a file can run code.
        json: Print one JSON document.
    """
    from alexnet.inference.evaluate import evaluate as run_evaluation

    found = run_evaluation(
        (run, *more), data=data, labels=labels, split=split, checkpoint=checkpoint, device=device,
        views=_views(ten_crop, crops), scales=scales, engine=engine, calibrate=calibrate, trust=trust, say=_say,
    )  # fmt: skip
    if json:
        _print_json(found)
        return
    print(found)
    if more:
        print("alone: " + ", ".join(f"{m['run']} {m['top1']:.2%}" for m in found["members"]))
    _table(
        ("class", "images", "precision", "recall", "F1"),
        [
            (c["label"], c["n"], f"{c['precision']:.1%}", f"{c['recall']:.1%}", f"{c['f1']:.3f}")
            for c in found["per_class"]
        ],
    )


def predict(
    run: str,
    images: tuple[str, ...] = (),
    /,
    *,
    top: int = 5,
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    ten_crop: bool = False,
    crops: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    engine: str = "exact",
    calibrate: Path | None = None,
    trust: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Label pictures: files, folders, or '-' for one picture on standard input.

    Args:
        run: A run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1, or an exported file.
        images: Picture files, folders of them, or '-'. Words before them that are runs too (a folder with recipe.json,
            a checkpoint folder, 'last', torchvision:…) make an ensemble, whose probabilities are averaged.
        top: How many labels for each.
        checkpoint: Which checkpoint of the run.
        device: Where to compute.
        ten_crop: Average four corners, the centre and their mirror images, as the paper tests.
        crops: Average this many views instead: 2, 8, 18, 32, 50 … make grids.
        scales: Average over the picture resized by each of these factors, such as 1 1.15 1.3.
        engine: What computes: exact (torch in float32, as in training), fast (the fastest installed here that stays
            close to exact), torch-bf16, onnxruntime, onnxruntime-int8, openvino, openvino-bf16, openvino-int8-fc or
            openvino-int8.
        calibrate: A folder of pictures for the int8 engines to see the ranges of their numbers; the run's own unless
            given.
        trust: Open an exported file even if nothing says that it was exported here; such a file can run code.
        out: Write a table, .csv, .parquet or .jsonl, instead of printing; interrupted, the same command goes on.
        json: Print one JSON document.
    """
    from alexnet.inference.formats import names_run
    from alexnet.inference.predict import find_images, load_quickly

    runs = [run, *itertools.takewhile(names_run, images)]
    images = images[len(runs) - 1 :]
    if not images:
        raise UserError("Name at least one picture after the run: a file, a folder, or '-' for standard input.")
    if out is not None:
        from alexnet.cli.deploying import predict_into

        return predict_into(
            out, runs, images, top=top, checkpoint=checkpoint, device=device, views=_views(ten_crop, crops),
            scales=scales, engine=engine, calibrate=calibrate, trust=trust, json=json,
        )  # fmt: skip
    wanted: list[str | Path | bytes] = []
    for image in images:
        wanted += [sys.stdin.buffer.read()] if image == "-" else find_images([image])
    predictions = []
    views = _views(ten_crop, crops)
    classifier = load_quickly(
        runs, checkpoint=checkpoint, device=device, engine=engine, calibrate=calibrate, trust=trust, say=_say
    )
    for prediction in classifier.predict_many(wanted, top, views, scales):
        predictions.append(prediction)
        if not json:
            print(prediction, flush=True)
    if json:
        _print_json({"predictions": [p.to_dict() for p in predictions]})
    if all(p.error for p in predictions):
        raise UserError("None of the pictures could be read: " + "; ".join(str(p) for p in predictions[:3]) + ".")
    return 0


def arch(
    name: str | None = None,
    /,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    norm: Literal["auto", "lrn", "batch", "none"] = "auto",
    width: float = 1.0,
    json: bool = False,
) -> None:
    """The table of all architectures, or one of them layer by layer.

    Args:
        name: An architecture, or torchvision/NAME for a classifier of torchvision; all of ours if left out.
        image_size: Side of the input in pixels.
        num_classes: Outputs of the last layer.
        in_channels: 3 for colour, 1 for grey.
        norm: Normalisation; auto is the architecture's own.
        width: Scale of all channel counts and hidden units.
        json: Print one JSON document.
    """
    from alexnet.networks.architectures import TORCHVISION, architecture
    from alexnet.networks.summary import summarize, table

    if name is None:
        rows = table()
        if json:
            _print_json(rows)
            return
        _table(
            ("name", "parameters", "MACs", "input", "classes", "what it is"),
            [
                (r["name"], f"{r['parameters']:,}", f"{r['macs']:,}",
                 f"{r['in_channels']}×{r['image_size']}×{r['image_size']}", r["num_classes"], r["title"])
                for r in rows
            ],
        )  # fmt: skip
        print("'alexnet arch NAME' shows one layer by layer.")
        return
    if name.startswith(TORCHVISION):
        _show_foreign(
            name, json, image_size=image_size, num_classes=num_classes, in_channels=in_channels,
            norm=None if norm == "auto" else norm, width=width,
        )  # fmt: skip
        return
    spec = architecture(
        name, image_size=image_size, num_classes=num_classes, in_channels=in_channels,
        norm=None if norm == "auto" else norm, width=width,
    )  # fmt: skip
    summary = summarize(spec)
    if json:
        _print_json(summary.to_dict())
        return
    print(f"{spec.name}: {spec.title} ({spec.source})\n")
    _table(
        ("layer", "output", "parameters", "MACs", "memory", "sees", "what"),
        [
            (r.name, "×".join(map(str, r.output)), _share(r.parameters, r.parameters_share),
             _share(r.macs, r.macs_share), f"{r.activation_bytes / 1024:,.0f} KiB",
             f"{r.receptive_field}", f"{r.type} {r.detail}")
            for r in summary.rows
        ],
    )  # fmt: skip
    print(
        f"\n{summary.parameters:,} parameters, {summary.macs:,} multiply-accumulates an image, "
        f"{summary.activation_bytes / 2**20:.1f} MiB of activations in float32; 'sees' is the receptive field"
    )
    for text in (*([spec.repair] if spec.repair else []), *spec.departures):
        print(f"- {text}")


def report(
    run: str,
    more: tuple[str, ...] = (),
    /,
    *,
    lang: Literal["en", "zh"] = "en",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Write the page of a run, report.html in its folder; of several runs, a page that compares them.

    Beside the page, in a folder of its name, are its plots as PNG and SVG and its tables as CSV.

    Args:
        run: The run folder, or 'last'.
        more: Further runs: the page is then comparison.html in the first one's folder.
        lang: The page's language, English or Chinese.
        out: Another place for the page, a file that ends in .html.
        json: Print one JSON document.
    """
    from alexnet.insight.compare import write_comparison
    from alexnet.insight.report import write_report
    from alexnet.runs import find_run

    runs = [find_run(name) for name in (run, *more)]
    files = write_comparison(runs, lang, out) if more else write_report(runs[0], lang, out)
    if json:
        _print_json({"files": [str(path) for path in files]})
    else:
        print(files[0])


def _show_training(result: TrainingResult, json: bool) -> None:
    """The result of a run and the exact commands that come next; also its page."""
    from alexnet.insight.report import write_report
    from alexnet.runs import Run

    if not _speaks():
        return
    try:
        write_report(Run(result.run))
    except Exception as error:  # the run is finished and on disk: nothing about its page may fail it
        _say(f"The page of the run could not be written: {error}; 'alexnet report {result.run}' tries again.")
    run, summary = result.run, result.summary
    if json:
        _print_json({"run": str(run), **summary})
        return
    print(result)
    print(f"""
Next:
  alexnet eval {run}
  alexnet predict {run} PICTURE…
  alexnet report {run}""")


def _show_foreign(name: str, json: bool, **settings: Any) -> None:
    """A network of torchvision, part by part."""
    from alexnet.networks.foreign import count, torchvision_spec

    found = count(torchvision_spec(name, **settings))
    if json:
        _print_json(found.to_dict())
        return
    _table(
        ("part", "output", "parameters", "MACs", "what"),
        [
            (p.name, "×".join(map(str, p.output)), _share(p.parameters, p.parameters / found.parameters),
             _share(p.macs, p.macs / found.macs), p.type)
            for p in found.parts
        ],
    )  # fmt: skip
    print(f"\n{found.parameters:,} parameters, {found.macs:,} multiply-accumulates an image; {found.spec.source}")


def _views(ten_crop: bool, crops: int | None) -> int:
    if ten_crop and crops not in (None, 10):
        raise UserError(f"--ten-crop is 10 views and --crops asks for {crops}; give one of them.")
    return 10 if ten_crop else crops if crops is not None else 1


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _share(count: int, share: float) -> str:
    return f"{count:,} {share:4.0%}" if count else ""
