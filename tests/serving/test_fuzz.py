"""What strangers send: requests made by schemathesis from our own OpenAPI, and real JPEGs damaged by hypothesis.

Whatever it is, the answer is not a fault of ours, has a status and a shape that are declared, and the next picture is
labelled as ever.
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
from alexnet.serving.registry import ModelRegistry
from alexnet.serving.settings import Settings
from asking import Asking, asking, encoded, jpeg

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
EXAMPLES = 60  # of each operation

SLOW_IS_FINE = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture(scope="module")
def server(models: ModelRegistry) -> Iterator[Asking]:
    with asking(models, max_bytes=100_000, max_pixels=100_000, max_images=3) as found:
        yield found


@pytest.fixture(scope="module")
def expected(server: Asking) -> Any:
    return server.predict(jpeg()).json()


@pytest.fixture(scope="module")
def schema(models: ModelRegistry) -> Any:
    """Schemathesis calls the application itself, and starts it."""
    # as one elsewhere, which may have any name: schemathesis gives it one
    app = create_app(models, Settings(host="0.0.0.0", max_bytes=100_000, max_pixels=100_000, max_images=3))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


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
def test_requests_made_from_the_openapi(schema: Any, path: str, method: str, mode: Any) -> None:
    operation = schema[path][method]
    assert method == "GET" or operation.body
    if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body):
        pytest.skip("nothing can be wrong with it")

    @SLOW_IS_FINE
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        answer = case.call()
        # to schemathesis 413 is not the answer to a wrong request; of 50 wrong pictures it is
        case.validate_response(answer, checks=CHECKS[:-1] if answer.status_code == 413 else CHECKS)

    check()


@SLOW_IS_FINE
@hypothesis.given(data=st.data())
def test_damaged_jpegs(server: Asking, expected: Any, data: st.DataObject) -> None:
    broken = data.draw(damaged())
    try:
        decode_image(broken, max_pixels=100_000)
        readable = True
    except BadImage:
        readable = False
    alone = server.post("/v1/predict", broken)
    assert alone.status_code in ({200} if readable else {413, 422})
    both = server.predict(("0.jpg", jpeg()), ("1.jpg", broken))
    assert both.status_code == 200
    assert both.json()["predictions"][0]["labels"][0]["label"] == expected["predictions"][0]["labels"][0]["label"]
    assert (both.json()["predictions"][1]["error"] is None) == readable


@SLOW_IS_FINE
@hypothesis.given(
    kind=st.sampled_from(["multipart/form-data; boundary=x", "application/json", "image/jpeg"]),
    parameters=st.lists(
        st.tuples(
            st.sampled_from(["charset", "boundary", "charset*", "filename", "q"]),
            st.sampled_from([*sorted(set(aliases.values())), "undefined", "idna", "punycode", "unicode_escape"])
            | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
        ),
        max_size=3,
    ),
    language=st.text(st.characters(min_codepoint=32, max_codepoint=126)),
)
def test_any_content_type(server: Asking, kind: str, parameters: list[tuple[str, str]], language: str) -> None:
    part = (
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="\xc3\xa9"\r\n\r\n' + jpeg() + b"\r\n--x--\r\n"
    )
    told = "".join(f"; {name}={value}" for name, value in parameters)
    answer = server.post("/v1/predict", part, kind + told, **{"accept-language": language, "x-" + kind[:5]: told})
    assert answer.status_code in (200, 415, 422)


@SLOW_IS_FINE
@hypothesis.given(data=st.data())
def test_the_decoder_takes_any_damage(data: st.DataObject) -> None:
    broken = data.draw(damaged())
    with contextlib.suppress(BadImage):  # nothing else may be raised
        assert decode_image(broken, max_pixels=100_000).mode == "RGB"


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The bytes of a real JPEG (plain, progressive, grey, with EXIF) or another picture: cut, patched, doubled."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "plain": lambda: jpeg(size=(64, 48)),
        "progressive": lambda: jpeg(size=(64, 48), progressive=True),
        "turned": lambda: jpeg(size=(64, 48), exif=exif),
        "grey": lambda: encoded(Image.new("L", (33, 17), 99), "JPEG"),
        "PNG": lambda: encoded(Image.new("RGBA", (33, 17), (1, 2, 3, 99)), "PNG"),
        "GIF": lambda: encoded(Image.new("P", (33, 17), 3), "GIF"),
        "WebP": lambda: encoded(Image.new("RGB", (33, 17), "red"), "WEBP"),
        "TIFF": lambda: encoded(Image.new("I;16", (33, 17), 999), "TIFF"),
    }
    whole = bytearray(kinds[draw(st.sampled_from(sorted(kinds)))]())
    for _ in range(draw(st.integers(0, 8))):
        place = draw(st.integers(0, len(whole) - 1))
        whole[place : place + draw(st.integers(0, 4))] = draw(st.binary(min_size=1, max_size=4))
    return bytes(whole[: draw(st.integers(len(whole) // 8, len(whole)))])
