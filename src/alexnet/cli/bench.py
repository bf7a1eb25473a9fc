"""`alexnet bench`: speed on this machine as a share of its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from alexnet.cli.output import log, print_json, print_table


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
    """Measure this machine's limits, and the share of them that training, prediction and data loading reach.

    Args:
        parts: Any of limits, data, predict, train, lrn, layers, memory; all by default (two minutes on two cores).
        arch: The architectures to time.
        batch_size: Images per batch; by default 32 on a CPU and 256 on a GPU, fewer where memory is short.
        seconds: Approximate time per measurement; each is repeated at least three times.
        precision: Number format for training; auto measures whether bf16 is faster.
        device: Where to compute.
        out: Folder for bench.json and the roofline plot; nothing is written by default.
        json: Print one JSON document.
    """
    from alexnet.bench.bench import bench as run_bench

    found = run_bench(
        parts, archs=arch, batch_size=batch_size, seconds=seconds, precision=precision, device=device, out=out,
        log=log,
    )  # fmt: skip
    if json:
        print_json(found)
    else:
        _show_bench(found)


def _show_bench(found: dict[str, Any]) -> None:
    """Print the results as tables: median, spread and share of the limit."""
    print(f"{found['precision']['name']}: {found['precision']['reason']}\n")
    print_table(
        ("limit", "median", "low", "high", "tries", ""),
        [(name, *(f"{rate[key]:,.1f}" for key in ("median", "low", "high")), rate["tries"], "")
         for name, rate in found["limits_spread"].items()],
    )  # fmt: skip
    for part in ("data", "predict", "train", "lrn", "layers"):
        if rows := [row for row in found.get(part, ()) if row.get("share_of_time", 1) > 0.01]:
            print()
            in_ms = part in ("lrn", "layers")
            keys = ("ms", "low_ms", "high_ms") if in_ms else ("images_per_second", "low", "high")
            last = "of time" if part == "layers" else ""
            print_table(
                (part, "ms" if in_ms else "images/s", "low", "high", "GFLOP/s", "of limit", last),
                [
                    (_bench_name(row), *(f"{row[key]:,.1f}" for key in keys),
                     f"{row['gflop_s']:,.1f}" if "gflop_s" in row else "", f"{row['share_of_limit']:.1%}",
                     f"{row['share_of_time']:11.1%}" if last else "")
                    for row in rows
                ],
            )  # fmt: skip
    if "memory" in found:
        print()
        print_table(
            ("memory", "peak", ""),
            [(_bench_name(row), f"{row['bytes'] / 2**20:,.0f} MiB" if row["bytes"] else "unknown", "")
             for row in found["memory"]],
        )  # fmt: skip
    print()
    for text in (*found["notes"], *found.get("files", ())):
        print(text)


def _bench_name(row: dict[str, Any]) -> str:
    """Return the name of a row."""
    words = [row.get("name"), row.get("engine"), row.get("arch")]
    size = [f"batch {row['batch_size']}"] if "batch_size" in row else []
    return " ".join([*filter(None, words), *size, *filter(None, [row.get("precision")])])
