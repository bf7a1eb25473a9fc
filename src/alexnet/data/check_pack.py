"""What `alexnet check` says of a packed data set: are its files whole, what is in it, what was left out.

The pictures themselves are not looked at again: they were all decoded when they were packed.
"""

from __future__ import annotations

import csv
import itertools
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet.data.duplicates import exact_groups
from alexnet.data.folders import Progress
from alexnet.data.packed import Pack, mismatches, open_pack
from alexnet.data.shards import FAILED
from alexnet.errors import UserError


@dataclass(frozen=True)
class PackFindings:
    """What was found."""

    pack: Pack
    by_split: dict[str, dict[str, int]]
    """Pictures of each class, in the order of the classes."""
    damaged: list[str]
    """Files whose checksum differs, below the folder."""
    failed: list[tuple[str, str]]
    """Pictures that could not be read as it was packed, and why."""
    copies: list[tuple[str, str]]
    """Pairs of pictures that were packed from the same bytes."""
    across: int
    """How many of these pairs are in two splits."""

    @property
    def verdict(self) -> str:
        """One sentence."""
        files = len(self.pack.checksums)
        if self.damaged:
            return f"{len(self.damaged)} of {files} files are damaged; 'alexnet pack' as before makes them anew."
        return f"All {files} files are as they were packed."

    @property
    def command(self) -> str:
        """What trains on it."""
        return shlex.join(["alexnet", "train", str(self.pack.path)])

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `check`."""
        classes: Counter[str] = Counter()
        for counts in self.by_split.values():
            classes.update(counts)
        return {
            "data": str(self.pack.path),
            "images": sum(map(len, self.pack.splits.values())),
            "classes": {name: classes[name] for name in self.pack.classes},
            "splits": self.by_split,
            "form": self.pack.about["form"],
            "damaged": self.damaged,
            "bad": [{"path": name, "reason": reason} for name, reason in self.failed],
            "duplicates": [list(pair) for pair in self.copies],
            "warnings": [self.verdict] if self.damaged else [],
            "verdict": self.verdict,
            "command": self.command,
        }


def check_pack(data: Path, progress: Progress | None = None) -> PackFindings:
    """Compute all checksums, and count. Raises `UserError` where the data set cannot even be opened."""
    pack = open_pack(data, verify=False)
    damaged = mismatches(data, pack.checksums, progress)
    by_split = {}
    names: list[tuple[str, str]] = []
    digests: list[bytes] = []
    for split, part in pack.splits.items():
        counts = Counter(part.targets.tolist())
        by_split[split] = {name: counts[i] for i, name in enumerate(pack.classes) if counts[i]}
        names += [(split, name) for name in part.names]
        digests += part.digests()
    pairs = [pair for group in exact_groups(digests) for pair in itertools.pairwise(group)]
    return PackFindings(
        pack,
        by_split,
        damaged,
        _failed(data / FAILED),
        [(names[a][1], names[b][1]) for a, b in pairs],
        sum(names[a][0] != names[b][0] for a, b in pairs),
    )


def _failed(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [(row["name"], row["reason"]) for row in csv.DictReader(file)]
    except (OSError, csv.Error, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); pack the data again.") from error
