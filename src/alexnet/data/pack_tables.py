"""What stands beside the shards of a packed data set, made of their facts when all are finished."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data.checksum import sha256_of
from alexnet.data.pack_plan import Contents
from alexnet.data.packed import FORMAT
from alexnet.data.samples import Arrays, Files
from alexnet.data.shard_writer import Facts, Task, put, read_facts
from alexnet.data.shards import FAILED, INDEX, MEAN_IMAGE, PACK, SAMPLES, Form
from alexnet.errors import UserError


def finish(target: Path, key: str, contents: Contents, form: Form, tasks: list[Task]) -> None:
    """What stands beside the shards, and pack.json last: without it the data set is unfinished."""
    sums: dict[str, str] = {}
    images: dict[str, int] = {}
    failed: list[tuple[str, str, str]] = []
    measured = None

    def keep(name: str, data: bytes) -> None:
        put(target / name, lambda file: file.write(data))
        sums[name] = sha256_of(target / name)

    for split, part in contents.splits.items():
        facts, total = _facts([task for task in tasks if task.split == split])
        starts = np.cumsum([0, *(len(task) for task in tasks if task.split == split)])
        for start, one in zip(starts, facts, strict=False):
            failed += [(part.names[start + i], split, reason) for i, reason in one.about.failed]
            if one.about.name:
                sums[f"{split}/{one.about.name}"] = one.about.sha256
        kept = np.concatenate([start + one.kept for start, one in zip(starts, facts, strict=False)])
        if len(kept) == 0:
            continue
        images[split] = len(kept)
        keep(f"{split}/{SAMPLES}", _table(part, kept, np.concatenate([one.digests for one in facts])))
        keep(f"{split}/{INDEX}", _index([one for one in facts if one.about.name]))
        if split == "train" and form.side is not None:
            measured = _measured(total, np.sum([one.products for one in facts], axis=0), len(kept))
            keep(MEAN_IMAGE, measured.pop("mean_image"))
    if not images:
        shown = ", ".join(f"{name} ({reason})" for name, _, reason in failed[:3])
        raise UserError(f"None of the {len(failed)} pictures can be read: {shown}; replace them.")
    keep(FAILED, _rows([("name", "split", "reason"), *failed]))
    about = {
        "format": FORMAT,
        "key": key,
        "form": asdict(form),
        "classes": list(contents.classes),
        "images": images,
        "failed": len(failed),
        "statistics": measured,
        "made_with": {name: metadata.version(name) for name in ("litdata", "pillow", "numpy")},
        "sha256": sums,
    }
    put(target / PACK, lambda file: file.write(json.dumps(about, indent=1).encode()))


def _facts(tasks: list[Task]) -> tuple[list[Facts], np.ndarray]:
    """Those of each shard; and the sum of their pictures, which for all of ImageNet's one by one would be gigabytes."""
    found, total = [], np.zeros((), dtype=np.int64)
    for task in tasks:
        one = read_facts(task.facts)
        if one is None:
            raise UserError(f"{task.facts} is damaged; give the same command again, and it goes on.")
        total = total + one.total
        found.append(replace(one, total=np.zeros(0)))
    return found, total


def _table(part: Arrays | Files, kept: np.ndarray, digests: np.ndarray) -> bytes:
    """Names as bytes: on most systems they need not be valid UTF-8."""
    import pyarrow as pa
    from pyarrow import parquet

    names = [part.names[i].encode("utf-8", "surrogateescape") for i in kept]
    columns = {
        "name": pa.array(names, pa.binary()),
        "label": pa.array(part.targets.numpy()[kept].astype(np.int32)),
        "digest": pa.array([row.tobytes() for row in digests], pa.binary(digests.shape[1])),
    }
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def _index(facts: list[Facts]) -> bytes:
    """litdata's list of the shards of a split."""
    chunks = [
        {"chunk_bytes": one.about.bytes, "chunk_size": len(one.kept), "dim": None, "filename": one.about.name}
        for one in facts
    ]
    config = {**facts[0].about.config, "chunk_size": max(len(one.kept) for one in facts)}
    return json.dumps({"chunks": chunks, "config": config}, sort_keys=True).encode()


def _measured(total: np.ndarray, products: np.ndarray, count: int) -> dict[str, Any]:
    """The mean image, and the covariance of the pixels' channels in levels of 0…255, of `count` pictures: from their
    sum, int64 side×side×C, and that of the channels' products, both exact."""
    pixels = count * total.shape[0] * total.shape[1]
    mean = total.sum(axis=(0, 1)) / pixels
    file = io.BytesIO()
    np.save(file, total.transpose(2, 0, 1) / count, allow_pickle=False)
    return {
        "images": count,
        "mean": mean.tolist(),
        "covariance": (products / pixels - np.outer(mean, mean)).tolist(),
        "mean_image": file.getvalue(),
    }


def _rows(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
