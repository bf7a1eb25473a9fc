"""/docs: the API reference as HTML, generated from the server's own OpenAPI document without scripts or other files."""

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


def render(openapi: dict[str, Any]) -> str:
    """Return the HTML page of all routes in an OpenAPI document."""
    routes = [
        _route(path, method, operation, openapi)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    info = openapi["info"]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(info["title"])}</title><style>{STYLE}</style>
<h1>{escape(info["title"])} {escape(info["version"])}</h1>
<p>{escape(info.get("description", ""))}</p>
<p>OpenAPI document: <a href="/openapi.json">/openapi.json</a></p>
{"".join(routes)}
</html>
"""


def _route(path: str, method: str, operation: dict[str, Any], openapi: dict[str, Any]) -> str:
    description = "".join(f"<p>{escape(part)}</p>" for part in operation.get("description", "").split("\n\n"))
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2>{description}"]
    if parameters := operation.get("parameters"):
        rows = [
            (p["name"], p["in"], p.get("description", ""), _shape(p.get("schema", {}), openapi)) for p in parameters
        ]
        parts.append(_table(("parameter", "in", "description", "values"), rows))
    if body := operation.get("requestBody"):
        kinds = [(kind, _shape(content.get("schema", {}), openapi)) for kind, content in body["content"].items()]
        parts.append(_table(("request body", "content"), kinds))
    responses = []
    for status, response in operation.get("responses", {}).items():
        kinds = response.get("content", {}).items()
        shape = "; ".join(f"{kind} {_shape(content.get('schema', {}), openapi)}".strip() for kind, content in kinds)
        responses.append((status, response.get("description", ""), shape))
    parts.append(_table(("status", "description", "content"), responses))
    return "".join(parts)


def _shape(schema: dict[str, Any], openapi: dict[str, Any]) -> str:
    """Return a JSON schema written like a value that matches it."""
    if "$ref" in schema:
        return _shape(openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]], openapi)
    if "anyOf" in schema:
        return " | ".join(_shape(option, openapi) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"[{_shape(schema.get('items', {}), openapi)}, …]"
    if properties := schema.get("properties"):
        return "{" + ", ".join(f'"{name}": {_shape(inner, openapi)}' for name, inner in properties.items()) + "}"
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']} … {schema['maximum']}"
    return {"binary": "file bytes", "byte": "base64 of file bytes"}.get(
        schema.get("format", ""), str(schema.get("type", ""))
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"
