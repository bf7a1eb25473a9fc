"""The commands that measure: one of the paper's claims, and this machine.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from alexnet.cli.output import _print_json, _table


def bench(
    parts: tuple[str, ...] = (),
    /,
    *,
    arch: tuple[str, ...] = ("torchvision", "paper"),
    batch_size: int | None = None,
    seconds: float = 1.0,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure what this machine can do at most, and how near training, prediction and the data path come to it.

    Args:
        parts: Some of limits, data, predict, train, lrn, layers, memory; all unless named (two minutes on two cores).
        arch: The architectures to time.
        batch_size: Pictures at once; 32 on a CPU and 256 on a GPU, or fewer where memory is short, unless given.
        seconds: About how long each measurement takes; three tries are always made.
        precision: Number format of training; auto measures whether bf16 pays.
        device: Where to compute.
        out: Folder for bench.json and the roofline picture; nothing is written unless given.
        json: Print one JSON document.
    """
    from alexnet.bench.bench import bench as run_bench

    found = run_bench(
        parts, archs=arch, batch_size=batch_size, seconds=seconds, precision=precision, device=device, out=out,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    if json:
        _print_json(found)
    else:
        _show_bench(found)


def _show_bench(found: dict[str, Any]) -> None:
    """The document of a bench as tables: the medians, how they spread, and their share of the limit."""
    print(f"{found['precision']['name']}: {found['precision']['reason']}\n")
    _table(
        ("limit", "median", "low", "high", "tries", ""),
        [(name, *(f"{rate[key]:,.1f}" for key in ("median", "low", "high")), rate["tries"], "")
         for name, rate in found["limits_spread"].items()],
    )  # fmt: skip
    for part in ("data", "predict", "train", "lrn", "layers"):
        if rows := [row for row in found.get(part, ()) if row.get("share_of_time", 1) > 0.01]:
            print()
            in_ms = part in ("lrn", "layers")
            keys = ("ms", "low_ms", "high_ms") if in_ms else ("images_per_second", "low", "high")
            last = "of the time" if part == "layers" else ""
            _table(
                (part, "ms" if in_ms else "images/s", "low", "high", "GFLOP/s", "of the limit", last),
                [
                    (_bench_name(row), *(f"{row[key]:,.1f}" for key in keys),
                     f"{row['gflop_s']:,.1f}" if "gflop_s" in row else "", f"{row['share_of_limit']:.1%}",
                     f"{row['share_of_time']:11.1%}" if last else "")
                    for row in rows
                ],
            )  # fmt: skip
    if "memory" in found:
        print()
        _table(
            ("memory", "at the most", ""),
            [(_bench_name(row), f"{row['bytes'] / 2**20:,.0f} MiB" if row["bytes"] else "not told here", "")
             for row in found["memory"]],
        )  # fmt: skip
    print()
    for text in (*found["notes"], *found.get("files", ())):
        print(text)


def _bench_name(row: dict[str, Any]) -> str:
    """What a row is about."""
    words = [row.get("name"), row.get("engine"), row.get("arch")]
    size = [f"batch {row['batch_size']}"] if "batch_size" in row else []
    return " ".join([*filter(None, words), *size, *filter(None, [row.get("precision")])])
