"""Fuzzing: requests that schemathesis generates from the server's OpenAPI, and image files damaged by hypothesis.

No request causes an internal error, every response has a declared status and schema, and other images are not affected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from encodings.aliases import aliases
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from alexnet.data.decode import BadImage, decode_image
from alexnet.serving.app import create_app
from alexnet.serving.registry import Models
from alexnet.serving.settings import Settings
from server_client import Client, encode, encode_jpeg, running_server

schemathesis = pytest.importorskip("schemathesis")

from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
]  # fmt: skip

EXAMPLES = pytest.mark.parametrize("examples", [3, pytest.param(60, marks=pytest.mark.slow)])


def fuzz(check: Any, examples: int, **strategies: Any) -> None:
    """Call `check` with `examples` draws of the strategies, the same in every run."""
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    settings(hypothesis.given(**strategies)(check))()


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[Client]:
    with running_server(models, max_bytes=100_000, max_pixels=100_000, max_images=3) as client:
        yield client


@pytest.fixture(scope="module")
def expected(server: Client) -> Any:
    return server.predict(encode_jpeg()).json()


@pytest.fixture(scope="module")
def schema(models: Models) -> Any:
    """The OpenAPI schema of an application that schemathesis starts and calls itself."""
    # schemathesis chooses a host name, which only a server for other machines accepts
    app = create_app(models, Settings(host="0.0.0.0", max_bytes=100_000, max_pixels=100_000, max_images=3))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.slow
@EXAMPLES
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/predict", "POST"),
        ("/v1/models", "GET"),
        ("/healthz", "GET"),
        ("/readyz", "GET"),
        ("/metrics", "GET"),
        ("/v1/saliency", "POST"),
        ("/v1/activations", "POST"),
        ("/v1/similar", "POST"),
        ("/v1/samples", "GET"),
        ("/v1/samples/{number}", "GET"),
    ],
)
def test_generated_requests_get_declared_responses(
    schema: Any, path: str, method: str, mode: Any, examples: int
) -> None:
    operation = schema[path][method]
    assert method == "GET" or operation.body
    if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body):
        pytest.skip("nothing can be invalid")

    def check(case: Any) -> None:
        response = case.call(timeout=60)
        # schemathesis does not take 413 as the rejection of an invalid request; of 50 invalid images it is
        case.validate_response(response, checks=CHECKS[:-1] if response.status_code == 413 else CHECKS)

    fuzz(check, examples, case=operation.as_strategy(generation_mode=mode))


@EXAMPLES
def test_damaged_files_are_errors_of_their_own(server: Client, expected: Any, examples: int) -> None:
    def check(data: bytes) -> None:
        try:
            decode_image(data, max_pixels=100_000)
            readable = True
        except BadImage:
            readable = False
        alone = server.post("/v1/predict", data)
        assert alone.status_code in ({200} if readable else {413, 422})
        both = server.predict(("0.jpg", encode_jpeg()), ("1.jpg", data))
        assert both.status_code == 200
        good, damaged = both.json()["predictions"]
        assert good["labels"][0]["label"] == expected["predictions"][0]["labels"][0]["label"]
        assert (damaged["error"] is None) == readable

    fuzz(check, examples, data=damaged_files())


@EXAMPLES
def test_any_content_type_is_handled(server: Client, examples: int) -> None:
    printable = st.text(st.characters(min_codepoint=32, max_codepoint=126))
    names = st.sampled_from(["charset", "boundary", "charset*", "filename", "q"])
    codecs = st.sampled_from([*sorted(set(aliases.values())), "undefined", "idna", "punycode", "unicode_escape"])
    body = b'--x\r\nContent-Disposition: form-data; name="images"; filename="\xc3\xa9"\r\n\r\n'
    body += encode_jpeg() + b"\r\n--x--\r\n"

    def check(kind: str, parameters: list[tuple[str, str]], language: str) -> None:
        options = "".join(f"; {name}={value}" for name, value in parameters)
        headers = {"accept-language": language, "x-" + kind[:5]: options}
        assert server.post("/v1/predict", body, kind + options, **headers).status_code in (200, 415, 422)

    fuzz(
        check,
        examples,
        kind=st.sampled_from(["multipart/form-data; boundary=x", "application/json", "image/jpeg"]),
        parameters=st.lists(st.tuples(names, codecs | printable), max_size=3),
        language=printable,
    )


@EXAMPLES
def test_decoder_raises_only_bad_image(examples: int) -> None:
    def check(data: bytes) -> None:
        with contextlib.suppress(BadImage):
            assert decode_image(data, max_pixels=100_000).mode == "RGB"

    fuzz(check, examples, data=damaged_files())


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Draw an image file of one of eight kinds, with overwritten bytes and a cut end."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "plain": lambda: encode_jpeg(size=(64, 48)),
        "progressive": lambda: encode_jpeg(size=(64, 48), progressive=True),
        "rotated": lambda: encode_jpeg(size=(64, 48), exif=exif),
        "gray": lambda: encode(Image.new("L", (33, 17), 99), "JPEG"),
        "PNG": lambda: encode(Image.new("RGBA", (33, 17), (1, 2, 3, 99)), "PNG"),
        "GIF": lambda: encode(Image.new("P", (33, 17), 3), "GIF"),
        "WebP": lambda: encode(Image.new("RGB", (33, 17), "red"), "WEBP"),
        "TIFF": lambda: encode(Image.new("I;16", (33, 17), 999), "TIFF"),
    }
    data = bytearray(kinds[draw(st.sampled_from(sorted(kinds)))]())
    for _ in range(draw(st.integers(0, 8))):
        place = draw(st.integers(0, len(data) - 1))
        data[place : place + draw(st.integers(0, 4))] = draw(st.binary(min_size=1, max_size=4))
    return bytes(data[: draw(st.integers(len(data) // 8, len(data)))])
