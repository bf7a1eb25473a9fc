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
        parts: Any of limits, data, predict, train, lrn; all by default (a minute on two cores).
        arch: The architectures to time.
        batch_size: Images per batch; by default 32 on a CPU and 256 on a GPU, fewer where memory is short.
        seconds: Approximate time per measurement; each is repeated at least three times.
        precision: Number format for training; auto measures whether bf16 is faster.
        device: Where to compute.
        out: Folder for bench.json; nothing is written by default.
        json: Print one JSON document.
    """
    from alexnet.bench import check_parts
    from alexnet.models.architectures import architecture

    check_parts(parts)  # before torch is imported, as the architectures
    for name in arch:
        architecture(name)
    from alexnet.bench.bench import bench as run_bench

    found = run_bench(
        parts, archs=arch, batch_size=batch_size, seconds=seconds, precision=precision, device=device, out=out,
        log=log,
    )  # fmt: skip
    if json:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    print(f"{found['precision']['name']}: {found['precision']['reason']}\n")
    print_table(
        ("limit", "median", "low", "high", "tries", ""),
        [(name, *(f"{rate[key]:,.1f}" for key in ("median", "low", "high")), rate["tries"], "")
         for name, rate in found["limits_spread"].items()],
    )  # fmt: skip
    for part in ("data", "predict", "train", "lrn"):
        if rows := found.get(part):
            speed, low, high = ("ms", "low_ms", "high_ms") if part == "lrn" else ("images_per_second", "low", "high")
            print()
            print_table(
                (part, speed.replace("_per_second", "/s"), "low", "high", "GFLOP/s", "of limit", ""),
                [
                    (_row_name(row), *(f"{row[key]:,.1f}" for key in (speed, low, high)),
                     f"{row['gflop_s']:,.1f}" if "gflop_s" in row else "", f"{row['share_of_limit']:.1%}", "")
                    for row in rows
                ],
            )  # fmt: skip
    print()
    for text in (*found["notes"], *found.get("files", ())):
        print(text)


def _row_name(row: dict[str, Any]) -> str:
    batch = f"batch {row['batch_size']}" if "batch_size" in row else None
    return " ".join(filter(None, [row.get("name"), row.get("engine"), row.get("arch"), batch, row.get("precision")]))
