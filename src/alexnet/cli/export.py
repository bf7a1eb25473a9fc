"""`alexnet export`: write a network for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alexnet.cli.output import LANGUAGE, log, print_json, print_lines, print_table
from alexnet.errors import UserError
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions

if TYPE_CHECKING:
    from alexnet.export.export import Export


def export(
    run: str,
    format: str | None = None,
    /,
    *,
    out: Path | None = None,
    with_preprocessing: bool = False,
    quantize: Literal["int8", "int8-fc"] | None = None,
    half: bool = False,
    images: Path | None = None,
    tolerance: float | None = None,
    opset: int | None = None,
    fp32: bool = False,
    lang: Literal["en", "zh"] | None = None,
    parity: bool = True,
    samples: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
    file: FileOptions = NO_OPTIONS,
    json: bool = False,
) -> int:
    """Write a network for other programs, after checking that the file agrees with the run on real images.

    Formats: onnx, openvino, torchscript (deprecated), pt2, executorch, torchvision-weights, huggingface, web
    (an HTML file that classifies images in any browser, offline); or all.

    Args:
        run: A run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1, or a file of weights.
        format: One of the formats above.
        out: Where to write it; in the run's export/ by default. FILE.json is written beside it.
        with_preprocessing: Let the file take uint8 pixels and normalize them itself.
        quantize: int8: 8-bit weights and activations, calibrated on training images or on those of --images;
            int8-fc: 8-bit weights in the fully connected layers only: most of an AlexNet, and far closer.
        half: Weights in float16.
        images: Compare, and calibrate, on the images in this folder; on the run's validation images by default.
        tolerance: Largest accepted difference of a probability; 0.001, or 0.01 with --half or --quantize.
        opset: Of ONNX: the operators' version, such as 17; by default the lowest that the network needs.
        fp32: Of web: all weights in float32, instead of 8 bits in the fully connected layers and float16 elsewhere.
        lang: Of web: language of the page, English or Chinese; by default the system's.
        parity: Of web: compare it with the run in a browser; without, the file says that it is unchecked.
        samples: Of web: a folder of sample images for the page, or none; by default some that it is compared on.
        checkpoint: Which checkpoint of the run.
        json: Print one JSON document.
    """
    from alexnet.run_dir import check_runs
    from alexnet.runtimes.manifest import FORMATS, check_request

    check_runs(run)
    if format is None:
        raise UserError(f"Name a format: 'alexnet export {run} onnx', or one of {', '.join(FORMATS)}, all.")
    precision = check_request(format, half, quantize, opset, out, fp32, lang, parity, samples)
    from alexnet.export.export import Exporter
    from alexnet.export.parity import ExportFailed

    kinds = list(FORMATS) if format == "all" else [format]
    done, supported, left_out, failed = [], [], [], []
    with Exporter(
        run, images=images, checkpoint=checkpoint, with_preprocessing=with_preprocessing,
        precision=precision, tolerance=tolerance, opset=opset,
        file=file, lang=lang or LANGUAGE, parity=parity, samples=samples, log=log,
    ) as exporter:  # fmt: skip
        for kind in kinds:
            try:
                exporter.check(kind)
                supported.append(kind)
            except UserError as error:
                if format != "all":
                    raise
                left_out.append({"format": kind, "reason": str(error)})
        if len(supported) > 1:  # all
            _ = exporter.reference  # fails once for all formats if there are no images
        for kind in supported:
            try:
                done.append(exporter.export(kind, out))
            except (UserError, ExportFailed) as error:
                if format != "all":
                    raise
                failed.append({"format": kind, "reason": str(error)})
    if json:
        single = [found.to_dict() for found in done]
        print_json({"exports": single, "left_out": left_out, "failed": failed} if format == "all" else single[0])
    else:
        _show(done)
        for row in (*left_out, *failed):
            print_lines(f"{row['format']}: {row['reason']}")
    return 1 if failed or not done else 0


def _show(done: Sequence[Export]) -> None:
    if not done:
        return
    reference, compared = done[0].reference, [(found, found.parity) for found in done if found.parity is not None]
    if reference is None:  # of the format web, which is then alone
        print_lines(f"{done[0].file}: {done[0].size / 1e6:.2f} MB, not compared with the run.")
        return

    def share(x: float | None) -> str:
        return "" if x is None else f"{x:.2%}"

    print_table(
        ("format", "size", "1 image", "32 images", "max difference", "same label", "top-1", "file"),
        [
            ("the run (torch)", "", *(_ms(reference.seconds[n]) for n in ("1", "32")), "", "",
             share(compared[0][1].run_top1), ""),
            *(
                (found.kind, f"{found.size / 1e6:.2f} MB", *(_ms(parity.seconds.get(n)) for n in ("1", "32")),
                 f"{parity.max_abs_diff:.1e}", share(parity.top1_agreement), share(parity.top1), found.file)
                for found, parity in compared
            ),
        ],
    )  # fmt: skip
    print_lines(
        "",
        f"Compared on {compared[0][1].images:,} images {reference.images.description}; FILE.json describes each file.",
        *(
            f"{found.kind} was compared on {parity.images:,} of them; the run has {share(parity.run_top1)} there."
            for found, parity in compared
            if parity.images != compared[0][1].images
        ),
        *(
            "ONNX opset {opset}, IR version {ir_version}: onnxruntime {oldest_onnxruntime} and newer read it.".format(
                **found.compatibility
            )
            for found in done
            if found.compatibility
        ),
        "",
        "Next:",
        f"  Open {done[0].file} in a browser." if done[0].kind == "web" else f"  alexnet predict {done[0].file} IMAGE…",
    )


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f} ms"
