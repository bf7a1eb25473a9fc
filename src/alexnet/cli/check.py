"""The command that looks a data set over before training.

Everything heavy is imported inside the command.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.cli.output import _SHOWN, _bar, _list, _print_json, _printable, _progress, _table
from alexnet.errors import UserError

if TYPE_CHECKING:
    from alexnet.data.quality.findings import Findings


def check(
    data: Path | None = None,
    /,
    *,
    labels: Path | None = None,
    html: Path | None = None,
    fix: Path | None = None,
    json: bool = False,
) -> None:
    """Look a data set over before training: sizes, unreadable files, duplicates, imbalance; ends with a verdict.

    Args:
        data: A folder of class folders (in train/, val/, test/ or not), a zip or tar archive of one, a folder with the
            files of CIFAR-10 or Fashion-MNIST, or one that 'alexnet pack' wrote, whose checksums are computed.
        labels: A CSV or Parquet file with the columns path and label (and split), in place of class folders.
        html: Also draw a page: classes, sizes, samples, duplicates, and what the augmentation makes of them.
        fix: Also write a cleaned copy into this new folder, of links; the original stays as it is.
        json: Print one JSON document.
    """
    if data is None and labels is None:
        raise UserError("Name the data: 'alexnet check DIR', an archive, or --labels FILE.")
    from alexnet.data.shards.manifest import is_packed

    if data is not None and is_packed(data):
        if labels is not None or html is not None or fix is not None:
            raise UserError(
                f"{data} is packed; --labels, --html and --fix are for the pictures that it was packed from."
            )
        _check_packed(data, json)
        return
    from alexnet.data.quality.check import check_dataset as look_over
    from alexnet.data.quality.clean import check_target, write_cleaned

    if fix is not None:
        check_target(fix, data)
    if html is not None and not html.parent.is_dir():
        raise UserError(f"There is no folder {html.parent} to write {html.name} into; make it first.")
    with _progress() as progress:
        found = look_over(data, labels, progress)
    said = write_cleaned(found, fix) if fix is not None else []
    if html is not None:
        from alexnet.report.check_page import write_page

        write_page(found, html)
    if json:
        more = {"files": [str(html)]} if html else {}
        _print_json({**found.to_dict(), **more, **({"fixed": said} if fix else {})})
        return
    _show(found)
    for sentence in said:
        print(sentence)
    if html is not None:
        print(html)


def _check_packed(data: Path, json: bool) -> None:
    from alexnet.data.quality.check import check_packed

    with _progress() as progress:
        found = check_packed(data, progress)
    if json:
        _print_json(found.to_dict())
        return
    for split, counts in found.by_split.items():
        few, many = min(counts.values()), max(counts.values())
        print(f"{split}: {sum(counts.values()):,} pictures of {len(counts):,} classes, {few:,} to {many:,} each")
    _list("Damaged", found.damaged)
    _list("Left out, for they could not be read", [f"{name}: {reason}" for name, reason in found.failed])
    _list("The same to the byte", [f"{a}  {b}" for a, b in found.copies])
    if found.across:
        print(f"{found.across:,} of these pairs are in two splits")
    print(f"\n{found.verdict}\n  {_printable(found.command)}")


def _show(found: Findings) -> None:
    from alexnet.data.quality.findings import min_median_max

    good = [found.seen[i] for i in found.good]
    splits = found.by_split
    print(f"{found.data}: {len(found.names):,} pictures, {len(found.classes):,} classes")
    rows = sorted(found.classes.items(), key=lambda row: -row[1])
    shown = rows if len(rows) <= 2 * _SHOWN else rows[:_SHOWN] + rows[-_SHOWN:]
    _table(
        ("class", *(splits if len(splits) > 1 else ["pictures"]), ""),
        [
            (
                _printable(name if name == name.strip() else repr(name)),
                *(f"{splits[s].get(name, 0):,}" for s in splits),
                _bar(count, rows[0][1]),
            )
            for name, count in shown
        ],
    )
    if len(shown) < len(rows):
        print(f"({len(rows) - len(shown):,} classes between them are not shown)")
    if good:
        for what, values in (("width", [s.width for s in good]), ("height", [s.height for s in good])):
            low, middle, high = min_median_max(values) or (0, 0, 0)
            print(f"{what}: {low:g} to {high:g} pixels, median {middle:g}")
        low, middle, high = min_median_max([s.width / s.height for s in good]) or (0, 0, 0)
        print(f"width over height: {low:.2f} to {high:.2f}, median {middle:.2f}")
        kinds = Counter(f"{s.format} {s.mode}".strip() for s in good)
        print("kinds: " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()))
    _list("Cannot be read", [f"{name}: {reason}" for name, reason in found.bad])
    _list("Unusual", [f"{found.names[i]}: {'; '.join(found.seen[i].oddities)}" for i in found.unusual])
    _list("The same to the byte", [_pair(found, group[0], other) for group in found.exact for other in group[1:]])
    _list("Look the same", [_pair(found, a, b) for a, b in found.near])
    _list("Warnings", found.warnings, len(found.warnings))
    for note in found.notes:
        print(_printable(note))
    print(f"\n{_printable(found.verdict)}\n  {_printable(found.command)}")


def _pair(found: Findings, a: int, b: int) -> str:
    apart = [what for what, of in (("split", found.splits), ("label", found.labels)) if of[a] != of[b]]
    return f"{found.names[a]}  {found.names[b]}" + (f"  (another {' and '.join(apart)})" if apart else "")
