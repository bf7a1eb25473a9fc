"""Report sections on where a result comes from: data, augmented images, machine, settings and commands."""

from __future__ import annotations

import json
import shlex

from PIL import Image, ImageOps

from alexnet.report.html import Column, Page, escape_text, jpeg_url
from alexnet.report.run_data import RunData

GRID_WIDTH = 1200  # maximum width of the augmented batch, in pixels


def augmented_html(page: Page, data: RunData) -> str:
    """Return the augmented batch that training saved; nothing if there is none."""
    path = data.run.path / "augmented.png"
    if not path.is_file():
        return ""
    image = Image.open(path).convert("RGB")
    if image.width > GRID_WIDTH:
        image = ImageOps.contain(image, (GRID_WIDTH, 4 * GRID_WIDTH))
    return page.paragraph("augmented_note") + f'<img class="sheet" alt="" src="{jpeg_url(image, quality=85)}">'


def split_html(page: Page, data: RunData) -> str:
    """Return where the data is, how it was split, and the number of images in each split."""
    source = data.recipe.get("data") or data.recipe.get("dataset", "")
    body = f"<p>{page.text('data_path')} <code>{escape_text(source)}</code></p>"
    if data.split_counts:
        body += page.paragraph("split_created", seed=data.recipe.get("seed", 0))
    elif data.training_images:
        body += page.paragraph("split_given", n=data.training_images)
    counts = ({data.split: data.metrics["n"]} if data.metrics else {}) | data.split_counts
    rows = [(page.translate.split(name), counts[name]) for name in ("train", "val", "test") if name in counts]
    columns = (Column("split_name", "text"), Column("images", ",d"))
    return body + (page.table("split", columns, rows) if rows else "")


def machine_name(data: RunData) -> str:
    """Return the GPU or CPU that the run trained on."""
    return str(data.env.get("gpu") or data.env.get("cpu") or data.summary.get("device", "?"))


def run_details_html(page: Page, data: RunData) -> str:
    """Return network, time, machine, versions, settings, and the command that repeats the run."""
    translate, summary, env = page.translate, data.summary, data.env
    preprocess = data.model.get("preprocess", {})
    versions = ", ".join(f"{name} {version}" for name, version in env.get("versions", {}).items() if version)
    memory = [epoch["memory"] for epoch in data.history if epoch.get("memory")]
    rows = {
        "architecture": f"{summary['arch']}, {translate('parameters', n=summary['parameters'])}",
        "input": "{}×{}×{}".format(preprocess.get("channels", "?"), *[preprocess.get("size", "?")] * 2),
        "time": translate(
            "time_value", time=translate.duration(summary["seconds"]), epochs=summary["epochs"],
            speed=summary["images_per_second"],
        ),
        "numeric_precision": translate("on_device", precision=summary["precision"], device=summary["device"]),
        "memory": f"{max(memory) / 2**30:.1f} GiB" if memory else "",
        "machine": translate("cores", machine=machine_name(data), cores=env.get("cores", "?")),
        "system": env.get("platform", ""),
        "versions": versions,
        "revision": env.get("git") or "",
        "command": env.get("command") or "",
        "again": f"alexnet train {shlex.quote(str(data.run.recipe_json))}",
    }  # fmt: skip
    body = ""
    for key, value in rows.items():
        if value:
            cell = f"<code>{escape_text(value)}</code>" if key in ("command", "again") else escape_text(value)
            body += f"<tr><td>{page.text(key)}</td><td>{cell}</td></tr>"
    settings = f"<pre>{escape_text(json.dumps(data.recipe, indent=2, ensure_ascii=False))}</pre>"
    return f'<table class="run-details">{body}</table>' + page.details("settings", settings)
