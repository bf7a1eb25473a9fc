"""The web page at / and the API reference at /docs: templates filled with the texts of `messages`.

The page's own files in web/ are sent unchanged. /docs is generated from the server's OpenAPI document, without scripts
or other files.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from alexnet.messages.translator import LANGUAGES, Translator, load_template, load_texts

WEB = resources.files("alexnet.serving") / "web"
SCRIPTS = ("page.js", "server.js", "training.js", "elements.js", "texts.js")
FILES = {"page.css": "text/css", **dict.fromkeys(SCRIPTS, "text/javascript")}
"""Files of the page and their media types."""

DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # for Content-Security-Policy
COMMAND = "curl --data-binary @photo.jpg -H 'content-type: image/jpeg' …/v1/predict"


def page_files(lang: str | None = None) -> dict[str, tuple[bytes, str]]:
    """Return content and media type of the page, which starts in `lang`, and its files, by URL path."""
    files = {f"/{name}": ((WEB / name).read_bytes(), kind) for name, kind in FILES.items()}
    return {"/": (_render_index(lang).encode(), "text/html"), **files}


def _render_index(start: str | None) -> str:
    """Return the page, with its texts in every language as JSON, without the prefix of their keys."""
    texts = {
        lang: {key.removeprefix("web_"): text for key, text in load_texts(lang).items() if key.startswith("web_")}
        for lang in LANGUAGES
    }
    return load_template("alexnet.serving", "index.html").render(texts=texts, start=start, command=COMMAND)


def preferred_language(accepted: str) -> str:
    """Return the first of our languages in an Accept-Language header, which browsers sort by preference, else en."""
    tags = (tag.strip()[:2].lower() for tag in accepted.split(","))
    return next((tag for tag in tags if tag in LANGUAGES), "en")


def render_docs(openapi: dict[str, Any], lang: str = "en") -> str:
    """Return the HTML page of all routes in an OpenAPI document, whose own texts are English in every language."""
    text = Translator(lang)
    routes = [
        {"path": path, "method": method.upper(), "description": operation.get("description", ""),
         "tables": _tables(operation, openapi, text)}
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]  # fmt: skip
    info = {"description": "", **openapi["info"]}
    return load_template("alexnet.serving", "docs.html", lang).render(info=info, routes=routes)


def _tables(
    operation: dict[str, Any], openapi: dict[str, Any], text: Translator
) -> Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]:
    """Return parameters, request body and responses of a route: keys of the headings, and rows."""
    parameters = [
        (p["name"], p["in"], p.get("description", ""), _shape(p.get("schema", {}), openapi, text))
        for p in operation.get("parameters", ())
    ]
    body = _contents(operation.get("requestBody", {}), openapi, text)
    responses = [
        (
            status,
            response.get("description", ""),
            "; ".join(" ".join(c).strip() for c in _contents(response, openapi, text)),
        )
        for status, response in operation.get("responses", {}).items()
    ]
    return [
        (("docs_parameter", "docs_in", "docs_description", "docs_values"), parameters),
        (("docs_body", "docs_content"), body),
        (("docs_status", "docs_description", "docs_content"), responses),
    ]


def _contents(message: dict[str, Any], openapi: dict[str, Any], text: Translator) -> list[tuple[str, str]]:
    """Return the media types of a request or response, each with the shape of its content."""
    return [
        (kind, _shape(content.get("schema", {}), openapi, text)) for kind, content in message.get("content", {}).items()
    ]


def _shape(schema: dict[str, Any], openapi: dict[str, Any], text: Translator) -> str:
    """Return a JSON schema written like a value that matches it."""
    if "$ref" in schema:
        return _shape(openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]], openapi, text)
    if "anyOf" in schema:
        return " | ".join(_shape(option, openapi, text) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"[{_shape(schema.get('items', {}), openapi, text)}, …]"
    if properties := schema.get("properties"):
        return "{" + ", ".join(f'"{name}": {_shape(inner, openapi, text)}' for name, inner in properties.items()) + "}"
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']} … {schema['maximum']}"
    if schema.get("format") in ("binary", "byte"):
        return text(f"docs_{schema['format']}")
    return str(schema.get("type", ""))
