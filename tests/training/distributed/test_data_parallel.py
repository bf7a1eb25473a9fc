"""Data parallel training in one, two and four real processes (Gloo, on the CPU): same losses, same metrics."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.cli import run as alexnet
from alexnet.errors import ProcessLost, TrainingFailed, UserError
from alexnet.models.model import build
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training import api, trainer
from alexnet.training.api import resume, train
from alexnet.training.distributed import connect, data_parallel
from alexnet.training.distributed.base import SingleProcess, read_together
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import prepare_training
from alexnet.training.step import TrainStep
from alexnet.training.trainer import Interrupted, Trainer
from helpers import LogRecorder, make_image_folder
from ranks import Ranks, torchrun

# Noise images: on the digits' flat black, several pixels of a pool are equal to the last bit, and
# rounding decides which one gets the gradient. Three steps an epoch; the last batch has three
# images, so one of four processes has none.
PLAIN = {
    "arch": "cifar", "width": 0.125, "norm": "none", "init": "xavier", "dropout": 0.2, "batch_size": 75,
    "epochs": 17, "lr": 0.05, "schedule": "constant", "nesterov": False, "crop": "pad", "padding": 3, "flip": True,
    "rotate": 0.0, "device": "cpu", "precision": "fp32", "accumulate": 3, "clip_norm": 1.0,
}  # fmt: skip
MIXED = {
    **PLAIN,
    "mixup": 0.2,
    "cutmix": 1.0,
    "crop_group": 32,
    "accumulate": 1,
    "dropout": 0.0,
    "optimizer": "sgd2012",
}
MUON = {**PLAIN, "optimizer": "muon", "nesterov": True, "alternate_flip": True}
CURVE = 1e-5  # relative difference allowed between the loss of a step and that of one process


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("noise")
    make_image_folder(root / "val", count=6)
    return make_image_folder(root / "train", count=51).parent


def make_trainer(parallel: SingleProcess, settings: dict[str, Any]) -> Trainer:
    recipe = named_recipe("folder" if "data" in settings else "digits")
    setup = prepare_training(recipe.replace(**settings), Silent(), parallel=parallel)
    torch.manual_seed(0)
    trainer = Trainer(setup, Run(Path()), build(setup.spec), Silent())
    trainer.train_step.train()
    return trainer


def read_weights(run: Path) -> dict[str, Tensor]:
    return load_checkpoint(Run(run).named_checkpoint("last")).model.state_dict()


def max_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


# ── equal to one process ──────────────────────────────────────────────────────────────────────────


def train_steps(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return loss and hits of each step, the images this process read in the first epoch, and the final weights."""
    with connect("auto", "cpu") as parallel:
        trainer = make_trainer(parallel, settings)
        length = len(trainer.setup.train)
        found = []
        read: list[int] = []
        for step in range(steps):
            batch = next(read_together(parallel, trainer.setup.train.batches(step // length, start=step % length)))
            loss, hits = trainer.train_step(batch, step // length, step, trainer.hyperparameters(step))
            found.append(torch.stack([loss, hits.float()]))
            read += batch.ids[len(batch.ids) - batch.row_range.size :].tolist() if step < length else []
        losses, hits = parallel.all_reduce(torch.stack(found), "sum").T.tolist()
        return {"losses": losses, "hits": hits, "read": read, "weights": trainer.model.state_dict()}


@pytest.mark.parametrize(
    ("settings", "steps", "count"),
    [
        (PLAIN, 10, 2),
        (MIXED, 10, 2),
        (MUON, 10, 2),
        pytest.param(PLAIN, 50, 2, marks=pytest.mark.slow),
        pytest.param(PLAIN, 50, 4, marks=pytest.mark.slow),
        pytest.param(MIXED, 10, 4, marks=pytest.mark.slow),
        pytest.param(MUON, 10, 4, marks=pytest.mark.slow),
    ],
    ids=["plain-2", "mixed-2", "muon-2", "plain-long-2", "plain-long-4", "mixed-4", "muon-4"],
)
def test_several_processes_give_the_losses_of_one(
    processes: Ranks, noise_folder: Path, settings: dict[str, Any], steps: int, count: int
) -> None:
    """With dropout, crops, accumulation and clipping; with MixUp and CutMix across shards and crops shared by 32."""
    settings = {**settings, "data": noise_folder, "auto_fields": ()}
    (one,) = processes(1, train_steps, settings, steps)
    if steps == 50:
        assert one["losses"][-1] < 0.5 * one["losses"][0]  # it learns
    first, *others = processes(count, train_steps, settings, steps)
    assert first["losses"] == pytest.approx(one["losses"], rel=CURVE)
    assert sum(a != b for a, b in zip(first["hits"], one["hits"], strict=True)) <= 2  # ties, to the last bit
    assert max_difference(first["weights"], one["weights"]) < 1e-4
    for other in others:
        assert other["losses"] == first["losses"]
        assert max_difference(first["weights"], other["weights"]) == 0.0
    read = [i for process in (first, *others) for i in process["read"]]
    assert sorted(read) == list(range(153))  # each image once an epoch


def train_steps_in_double(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Like `train_steps`, in float64, where rounding does not decide which pixel of a pool gets the gradient."""
    with pytest.MonkeyPatch.context() as patch:
        make, single, inputs = build, torch.Tensor.float, TrainStep._inputs

        def double_inputs(*arguments: Any) -> tuple[Tensor, Tensor]:
            x, y = inputs(*arguments)
            return x.double(), y.double() if y.is_floating_point() else y

        patch.setattr(f"{__name__}.build", lambda spec: make(spec).double())
        patch.setattr(TrainStep, "_inputs", double_inputs)
        patch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else single(x))
        return train_steps(settings, steps)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PLAIN, MIXED, MUON], ids=["plain", "mixed", "muon"])
def test_in_double_precision_weights_equal_those_of_one_process(processes: Ranks, settings: dict[str, Any]) -> None:
    """On the digits, whose last batch of an epoch here has three images."""
    (one,) = processes(1, train_steps_in_double, {**settings, "batch_size": 157}, 12)
    for result in processes(4, train_steps_in_double, {**settings, "batch_size": 157}, 12):
        assert max_difference(result["weights"], one["weights"]) < 1e-14


def count_reduced_gradients(accumulate: int) -> int:
    with connect("data", "cpu") as parallel:
        trainer = make_trainer(parallel, {**PLAIN, "accumulate": accumulate})
        sizes = []

        def hook(_, bucket):  # torch inspects annotations, which would be strings here
            sizes.append(bucket.buffer().numel())
            return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0] / 2)

        trainer.train_step.network.register_comm_hook(None, hook)
        trainer.step(next(trainer.setup.train.batches(0)))
        return sum(sizes)


def test_gradients_are_reduced_once_a_step_with_accumulation(processes: Ranks) -> None:
    plain, accumulated = (
        processes(2, count_reduced_gradients, 1),
        processes(2, count_reduced_gradients, 4),
    )
    assert plain == accumulated
    assert plain[0] == sum(p.numel() for p in make_trainer(SingleProcess(), PLAIN).model.parameters())


def train_with_batch_norm() -> dict[str, Any]:
    with connect("data", "cpu") as parallel:
        trainer = make_trainer(parallel, {**PLAIN, "norm": "batch", "batch_size": 64})
        for step, batch in zip(range(3), trainer.setup.train.batches(0), strict=False):
            trainer.train_step(batch, 0, step, trainer.hyperparameters(step))
        own = {k: t.clone() for k, t in trainer.model.state_dict().items() if "running" in k}
        data_parallel.average_batch_norm(parallel, trainer.model)
        synced = {k: t.clone() for k, t in trainer.model.state_dict().items() if "running" in k}
        return {
            "warning": data_parallel.batch_norm_warning(parallel, trainer.device, trainer.model),
            "own": own,
            "synced": synced,
        }


def test_batch_norm_warns_and_averages_its_statistics_for_evaluation(processes: Ranks) -> None:
    first, second = processes(2, train_with_batch_norm)
    assert "1/2 of a batch" in first["warning"]
    assert max_difference(first["own"], second["own"]) > 0
    assert max_difference(first["synced"], second["synced"]) == 0.0
    mean = {k: (first["own"][k] + second["own"][k]) / 2 for k in first["own"]}
    assert max_difference(first["synced"], mean) < 1e-7


# ── evaluation ────────────────────────────────────────────────────────────────────────────────────


def evaluate() -> Any:
    with connect("auto", "cpu") as parallel:
        outputs = make_trainer(parallel, PLAIN).evaluate("val")
        return outputs and (outputs.ids, outputs.targets, outputs.logits)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_an_evaluation_by_several_processes_is_equal_bit_for_bit(processes: Ranks, count: int) -> None:
    """269 images are two batches, so two of four processes have none."""
    (one,) = processes(1, evaluate)
    first, *others = processes(count, evaluate)
    assert others == [None] * (count - 1)
    assert all((a == b).all() for a, b in zip(one, first, strict=True))
    assert first[0].tolist() == list(range(269))


# ── stopping and resuming ─────────────────────────────────────────────────────────────────────────

SHORT = {**PLAIN, "batch_size": 32, "epochs": 1, "accumulate": 1}


class StopAt(Silent):
    """Sends SIGTERM to this process when the loss is reported."""

    def step(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def train_short(folder: Path, stop: bool) -> tuple[int, str]:
    """Train a run; with `stop` only the last process receives a signal, in mid-epoch."""
    last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)
    try:
        train("digits", out=folder, progress=StopAt() if stop and last else Silent(), **SHORT)
    except Interrupted as error:
        return error.exit_code, str(error)
    return 0, ""


def resume_and_record(folder: Path) -> list[str]:
    progress = LogRecorder()
    resume(folder, progress=progress)
    return progress.lines


def read_metrics(run: Path) -> list[dict[str, Any]]:
    keys = ("epoch", "step", "train_loss", "train_top1", "val_loss", "top1", "top5", "lr")
    return [{k: row[k] for k in keys} for row in Run(run).metrics()]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(processes: Ranks, tmp_path: Path, count: int) -> None:
    assert processes(count, train_short, tmp_path / "uninterrupted", False) == [(0, "")] * count
    results = processes(count, train_short, tmp_path / "stopped", True)
    assert len(set(results)) == 1
    assert results[0][0] == 143
    position = read_training_state(Run(tmp_path / "stopped").named_checkpoint("last"))["position"]
    assert (position["step"], position["processes"]) == (21, count)
    messages, *_ = processes(count, resume_and_record, tmp_path / "stopped")
    assert not any("sums" in text for text in messages)
    assert max_difference(read_weights(tmp_path / "stopped"), read_weights(tmp_path / "uninterrupted")) == 0.0
    assert read_metrics(tmp_path / "stopped") == read_metrics(tmp_path / "uninterrupted")
    stopped, expected = (Run(tmp_path / name).read_evaluation("val") for name in ("stopped", "uninterrupted"))
    assert (stopped[2] == expected[2]).all()


BATCH_NORM = {**SHORT, "norm": "batch", "epochs": 2, "limit_steps": 45}


def train_batch_norm_run(folder: Path, stop: bool, every: str) -> None:
    with suppress(Interrupted):
        train(
            "digits",
            out=folder,
            progress=StopAt() if stop else Silent(),
            **{**BATCH_NORM, "checkpoint_every": every},
        )


@pytest.mark.slow
def test_with_batch_norm_no_bit_depends_on_when_checkpoints_are_written(processes: Ranks, tmp_path: Path) -> None:
    """Each process resumes with its own running statistics; the saved weights have their mean."""
    processes(2, train_batch_norm_run, tmp_path / "uninterrupted", False, "1h")
    processes(2, train_batch_norm_run, tmp_path / "often", False, "3")
    processes(2, train_batch_norm_run, tmp_path / "stopped", True, "1h")
    folder = Run(tmp_path / "stopped").named_checkpoint("last")
    first, second = read_training_state(folder)["statistics"]
    assert max_difference(first, second) > 0
    saved = read_weights(tmp_path / "stopped")
    assert max_difference({k: saved[k] for k in first}, {k: (first[k] + second[k]) / 2 for k in first}) < 1e-6
    processes(2, resume_and_record, tmp_path / "stopped")
    for name in ("often", "stopped"):
        assert max_difference(read_weights(tmp_path / name), read_weights(tmp_path / "uninterrupted")) == 0.0
        assert read_metrics(tmp_path / name) == read_metrics(tmp_path / "uninterrupted")


class StopWhileValidating(StopAt):
    def step(self, *_: object) -> None:
        pass

    def __call__(self, done: int, total: int, what: str) -> None:
        if what == "evaluating":
            os.kill(os.getpid(), signal.SIGTERM)


def train_until_validation(folder: Path, data: Path, stop: bool) -> tuple[int, int]:
    """Train; with `stop`, rank 0, which has more to validate, receives a signal after its first validation batch."""
    evaluated: list[int] = []
    signaled = stop and os.environ["RANK"] == "0"
    gather, grace, trainer.EVAL_GRACE_S = (
        data_parallel.DataParallel.gather,
        trainer.EVAL_GRACE_S,
        0.0,
    )
    try:
        data_parallel.DataParallel.gather = lambda self, outputs: (
            evaluated.append(1),
            gather(self, outputs),
        )[1]
        train(
            "folder",
            data=data,
            out=folder,
            progress=StopWhileValidating() if signaled else Silent(),
            **SHORT,
        )
    except Interrupted as error:
        return error.exit_code, len(evaluated)
    finally:
        data_parallel.DataParallel.gather, trainer.EVAL_GRACE_S = gather, grace
    return 0, len(evaluated)


@pytest.mark.slow
def test_a_stop_during_validation_saves_and_resumes(processes: Ranks, tmp_path: Path) -> None:
    """600 images are three batches, two of them for rank 0."""
    make_image_folder(tmp_path / "data" / "val", ("apple", "leaf"), count=300)
    make_image_folder(tmp_path / "data" / "train", ("apple", "leaf"), count=32)
    assert processes(2, train_until_validation, tmp_path / "stopped", tmp_path / "data", True) == [(143, 0)] * 2
    assert processes(2, train_until_validation, tmp_path / "uninterrupted", tmp_path / "data", False) == [(0, 1)] * 2
    run = Run(tmp_path / "stopped")
    assert run.metrics() == []
    assert read_training_state(run.named_checkpoint("last"))["position"]["step"] == 2
    processes(2, resume_and_record, run.path)
    assert max_difference(read_weights(run.path), read_weights(tmp_path / "uninterrupted")) == 0.0
    assert read_metrics(run.path) == read_metrics(tmp_path / "uninterrupted")


@pytest.mark.slow
def test_resuming_with_another_number_of_processes_warns(processes: Ranks, tmp_path: Path) -> None:
    processes(2, train_short, tmp_path / "two", True)
    (messages,) = processes(1, resume_and_record, tmp_path / "two")
    assert any(text.startswith("Checkpoint written by 2 process(es), resuming with 1:") for text in messages)
    processes(1, train_short, tmp_path / "one", False)
    (two,), (one,) = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=CURVE)
    assert max_difference(read_weights(tmp_path / "two"), read_weights(tmp_path / "one")) < 1e-4


@pytest.mark.slow
def test_torchrun_without_any_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One JSON document on stdout, one line an epoch, one writer."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.json").write_text(named_recipe("digits").replace(**SHORT).to_json())
    two = torchrun(2, "train", "recipe.json", "--out", "two", "--json")
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("epoch 1/1") == 1
    assert "in 2 processes on cpu" in two.stderr
    assert "Warning" not in two.stderr
    assert alexnet(["train", "recipe.json", "--out", "one"]) == 0
    summary, expected = json.loads(two.stdout), json.loads(Path("one/summary.json").read_text())
    assert summary["steps"] == expected["steps"]
    assert summary["final"]["val_loss"] == pytest.approx(expected["final"]["val_loss"], rel=CURVE)
    files = [{str(p.relative_to(name)) for p in Path(name).rglob("*")} for name in ("two", "one")]
    assert files[0] == files[1]


# ── lost processes ────────────────────────────────────────────────────────────────────────────────


class Failing(Silent):
    """Makes this process fail when the loss is reported."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def step(self, *_: object) -> None:
        if self.kind == "bug":
            raise ZeroDivisionError("a bug")
        if self.kind == "error":
            raise TrainingFailed("Only this process knows why.")
        if self.kind == "silent":
            time.sleep(6)


def train_and_fail(folder: Path, kind: str, dist_timeout: float) -> tuple[str, str, float]:
    """Train until rank 1 fails; return the type of this process's exception, its message, and the seconds it took."""
    failing = os.environ["RANK"] == "1"
    began = time.monotonic()
    try:
        train(
            "digits",
            out=folder,
            progress=Failing(kind if failing else ""),
            **SHORT,
            dist_timeout=dist_timeout,
        )
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - began
    raise AssertionError("no process has failed")


@pytest.mark.parametrize(
    ("kind", "dist_timeout"),
    [("bug", 120.0), ("error", 120.0), pytest.param("silent", 2.0, marks=pytest.mark.slow)],
)
def test_no_process_waits_for_a_lost_one(processes: Ranks, tmp_path: Path, kind: str, dist_timeout: float) -> None:
    results = processes(2, train_and_fail, tmp_path / "run", kind, dist_timeout)
    (name, message, seconds), (failed_name, failed_message, _) = results
    assert seconds < (15 if kind == "silent" else 100)
    if kind == "error":
        assert (name, message) == (failed_name, failed_message)
        assert message == "Only this process knows why."
    else:
        assert name == "ProcessLost"
        assert message.startswith("Process 0 of 2 cannot reach another one (")
        assert "--resume" in message
        assert failed_name == {"bug": "ZeroDivisionError", "silent": "ProcessLost"}[kind]


def prepare_with_error(folder: Path) -> str:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("This machine lacks the data.")

    load, last = api.prepare_training, os.environ["RANK"] == "1"
    api.prepare_training = refuse if last else load
    try:
        train("digits", out=folder, progress=Silent(), **SHORT)
    except UserError as error:
        return str(error)
    finally:
        api.prepare_training = load
    raise AssertionError("no error was raised")


def test_an_error_of_one_process_during_setup_is_raised_in_all(processes: Ranks, tmp_path: Path) -> None:
    assert processes(2, prepare_with_error, tmp_path / "run") == ["This machine lacks the data."] * 2
    assert not (tmp_path / "run").exists()


def read_with_error() -> tuple[int, str]:
    with connect("data", "cpu") as parallel:
        batches = iter(make_trainer(parallel, SHORT).setup.train.batches(0))

        def failing() -> Iterator[Any]:
            yield next(batches)
            yield next(batches)
            if parallel.shard.rank == 1:
                raise UserError("cat.jpg cannot be read.")
            yield from batches

        done = 0
        try:
            for _ in read_together(parallel, failing()):
                done += 1
        except UserError as error:
            return done, str(error)
        raise AssertionError("no error was raised")


def test_an_unreadable_image_of_one_process_stops_all_before_the_same_step(
    processes: Ranks,
) -> None:
    assert processes(2, read_with_error) == [(2, "cat.jpg cannot be read.")] * 2


def reconnect(folder: Path) -> list[int]:
    """Connect three times through one store, which keeps what dead processes wrote, as torchrun's does on restart."""
    rank = int(os.environ["RANK"])
    store = dist.FileStore(str(folder / "store"), 2)
    if rank == 1:
        time.sleep(0.5)  # the other rank comes first
    found = []
    for turn in range(3):
        if rank == turn % 2:
            time.sleep(0.2)
        fresh = data_parallel._fresh_store(store, rank, 2)
        assert not fresh.check(["greeting"])
        dist.PrefixStore(f"{turn}", store).set(f"done{rank}", "")
        dist.PrefixStore(f"{turn}", store).wait(["done0", "done1"])
        if rank == 0:
            fresh.set("greeting", f"{turn}")
        found.append(int(fresh.get("greeting")))
    return found


def test_restarted_processes_do_not_read_entries_of_dead_ones(processes: Ranks, tmp_path: Path) -> None:
    assert processes(2, reconnect, tmp_path) == [[0, 1, 2]] * 2


def run_long_on_rank0() -> float:
    with connect("data", "cpu", 1.0) as parallel:
        began = time.monotonic()
        parallel.broadcast_object(lambda: time.sleep(3))
        return time.monotonic() - began


@pytest.mark.slow  # depends on seconds, which a busy machine may not have
def test_work_on_rank_0_may_take_longer_than_dist_timeout(processes: Ranks) -> None:
    assert all(seconds >= 3 for seconds in processes(2, run_long_on_rank0))


def test_every_rank_prints_that_a_process_is_lost(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def lose(*_: object, **__: object) -> None:
        raise ProcessLost("Process 1 of 2 cannot reach another one.")

    monkeypatch.setattr("alexnet.api.train", lose)
    monkeypatch.setenv("RANK", "1")
    assert alexnet(["train"]) == 1
    assert capsys.readouterr().err == "alexnet: Process 1 of 2 cannot reach another one.\n"


def train_with_small_batch(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        train("digits", out=folder, progress=Silent(), **{**SHORT, "batch_size": 3})
    return str(error.value)


@pytest.mark.slow
def test_a_batch_smaller_than_the_number_of_processes_is_refused(processes: Ranks, tmp_path: Path) -> None:
    errors = processes(4, train_with_small_batch, tmp_path / "run")
    message = "--batch-size 3 is the total of all 4 processes and leaves some without an image; give 4 or more."
    assert errors == [message] * 4
