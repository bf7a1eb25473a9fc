"""One run in every export format, compared with the trainer: the tables of docs/export.md.

    python benchmarks/exports.py RUN --data DIR --what test --name cifar10

`Exporter` writes and compares each file, as `alexnet export` does, on images of the run's validation split; then all
images in DIR (named WHAT in the tables) are evaluated with it, as `alexnet eval FILE` does. Files go to a temporary
folder. Files beyond the tolerance of `alexnet export` are measured too, and marked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import save

from alexnet.errors import UserError
from alexnet.export.export import Exporter
from alexnet.export.parity import TOLERANCE, ExportFailed
from alexnet.inference.evaluate import evaluate
from alexnet.runtimes.manifest import FORMATS, PRECISIONS, WEB

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--what", default="test")
    parser.add_argument("--name", required=True)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            with Exporter(given.run, precision=precision, tolerance=1.0) as exporter:
                for kind, form in FORMATS.items():
                    if precision not in form.precisions or kind == WEB:
                        continue
                    try:
                        found = exporter.export(kind, Path(folder) / f"net-{precision}{form.suffix}")
                    except (UserError, ExportFailed) as error:
                        left_out.append({"format": kind, "precision": precision, "reason": str(error)})
                        continue
                    result = evaluate(found.file, data=given.data)
                    rows.append({**found.to_dict(), "file": found.file.name, "tolerance": TOLERANCE[precision],
                                 "data_top1": result["top1"], "n": result["n"]})  # fmt: skip
                    print(rows[-1], file=sys.stderr, flush=True)
    run = evaluate(given.run, data=given.data, device="cpu")
    results = {"what": given.what, "n": run["n"], "run_top1": run["top1"], "rows": rows, "left_out": left_out}
    path = save(f"deployment-{given.name}", results, ("onnxruntime", "openvino"), folder=RESULTS)
    print(table(json.loads(path.read_text(encoding="utf-8"))))


def table(document: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    found = document["results"]
    rows = found["rows"]
    lines = [
        f"| format | precision | MB | ms, 1 image | ms, 32 images | max difference | same label | "
        f"top-1 of {rows[0]['images']:,} val | top-1 of {found['n']:,} {found['what']} |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| the run, torch | fp32 | | {_ms(rows[0]['run_seconds'])} | | | {_share(rows[0]['run_top1'])} | "
        f"{_share(found['run_top1'])} |",
    ]
    for row in rows:
        over = "" if row["max_abs_diff"] <= row["tolerance"] else " (refused)"
        lines.append(
            f"| {row['format']} | {row['precision']} | {row['size'] / 1e6:.2f} | {_ms(row['seconds'])} | "
            f"{row['max_abs_diff']:.1e}{over} | {_share(row['top1_agreement'])} | {_share(row['top1'])} | "
            f"{_share(row['data_top1'])} |"
        )
    return "\n".join(lines)


def _ms(seconds: dict[str, float]) -> str:
    return " | ".join(f"{1000 * seconds[n]:.2f}" for n in ("1", "32"))


def _share(x: float) -> str:
    return f"{x:.2%}".replace("%", " %")


if __name__ == "__main__":
    main()
