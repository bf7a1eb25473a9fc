"""`alexnet check`: inspect a dataset before training."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alexnet.cli.output import (
    LANGUAGE,
    MAX_LISTED,
    log,
    open_in_browser,
    print_json,
    print_lines,
    print_list,
    print_table,
)
from alexnet.errors import UserError
from alexnet.text import BY_CONTENT, TextOptions

if TYPE_CHECKING:
    from alexnet.data.quality.findings import Findings
    from alexnet.messages.translator import Translator


def check(
    data: Path | None = None,
    /,
    *,
    labels: Path | None = None,
    text: TextOptions = BY_CONTENT,
    html: Path | None = None,
    lang: Literal["en", "zh"] = LANGUAGE,
    fix: Path | None = None,
    open: bool = False,
    json: bool = False,
) -> None:
    """Inspect a dataset before training: image sizes, unreadable files, duplicates, class imbalance, and a verdict.

    Args:
        data: A folder of class folders (with or without train/, val/, test/ above), a zip or tar archive of one, a
            folder with the files of CIFAR-10 or Fashion-MNIST, or one that 'alexnet pack' wrote (verifies checksums).
        labels: A CSV, JSON Lines or Parquet file with the columns path and label (and split), instead of class folders.
        html: Also write a page: classes, sizes, samples, duplicates, and augmented samples.
        lang: Language of the findings and of the page, English or Chinese; JSON is in English.
        fix: Also write a cleaned copy into this new folder; the original is not changed. Each class is one folder,
            without nested folders. Files are hard links, second names of the same files: they take no space, and
            deleting one keeps the other, but editing one in place changes both.
        open: With --html: open the page in a browser.
        json: Print one JSON document.
    """
    if data is None and labels is None:
        raise UserError("Name the dataset: 'alexnet check DIR', an archive, or --labels FILE.")
    from alexnet.files import check_data_exists, check_labels_exist

    check_data_exists(data)  # before NumPy is imported
    check_labels_exist(labels)
    if html is not None and not html.parent.is_dir():
        raise UserError(f"There is no folder {html.parent} to write {html.name} into; create it first.")
    if open and html is None:
        raise UserError("--open opens the page that --html writes; add --html FILE.html.")
    from alexnet.data.recognize import is_packed

    if data is not None and is_packed(data):
        if labels is not None or html is not None or fix is not None:
            raise UserError(f"{data} is packed; use --labels, --html and --fix on the images that it was packed from.")
        _check_packed(data, json)
        return
    from alexnet.data.quality.check import check_dataset
    from alexnet.data.quality.clean import check_target, write_cleaned
    from alexnet.messages.translator import Translator
    from alexnet.progress import default_progress

    if fix is not None:
        check_target(fix, data)
    log(f"Reading {data if data is not None else labels} …")
    with closing(default_progress()) as progress:
        found = check_dataset(data, labels, progress, text)
    notes = write_cleaned(found, fix) if fix is not None else []
    if html is not None:
        from alexnet.report.check_page import write_page

        write_page(found, html, lang)
        if open:
            open_in_browser(html)
    if json:
        more = {"files": [str(html)]} if html else {}
        print_json({**found.to_dict(), **more, **({"fixed": notes} if fix else {})})
        return
    translate = Translator(lang)
    _show(found, translate)
    for note in notes:
        print_lines(translate.sentence(note))
    for proposal in found.proposals(fix):
        print_lines(*filter(None, [translate.sentence(proposal.introduction)]))
        print_lines(*(f"  {command}" for command in proposal.commands))
    if html is not None:
        print_lines(html)


def _check_packed(data: Path, json: bool) -> None:
    from alexnet.data.quality.check import check_packed
    from alexnet.progress import default_progress

    with closing(default_progress()) as progress:
        found = check_packed(data, progress)
    if json:
        print_json(found.to_dict())
        return
    for split, counts in found.by_split.items():
        smallest, largest = min(counts.values()), max(counts.values())
        sizes = f"{smallest:,} to {largest:,} per class"
        print(f"{split}: {sum(counts.values()):,} images of {len(counts):,} classes, {sizes}")
    print_list("Damaged", found.damaged)
    print_list("Skipped (unreadable)", [f"{name}: {reason}" for name, reason in found.failed])
    print_list("Exact duplicates", [f"{a}  {b}" for a, b in found.duplicates])
    if found.across_splits:
        print(f"{found.across_splits:,} of these pairs are in different splits")
    print_lines("", found.verdict, f"  {found.command}")


def _show(found: Findings, translate: Translator) -> None:
    from alexnet.data.quality.findings import min_median_max

    def show_list(key: str, lines: list[str], limit: int = MAX_LISTED) -> None:
        print_list(translate(key), lines, limit, translate("check_heading"), translate("check_listed"))

    good = [found.infos[i] for i in found.readable]
    splits = found.by_split
    print_lines(translate("check_summary", data=found.data, images=len(found.names), classes=len(found.present)))
    rows = sorted(found.present.items(), key=lambda row: -row[1])
    shown = rows if len(rows) <= 2 * MAX_LISTED else rows[:MAX_LISTED] + rows[-MAX_LISTED:]
    counted = [translate.split(split) for split in splits] if len(splits) > 1 else [translate("images")]
    print_table(
        (translate("class"), *counted, ""),
        [
            (
                name,
                *(f"{splits[s].get(name, 0):,}" for s in splits),
                _bar(count, rows[0][1]),
            )
            for name, count in shown
        ],
    )
    if len(shown) < len(rows):
        print(translate("check_classes_omitted", n=len(rows) - len(shown)))
    if good:
        for key, values in (("check_widths", [s.width for s in good]), ("check_heights", [s.height for s in good])):
            low, middle, high = min_median_max(values) or (0, 0, 0)
            print(translate("check_range", what=translate(key), low=low, median=middle, high=high))
        low, middle, high = min_median_max([s.width / s.height for s in good]) or (0, 0, 0)
        print(translate("check_aspect", low=low, median=middle, high=high))
        kinds = Counter(f"{s.format} {s.mode}".strip() for s in good)
        formats = translate("comma").join(f"{kind} {count:,}" for kind, count in kinds.most_common())
        print(translate("check_format_list", formats=formats))
    _show_unreadable(found, translate)
    unusual = [
        translate("check_named", name=found.names[i], text=translate.clauses(found.infos[i].anomalies))
        for i in found.unusual
    ]
    show_list("check_unusual_images", unusual)
    exact = [(group[0], other) for group in found.exact for other in group[1:]]
    show_list("check_exact_list", [_pair(found, a, b, translate) for a, b in exact])
    show_list("check_near_list", [_pair(found, a, b, translate) for a, b in found.near])
    show_list("check_warnings", [*map(translate.sentence, found.warnings)], len(found.warnings))
    for note in found.notes:
        print_lines(translate.sentence(note))
    print_lines("", translate.sentence(found.verdict))


def _show_unreadable(found: Findings, translate: Translator) -> None:
    """Print each reason, the number of files that it concerns, and the first of them."""
    from alexnet.data.quality.findings import first_names

    groups = found.by_reason
    if not groups:
        return
    title, n = translate("check_unreadable_files"), sum(map(len, groups.values()))
    print_lines("", translate("check_heading", title=title, n=n))
    for reason, names in list(groups.items())[:MAX_LISTED]:
        shown = translate("comma").join(first_names(names))
        print_lines(f"  {len(names):,} × {translate.sentence(reason)}", f"    {shown}")
    if len(groups) > MAX_LISTED:
        print_lines("  " + translate("check_listed", n=len(groups) - MAX_LISTED))


def _pair(found: Findings, a: int, b: int, translate: Translator) -> str:
    kinds = (("check_two_splits", found.splits), ("check_two_labels", found.labels))
    different = [translate(key) for key, values in kinds if values[a] != values[b]]
    pair = f"{found.names[a]}  {found.names[b]}"
    return translate("check_pair", pair=pair, what=translate("comma").join(different)) if different else pair


def _bar(count: int, largest: int) -> str:
    return "█" * max(1, round(24 * count / largest)) if count else ""
