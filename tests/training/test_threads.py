"""The number of threads: chosen from measured speeds (injected here), kept by resume, restored afterwards."""

import json
from pathlib import Path

import pytest
import torch

from alexnet.checkpoint import read_training_state
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training import threads
from alexnet.training.api import resume, train
from alexnet.training.speed import restore_threads
from alexnet.training.threads import choose, should_measure

TINY = {"epochs": 3, "width": 0.125, "batch_size": 256, "limit_steps": None}


@pytest.fixture
def two_cores(monkeypatch):
    """Let torch compute with two threads, as if nobody had chosen the number."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cpu_count", lambda: 2)
    monkeypatch.setattr("alexnet.device.cpu_count", lambda: 2)
    with restore_threads():
        torch.set_num_threads(2)
        yield


def inject(monkeypatch, *speeds: dict[int, float]) -> list[list[int]]:
    """Let the next measurements find `speeds`; return the list of what is asked for."""
    left, asked = list(speeds), []

    def measured(_model, _setup, numbers):
        asked.append(list(numbers))
        return left.pop(0)

    monkeypatch.setattr(threads, "measure", measured)
    return asked


@pytest.mark.parametrize(
    ("speeds", "best"),
    [
        ({1: 100, 2: 180}, 2),
        ({1: 527, 2: 64}, 1),
        ({1: 110, 2: 100}, 2),
        ({1: 130, 2: 100}, 1),
        ({1: 10, 15: 100, 16: 20}, 15),
    ],
)
def test_as_many_threads_as_are_about_as_fast_as_the_best(speeds, best):
    assert choose(speeds) == best


def row(speed: float, number: int = 2, seconds: float = 5.0) -> dict[str, float]:
    return {"images_per_second": speed, "threads": number, "seconds": seconds}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([row(100)], False),
        ([row(100), row(90)], False),
        ([row(100), row(60)], True),
        ([row(100), row(80), row(65)], True),
        ([row(100, 2), row(60, 1)], False),  # other threads, another speed
        ([row(50, 1, 100)], True),  # another program may have ended
        ([row(50, 2, 100)], False),
    ],
)
def test_when_to_measure_again(history, expected):
    assert should_measure(history, most=2) is expected


def numbers(run: Path) -> list[int]:
    return [row["threads"] for row in Run(run).metrics()]


@pytest.mark.slow
def test_chosen_at_the_start_and_kept_by_resume(tmp_path, two_cores, monkeypatch):
    asked = inject(monkeypatch, {1: 527, 2: 64})
    run = train("digits", out=tmp_path / "run", progress=Silent(), **{**TINY, "epochs": 1}).run
    assert asked == [[1, 2]]
    assert torch.get_num_threads() == 2
    assert json.loads((run / "env.json").read_text())["threads"] == 1
    assert read_training_state(Run(run).named_checkpoint("last"))["position"]["threads"] == 1
    resume(run, epochs="+1", progress=Silent())  # measures nothing
    assert numbers(run) == [1, 1]
    assert torch.get_num_threads() == 2
    resume(run, epochs="+1", progress=Silent(), threads=2)
    assert numbers(run) == [1, 1, 2]


def test_changed_after_a_slow_epoch_and_repeated_by_resume(tmp_path, two_cores, monkeypatch):
    asked = inject(monkeypatch, {1: 50, 2: 100}, {1: 50, 2: 6})
    monkeypatch.setattr(threads, "should_measure", lambda history, _: len(history) == 1)
    run = train("digits", out=tmp_path / "run", progress=Silent(), **TINY).run
    assert numbers(run) == [2, 1, 1]
    assert asked == [[1, 2], [1, 2]]
    state = read_training_state(Run(run).checkpoints()[-1])["position"]
    assert (state["epoch"], state["threads"]) == (2, 1)


@pytest.mark.parametrize("how", ["setting", "environment"])
def test_a_requested_number_is_obeyed(how, tmp_path, two_cores, monkeypatch):
    asked = inject(monkeypatch)
    settings = {"threads": 1} if how == "setting" else {}
    if how == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")  # torch has read it when it was imported
    run = train("digits", out=tmp_path / "run", progress=Silent(), **{**TINY, "epochs": 1, **settings}).run
    assert numbers(run) == [1 if how == "setting" else 2]
    assert asked == []


@pytest.mark.parametrize("arch", ["cifar", "lenet"])
def test_measuring_changes_no_result(arch, two_cores, monkeypatch, tmp_path):
    losses = []
    monkeypatch.setattr(threads, "SLICE_S", 0.0001)
    for name, fixed in (("measured", None), ("given", 1)):
        monkeypatch.setattr(threads, "choose", lambda speeds: 1 if min(speeds.values()) > 0 else 2)
        settings = {**TINY, "arch": arch, "epochs": 1, "norm": "batch", "threads": fixed}
        run = train("digits", out=tmp_path / name, progress=Silent(), **settings).run
        losses.append([Run(run).metrics()[0][key] for key in ("threads", "train_loss", "val_loss")])
    assert losses[0] == losses[1]
