"""The page of a run: `report.html`, one self-contained file made of what the run folder holds.

The headline with its interval and what guessing would give, the curves, the classes, the settings and the machine.
"""

from __future__ import annotations

import io
import json
from html import escape
from pathlib import Path
from typing import Any

from alexnet.errors import UserError
from alexnet.inference.metrics import measure
from alexnet.runs import MODEL, Run, write_text

BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito's, told apart by the colour-blind

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.headline { font-size: 2.5rem; font-weight: 600; margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child { text-align: left; padding-left: 0; overflow-wrap: break-word; max-width: 20rem; }
.wide { overflow-x: auto; } .bar { background: #0072b2; height: .6rem; }
svg { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { table { font-size: .85rem; } td, th { padding: .2rem .35rem; } }
@media print { body { max-width: none; } }
"""


def write_report(run: Run) -> Path:
    """Write `report.html` into the run folder and return its path. Raises `UserError` before the first epoch."""
    rows, summary = run.metrics(), run.summary()
    if not rows or not summary:
        raise UserError(f"The run {run.path} has not finished an epoch yet, so there is nothing to report.")
    split = "test" if "test" in summary else summary["split"]
    figures = _figures(run, split)
    recipe = json.loads(run.recipe_json.read_text(encoding="utf-8"))
    path = run.path / "report.html"
    parts = [
        f"<h1>{escape(run.path.name)}</h1>",
        _headline(figures, summary, split),
        "<h2>Curves</h2>",
        curves_svg(rows),
        "<p>The training loss is of augmented images, with label smoothing and the like; the other is plain.</p>",
        "<h2>Classes</h2>",
        _classes(figures["per_class"]),
        "<h2>Epochs</h2>",
        _epochs(rows),
        "<h2>How it was made</h2>",
        _facts(run, summary),
        f"<details><summary>recipe.json</summary><pre>{escape(json.dumps(recipe, indent=2))}</pre></details>",
    ]
    head = f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(run.path.name)}</title>'
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}<style>{STYLE}</style></head><body>'
    write_text(path, page + "\n".join(parts) + "</body></html>\n")
    return path


def _figures(run: Run, split: str) -> dict[str, Any]:
    best = run.named_checkpoint("best")
    stored = run.read_evaluation(split)
    if best is None or stored is None:
        raise UserError(
            f"The run {run.path} has no evaluation of its {split} split; 'alexnet eval {run.path}' makes it."
        )
    classes = json.loads((best / MODEL).read_text(encoding="utf-8"))["classes"]
    _, targets, logits = stored
    return measure(logits, targets, classes)


def _headline(figures: dict[str, Any], summary: dict[str, Any], split: str) -> str:
    low, high = figures["interval"]
    classes = figures["per_class"]
    commonest = max(c["n"] for c in classes) / figures["n"]
    return (
        f'<p class="headline">{figures["top1"]:.1%}</p><p>of {figures["n"]:,} {split} images labelled rightly '
        f"(95 % interval {low:.1%} to {high:.1%}); {figures['top5']:.1%} within the first five. Always saying the "
        f"commonest of the {len(classes)} classes gives {commonest:.1%}. Best epoch {summary['best']['epoch']} of "
        f"{summary['epochs']}, {summary['seconds']:,.0f} s of training.</p>"
    )


def curves_svg(rows: list[dict[str, Any]]) -> str:
    """Loss and top-1 by epoch, training and validation, as an SVG element."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [r["epoch"] for r in rows]
    split = rows[0]["split"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    marker = "o" if len(rows) < 40 else None
    for axes, keys, title in ((left, ("train_loss", "val_loss"), "loss"), (right, ("train_top1", "top1"), "top-1")):
        for key, colour, name, style in zip(keys, (ORANGE, BLUE), ("training", split), ("--", "-"), strict=True):
            axes.plot(epochs, [r[key] for r in rows], style, color=colour, label=name, marker=marker, markersize=3)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _classes(per_class: list[dict[str, Any]]) -> str:
    body = "".join(
        f"<tr><td>{escape(c['label'])}</td><td>{c['n']:,}</td><td>{c['precision']:.1%}</td><td>{c['recall']:.1%}</td>"
        f"<td>{c['f1']:.3f}</td><td style='width:6rem'><div class='bar' style='width:{c['f1']:.1%}'></div></td></tr>"
        for c in sorted(per_class, key=lambda c: c["f1"])
    )
    head = "<tr><th>class</th><th>images</th><th>precision</th><th>recall</th><th>F1</th><th></th></tr>"
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _epochs(rows: list[dict[str, Any]]) -> str:
    body = "".join(
        f"<tr><td>{r['epoch']}</td><td>{r['train_loss']:.4f}</td><td>{r['train_top1']:.1%}</td><td>{r['val_loss']:.4f}"
        f"</td><td>{r['top1']:.1%}</td><td>{r['lr']:.2g}</td><td>{r['images_per_second']:,.0f}</td>"
        f"<td>{r['seconds']:.1f}</td></tr>"
        for r in rows
    )
    names = ("epoch", "train loss", "train top-1", "loss", "top-1", "rate", "images/s", "seconds")
    head = "<tr>" + "".join(f"<th>{n}</th>" for n in names) + "</tr>"
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _facts(run: Run, summary: dict[str, Any]) -> str:
    env = json.loads((run.path / "env.json").read_text(encoding="utf-8"))
    described = (run.named_checkpoint("best") or run.path) / MODEL
    preprocess = json.loads(described.read_text(encoding="utf-8"))["preprocess"]
    versions = ", ".join(f"{k} {v}" for k, v in env["versions"].items() if v)
    facts = {
        "architecture": f"{summary['arch']}, {summary['parameters']:,} parameters",
        "input": "{channels}×{size}×{size}".format_map(preprocess),
        "precision": f"{summary['precision']} on {summary['device']}",
        "machine": f"{env.get('gpu') or env['cpu']}, {env['cores']} cores",
        "versions": versions,
        "again": f"alexnet train {run.path / 'recipe.json'}",
    }
    body = "".join(
        f"<tr><td>{k}</td><td style='text-align:left;overflow-wrap:anywhere'>{escape(str(v))}</td></tr>"
        for k, v in facts.items()
    )
    return f"<table>{body}</table>"
