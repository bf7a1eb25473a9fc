"""Exporting trained models to other runtimes, verified against the trainer before the file is kept.

Public names: `export.Exporter`, `export.Export`, `parity.ExportFailed`.
Read in this order: export (the procedure, one writer per format), parity (the comparison), web (the page for any
browser, whose scripts are in web/), browser (opens it).
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from alexnet.calls import public
from alexnet.errors import unknown_name
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions

if TYPE_CHECKING:
    from alexnet.export.export import Export


class _ExportPackage(ModuleType):
    """Makes this package the function `alexnet.export`, too, which has its name."""

    @public("alexnet.export")
    def __call__(
        self,
        run: str | Path,
        format: str,
        *,
        out: str | Path | None = None,
        images: str | Path | None = None,
        half: bool = False,
        quantize: str | None = None,
        checkpoint: str = "best",
        with_preprocessing: bool = False,
        tolerance: float | None = None,
        opset: int | None = None,
        file: FileOptions = NO_OPTIONS,
        fp32: bool = False,
        lang: str | None = None,
        parity: bool = True,
        samples: str | Path | None = None,
    ) -> Export:
        """Write a network in a format such as onnx, as the command `alexnet export` does, and return how it compares.

        Raises what `Exporter` and its `export` do.

        >>> exported = alexnet.export("last", "torchscript", out="digits.pt")
        >>> exported.parity.top1_agreement
        1.0
        """
        from alexnet.run_dir import check_runs
        from alexnet.runtimes.manifest import FORMATS, check_request

        check_runs(str(run))
        target = Path(out) if out else None
        if format not in FORMATS:
            raise unknown_name("format", format, FORMATS)
        page_samples = None if samples is None else str(samples)
        precision = check_request(format, half, quantize, opset, target, fp32, lang, parity, page_samples)
        from alexnet.progress import default_progress

        with closing(default_progress()) as progress:
            from alexnet.export.export import Exporter

            with Exporter(
                run, images=Path(images) if images else None, checkpoint=checkpoint,
                with_preprocessing=with_preprocessing, precision=precision, tolerance=tolerance, opset=opset,
                file=file, lang=lang or "en", parity=parity, samples=page_samples, log=progress.log,
            ) as exporter:  # fmt: skip
                return exporter.export(format, target)


sys.modules[__name__].__class__ = _ExportPackage
