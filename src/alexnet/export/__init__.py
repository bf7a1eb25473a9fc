"""Exporting trained models to other runtimes, verified against the trainer before the file is kept.

Public names: `export.Exporter`, `export.Export`, `parity.ExportFailed`.
Read in this order: export (the procedure, one writer per format), parity (the comparison).
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet.export.export import Export


class _ExportPackage(ModuleType):
    """Makes this package the function `alexnet.export`, too, which has its name."""

    def __call__(
        self,
        run: str | Path,
        format: str,
        *,
        out: str | Path | None = None,
        images: str | Path | None = None,
        half: bool = False,
        quantize: str | None = None,
        **options: Any,
    ) -> Export:
        """Write a network in a format such as onnx, as the command `alexnet export` does, and return how it compares.

        Other `options` are `checkpoint`, `with_preprocessing`, `tolerance`, `opset` and `file`. Raises what
        `Exporter` and its `export` do.
        """
        from alexnet.export.export import Exporter
        from alexnet.progress import default_progress
        from alexnet.runtimes.manifest import choose_precision

        options |= {"images": Path(images) if images else None, "precision": choose_precision(half, quantize)}
        with closing(default_progress()) as progress, Exporter(run, log=progress.log, **options) as exporter:
            return exporter.export(format, Path(out) if out else None)


sys.modules[__name__].__class__ = _ExportPackage
