"""The package computes what it computed when `make.py` wrote the golden files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from golden_compare import TIGHT, codecs, differences, environment
from golden_images import HERE, readable
from make import GOLDENS, LOOSE, scratch


@pytest.fixture(scope="module", autouse=True)
def _remove_scratch() -> Iterator[None]:
    """Remove the files that several tests share, after the last."""
    yield
    shutil.rmtree(scratch(), ignore_errors=True)
    scratch.cache_clear()


SLOW = {"bad_input", "batches", "digits", "eval_predict"}  # several seconds each


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in GOLDENS])
def test_golden(name):
    kept = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(GOLDENS[name]()))
    if name == "decode":
        kept["found"] = {image: row for image, row in kept["found"].items() if readable(image)}
    then, now = kept["environment"], environment()
    lines = differences(
        found,
        kept["found"],
        same_environment=then == now,
        same_codecs=all(then[key] == version for key, version in codecs().items()),
        loose=LOOSE.get(name, TIGHT),
    )
    assert not lines, f"{len(lines)} differences from {name}.json:\n" + "\n".join(lines[:40])


def test_a_difference_is_found():
    kept = {
        "n": 3,
        "x": [1.0, 2.0],
        "exact_sha256": "a",
        "exact": {"loss": 0.1},
        "codec_sha256": "b",
        "label": "cat",
        "yes": True,
    }
    anywhere = {"same_environment": False, "same_codecs": False}
    here = {"same_environment": True, "same_codecs": True}
    assert differences(kept, kept, **here) == []
    elsewhere = {"exact_sha256": "c", "codec_sha256": "d", "exact": {"loss": 0.3}}
    assert differences({**kept, **elsewhere}, kept, **anywhere) == []
    assert len(differences({**kept, **elsewhere}, kept, **here)) == 3
    for change in ({"n": 4}, {"x": [1.0, 2.1]}, {"x": [1.0]}, {"label": "dog"}, {"yes": 1}, {"more": 1}):
        assert len(differences({**kept, **change}, kept, **anywhere)) == 1
    for change in ({"exact_sha256": "c"}, {"codec_sha256": "d"}, {"x": [1.0, 2.001]}):
        assert len(differences({**kept, **change}, kept, **here)) == 1
    assert len(differences({"n": 3}, kept, **here)) == 6
