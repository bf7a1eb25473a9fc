"""Where a run's result comes from, as parts of its page: the data, what training saw, the machine, the command."""

from __future__ import annotations

import base64
import io
import json
import shlex
from typing import Any

from PIL import Image, ImageOps

from alexnet.messages.texts import Translator
from alexnet.report.html import Column, Page, text
from alexnet.report.run_data import RunData

SHEET = 1200  # pixels that the augmented batch may be wide


# ── the data ──────────────────────────────────────────────────────────────────────────────────────────────────────


def augmented_html(facts: RunData, words: Translator) -> str:
    """The batch that training drew, where it did."""
    path = facts.run.path / "augmented.png"
    if not path.is_file():
        return ""
    image = Image.open(path).convert("RGB")
    if image.width > SHEET:
        image = ImageOps.contain(image, (SHEET, 4 * SHEET))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<p>{text(words("augmented_said"))}</p><img class="sheet" alt="" src="data:image/jpeg;base64,{data}">'


def split_html(page: Page, facts: RunData) -> str:
    """Where the data lies, and how many pictures each part has."""
    words, counts = page.words, facts.split_counts
    where = facts.recipe.get("data") or facts.recipe.get("dataset", "")
    body = f"<p>{text(words('data_is'))}: <code>{text(where)}</code></p>"
    if counts:
        body += f"<p>{text(words('split_own', seed=facts.recipe.get('seed', 0)))}</p>"
    elif facts.training_pictures:
        body += f"<p>{text(words('split_given', n=facts.training_pictures))}</p>"
    known = {facts.split: facts.figures["n"]} if facts.figures else {}
    known |= counts
    rows = [(part, known[part]) for part in ("train", "val", "test") if part in known]
    return body + (page.table("split", (Column("part", "text"), Column("images", ",d")), rows) if rows else "")


# ── how it was made ───────────────────────────────────────────────────────────────────────────────────────────────


def machine(facts: RunData) -> str:
    """The processor that did it, in words."""
    return str(facts.env.get("gpu") or facts.env.get("cpu") or facts.summary.get("device", "?"))


def made_html(facts: RunData, words: Translator) -> str:
    """Network, time, machine, versions, and the command that does it again."""
    summary, env = facts.summary, facts.env
    read: dict[str, Any] = facts.model.get("preprocess", {})
    versions = ", ".join(f"{name} {version}" for name, version in env.get("versions", {}).items() if version)
    held = [row["memory"] for row in facts.rows if row.get("memory")]
    rows = {
        "architecture": f"{summary['arch']}, {words('parameters', n=summary['parameters'])}",
        "input": "{}×{}×{}".format(read.get("channels", "?"), *[read.get("size", "?")] * 2),
        "time": words(
            "time_is", time=words.duration(summary["seconds"]), epochs=summary["epochs"],
            speed=summary["images_per_second"],
        ),
        "numbers": words("on_device", precision=summary["precision"], device=summary["device"]),
        "memory": f"{max(held) / 2**30:.1f} GiB" if held else "",
        "machine": words("cores", machine=machine(facts), cores=env.get("cores", "?")),
        "system": env.get("platform", ""),
        "versions": versions,
        "revision": env.get("git") or "",
        "command": _code(env.get("command")),
        "again": _code(f"alexnet train {shlex.quote(str(facts.run.recipe_json))}"),
    }  # fmt: skip
    body = "".join(
        f"<tr><td>{text(words(key))}</td><td>{value if key in ('command', 'again') else text(value)}</td></tr>"
        for key, value in rows.items()
        if value
    )
    settings = text(json.dumps(facts.recipe, indent=2, ensure_ascii=False))
    return (
        f'<table class="facts">{body}</table>'
        f"<details><summary>{text(words('settings'))}</summary><pre>{settings}</pre></details>"
    )


def _code(command: str | None) -> str:
    return f"<code>{text(command)}</code>" if command else ""
