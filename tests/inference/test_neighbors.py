"""Exact nearest-neighbor search, and the index of a run's training images."""

import shutil

import numpy as np
import pytest
from PIL import Image

from alexnet.data.datasets import load_dataset
from alexnet.errors import UserError
from alexnet.inference.load import load_model
from alexnet.inference.neighbors import (
    INFO,
    VECTORS,
    find_similar,
    load_run_images,
    open_index,
    search,
)
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training.api import resume, train


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_search_is_exact(scale):
    rng = np.random.default_rng(0)
    stored = (scale * rng.standard_normal((3000, 64))).astype(np.float16)
    stored[2000] = stored[7]  # equal distances keep their order
    queries = np.concatenate([stored[[7, 1234]].astype(np.float32), rng.standard_normal((3, 64), dtype=np.float32)])
    norms = np.square(stored.astype(np.float64)).sum(1)
    plain = np.sqrt(((stored[None].astype(np.float64) - queries[:, None]) ** 2).sum(2))
    for found, distances in zip(search(stored, norms, queries, 9), plain, strict=True):
        assert [i for i, _ in found] == np.argsort(distances, kind="stable")[:9].tolist()
        np.testing.assert_allclose([d for _, d in found], np.sort(distances)[:9], rtol=1e-12)


def test_rounding_does_not_hide_a_neighbor():
    """Far from the origin |x|² − 2xq + |q|² in float32 is rounded by more than the differences in distance."""
    rng = np.random.default_rng(1)
    stored = np.full((5000, 256), 2000, np.float16)
    stored[:, 0] += 2 * rng.permutation(5000).astype(np.float16) % 64
    query = np.full((1, 256), 2000, np.float32)
    norms = np.square(stored.astype(np.float64)).sum(1)
    found = search(stored, norms, query, 5)[0]
    plain = np.abs(stored[:, 0].astype(np.float64) - 2000)
    assert [d for _, d in found] == np.sort(plain)[:5].tolist()


def test_training_image_finds_itself_first(small_run, tmp_path):
    run = Run(shutil.copytree(small_run, tmp_path / "run"))
    loaded = load_model(run.path)
    part = load_dataset("digits", seed=0).splits["train"]
    images = [Image.fromarray(part.images[i, 0].numpy()) for i in (0, 500)]
    progress = Silent()
    progress.log = (messages := []).append
    for found, i in zip(find_similar(loaded, images, 4, device="cpu", progress=progress), (0, 500), strict=True):
        assert found[0].name == part.names[i]
        assert found[0].distance < 0.02 * found[1].distance  # float16
        assert [n.distance for n in found] == sorted(n.distance for n in found)
        assert found[0].label == str(int(part.targets[i]))
    assert len(messages) == 1
    stored = np.load(run.path / "index" / "fc7" / VECTORS, mmap_mode="r")
    assert stored.dtype == np.float16
    assert len(stored) == len(part)
    find_similar(loaded, images[:1], device="cpu", progress=progress)
    assert len(messages) == 1  # now it exists
    np.testing.assert_array_equal(np.asarray(load_run_images(run, [part.names[3]])[0])[..., 0], part.images[3, 0])


def test_another_checkpoint_or_damage_rebuilds_the_index(tmp_path):
    run = train("digits", out=tmp_path / "run", epochs=1, limit_steps=2, width=0.125, progress=Silent()).run
    before = np.array(open_index(load_model(run), device="cpu").vectors)
    info = run / "index" / "fc7" / INFO
    info.write_text(info.read_text()[:100])
    np.testing.assert_array_equal(open_index(load_model(run), device="cpu").vectors, before)
    resume(run, epochs="2")
    after = open_index(load_model(run, "last"), device="cpu").vectors
    assert after.shape == before.shape
    assert (after != before).mean() > 0.2
    assert sorted(p.name for p in info.parent.parent.iterdir()) == ["fc7"]


def test_search_needs_a_run(small_run, tmp_path):
    lone = shutil.copytree(Run(small_run).named_checkpoint("best"), tmp_path / "lone")
    with pytest.raises(UserError, match="needs the run folder"):
        open_index(load_model(lone))
