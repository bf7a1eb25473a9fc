"""/docs: the API for readers, written from its own OpenAPI. No script, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; border-top: 1px solid #8888; padding-top: 1rem; font-size: 1.1rem }
code { font: .9em/1.4 ui-monospace, monospace }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0 }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # for Content-Security-Policy


def page(openapi: dict[str, Any]) -> str:
    """The HTML of all routes in an OpenAPI document."""
    routes = [
        _route(path, method, told, openapi)
        for path, methods in openapi["paths"].items()
        for method, told in methods.items()
    ]
    info = openapi["info"]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(info["title"])}</title><style>{STYLE}</style>
<h1>{escape(info["title"])} {escape(info["version"])}</h1>
<p>{escape(info.get("description", ""))}</p>
<p>For programs: <a href="/openapi.json">/openapi.json</a></p>
{"".join(routes)}
</html>
"""


def _route(path: str, method: str, told: dict[str, Any], openapi: dict[str, Any]) -> str:
    about = "".join(f"<p>{escape(part)}</p>" for part in told.get("description", "").split("\n\n"))
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2>{about}"]
    if parameters := told.get("parameters"):
        rows = [
            (p["name"], p["in"], p.get("description", ""), _shape(p.get("schema", {}), openapi)) for p in parameters
        ]
        parts.append(_table(("parameter", "in", "what", "values"), rows))
    if body := told.get("requestBody"):
        kinds = [(kind, _shape(what.get("schema", {}), openapi)) for kind, what in body["content"].items()]
        parts.append(_table(("body", "what"), kinds))
    answers = []
    for status, found in told.get("responses", {}).items():
        content = found.get("content", {})
        shape = "; ".join(f"{kind} {_shape(what.get('schema', {}), openapi)}".strip() for kind, what in content.items())
        answers.append((status, found.get("description", ""), shape))
    parts.append(_table(("status", "when", "what"), answers))
    return "".join(parts)


def _shape(schema: dict[str, Any], openapi: dict[str, Any]) -> str:
    """A JSON schema in the form of what it stands for."""
    if "$ref" in schema:
        return _shape(openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]], openapi)
    if "anyOf" in schema:
        return " | ".join(_shape(one, openapi) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"[{_shape(schema.get('items', {}), openapi)}, …]"
    if properties := schema.get("properties"):
        return "{" + ", ".join(f'"{name}": {_shape(what, openapi)}' for name, what in properties.items()) + "}"
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']} … {schema['maximum']}"
    return {"binary": "a file's bytes", "byte": "a file's bytes in base64"}.get(
        schema.get("format", ""), str(schema.get("type", ""))
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"
