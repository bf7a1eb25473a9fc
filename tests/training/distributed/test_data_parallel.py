"""Batches divided among one, two and four real processes (Gloo, on the CPU): the same curve, the same figures."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
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
from alexnet.run_dir import Run
from alexnet.training import api, trainer
from alexnet.training.api import resume, train
from alexnet.training.distributed import data_parallel, make_parallel
from alexnet.training.distributed.base import SingleProcess
from alexnet.training.progress import Silent
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import prepare_training
from alexnet.training.signals import Interrupted
from alexnet.training.step import TrainStep
from alexnet.training.trainer import Trainer
from helpers import make_image_folder
from processes import Ranks, torchrun

# Real noise: of the digits' flat black, a pool's pixels are equal to the last bit, and rounding decides which of them
# gets the gradient. Three steps an epoch; the last batch holds three pictures, so that of four processes one has none.
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
CURVE = 1e-5
"""How far the loss of a step may be from that of one process, relatively."""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    with closing(Ranks(4)) as found:
        yield found


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("noise")
    make_image_folder(root / "val", count=6)
    return make_image_folder(root / "train", count=51).parent


def make_loop(parallel: SingleProcess, settings: dict[str, Any]) -> Trainer:
    recipe = named_recipe("folder" if "data" in settings else "digits")
    prepared = prepare_training(replace(recipe, **settings), Silent(), parallel=parallel)
    torch.manual_seed(0)
    trainer = Trainer(prepared, Run(Path()), build(prepared.spec), Silent())
    trainer.train_step.train()
    return trainer


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_checkpoint(Run(run).named_checkpoint("last")).model.state_dict()


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


# ── the same training ─────────────────────────────────────────────────────────────────────────────────────────


def curve(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Loss and hits of each step, the pictures that this process read, and the weights after the last."""
    with closing(make_parallel("auto", "cpu")) as parallel:
        trainer = make_loop(parallel, settings)
        length = len(trainer.setup.train)
        found = []
        read: list[int] = []
        for step in range(steps):
            batch = next(parallel.sync_data_errors(trainer.setup.train.batches(step // length, start=step % length)))
            loss, hits = trainer._train_batch(batch, step // length)
            trainer.state.step += 1
            found.append(torch.stack([loss, hits.float()]))
            read += batch.ids[len(batch.ids) - batch.row_range.size :].tolist() if step < length else []
        losses, hits = parallel.all_reduce_sum(torch.stack(found)).T.tolist()
        return {"losses": losses, "hits": hits, "read": read, "weights": trainer.model.state_dict()}


@pytest.mark.parametrize(("settings", "steps"), [(PLAIN, 50), (MIXED, 10)], ids=["plain", "mixed"])
def test_two_and_four_processes_give_the_curve_of_one(
    processes: Ranks, noise: Path, settings: dict[str, Any], steps: int
) -> None:
    """Dropout, crops, parts of a batch, clipping; MixUp and CutMix across the borders of parts, crops shared by 32."""
    settings = {**settings, "data": noise, "auto_fields": ()}
    (one,) = processes(1, curve, settings, steps)
    if steps == 50:
        assert one["losses"][-1] < 0.5 * one["losses"][0]  # there is something to compare
    for count in (2, 4):
        first, *others = processes(count, curve, settings, steps)
        assert first["losses"] == pytest.approx(one["losses"], rel=CURVE)
        assert sum(a != b for a, b in zip(first["hits"], one["hits"], strict=True)) <= 2  # ties, to the last bit
        assert apart(first["weights"], one["weights"]) < 1e-4
        for other in others:
            assert other["losses"] == first["losses"]
            assert apart(first["weights"], other["weights"]) == 0.0
        read = [i for process in (first, *others) for i in process["read"]]
        assert sorted(read) == list(range(153))  # each picture once an epoch


def curve_in_double(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """The same in float64, where rounding does not decide who gets a gradient."""
    with pytest.MonkeyPatch.context() as patch:
        make, single, inputs = build, torch.Tensor.float, TrainStep._inputs

        def double_inputs(*arguments: Any) -> tuple[Tensor, Tensor]:
            x, y = inputs(*arguments)
            return x.double(), y.double() if y.is_floating_point() else y

        patch.setattr(f"{__name__}.build", lambda spec: make(spec).double())
        patch.setattr(TrainStep, "_inputs", double_inputs)
        patch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else single(x))
        return curve(settings, steps)


@pytest.mark.parametrize("settings", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_in_double_precision_weights_are_those_of_one_process(processes: Ranks, settings: dict[str, Any]) -> None:
    """On the digits, whose last batch of an epoch here holds three pictures."""
    (one,) = processes(1, curve_in_double, {**settings, "batch_size": 157}, 12)
    for found in processes(4, curve_in_double, {**settings, "batch_size": 157}, 12):
        assert apart(found["weights"], one["weights"]) < 1e-14


def count_exchanges(accumulate: int) -> int:
    with closing(make_parallel("data", "cpu")) as parallel:
        trainer = make_loop(parallel, {**PLAIN, "accumulate": accumulate})
        sent = []

        def hook(_, bucket):  # torch looks at annotations, and these would be texts
            sent.append(bucket.buffer().numel())
            return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0] / 2)

        trainer.train_step.network.register_comm_hook(None, hook)
        trainer._train_batch(next(trainer.setup.train.batches(0)), 0)
        return sum(sent)


def test_gradients_are_exchanged_once_a_step_however_many_parts_it_has(processes: Ranks) -> None:
    whole, parts = processes(2, count_exchanges, 1), processes(2, count_exchanges, 4)
    assert whole == parts
    assert whole[0] == sum(p.numel() for p in make_loop(SingleProcess(), PLAIN).model.parameters())


def batch_norm() -> dict[str, Any]:
    with closing(make_parallel("data", "cpu")) as parallel:
        trainer = make_loop(parallel, {**PLAIN, "norm": "batch", "batch_size": 64})
        for step, batch in zip(range(3), trainer.setup.train.batches(0), strict=False):
            trainer.train_step(batch, 0, step, trainer._hyperparameters(step))
        own = {k: t.clone() for k, t in trainer.model.state_dict().items() if "running" in k}
        parallel.sync_buffers(trainer.model)
        level = {k: t.clone() for k, t in trainer.model.state_dict().items() if "running" in k}
        return {"said": parallel.warnings(trainer.model), "own": own, "level": level}


def test_batch_norm_says_that_it_sees_its_part_alone_and_evaluates_alike_everywhere(processes: Ranks) -> None:
    first, second = processes(2, batch_norm)
    assert "1/2 of it" in first["said"][0]
    assert apart(first["own"], second["own"]) > 0
    assert apart(first["level"], second["level"]) == 0.0
    mean = {k: (first["own"][k] + second["own"][k]) / 2 for k in first["own"]}
    assert apart(first["level"], mean) < 1e-7


# ── evaluation ────────────────────────────────────────────────────────────────────────────────────────────────


def evaluate() -> Any:
    with closing(make_parallel("auto", "cpu")) as parallel:
        outputs = make_loop(parallel, PLAIN)._evaluate("val")
        return outputs and (outputs.ids, outputs.targets, outputs.logits)


def test_an_evaluation_in_parts_equals_the_whole_to_the_last_bit(processes: Ranks) -> None:
    """269 pictures are two batches: of four processes two have none."""
    (one,) = processes(1, evaluate)
    for count in (2, 4):
        first, *others = processes(count, evaluate)
        assert others == [None] * (count - 1)
        assert all((a == b).all() for a, b in zip(one, first, strict=True))
        assert first[0].tolist() == list(range(269))


# ── stopping, and going on ────────────────────────────────────────────────────────────────────────────────────

SHORT = {**PLAIN, "batch_size": 32, "epochs": 1, "accumulate": 1}


class StopAt(Silent):
    """Sends SIGTERM to this process when it has looked at the loss."""

    def step(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def run_all(folder: Path, stop: bool) -> tuple[int, str]:
    """A run; with `stop` the last process alone is told to stop in mid-epoch."""
    last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)
    try:
        train("digits", out=folder, progress=StopAt() if stop and last else Silent(), **SHORT)
    except Interrupted as error:
        return error.exit_code, str(error)
    return 0, ""


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


def go_on(folder: Path) -> list[str]:
    heard = Heard()
    resume(folder, progress=heard)
    return heard.said


def figures(run: Path) -> list[dict[str, Any]]:
    keys = ("epoch", "step", "train_loss", "train_top1", "val_loss", "top1", "top5", "lr")
    return [{k: row[k] for k in keys} for row in Run(run).metrics()]


@pytest.mark.parametrize("count", [2, 4])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(processes: Ranks, tmp_path: Path, count: int) -> None:
    assert processes(count, run_all, tmp_path / "unbroken", False) == [(0, "")] * count
    stopped = processes(count, run_all, tmp_path / "stopped", True)
    assert len(set(stopped)) == 1
    assert stopped[0][0] == 143
    position = read_training_state(Run(tmp_path / "stopped").named_checkpoint("last"))["position"]
    assert (position["step"], position["processes"]) == (21, count)
    said = processes(count, go_on, tmp_path / "stopped")
    assert not any("sums" in sentence for sentence in said[0])
    assert apart(weights_of(tmp_path / "stopped"), weights_of(tmp_path / "unbroken")) == 0.0
    assert figures(tmp_path / "stopped") == figures(tmp_path / "unbroken")
    ours, theirs = (Run(tmp_path / name).read_evaluation("val") for name in ("stopped", "unbroken"))
    assert (ours[2] == theirs[2]).all()


NORMED = {**SHORT, "norm": "batch", "epochs": 2, "limit_steps": 45}


def run_normed(folder: Path, stop: bool, every: str) -> None:
    with suppress(Interrupted):
        train("digits", out=folder, progress=StopAt() if stop else Silent(), **{**NORMED, "checkpoint_every": every})


def test_with_batch_norm_no_bit_depends_on_when_checkpoints_are_written(processes: Ranks, tmp_path: Path) -> None:
    """Each process goes on with the running statistics that it had; the weights that are saved have their mean."""
    processes(2, run_normed, tmp_path / "unbroken", False, "1h")
    processes(2, run_normed, tmp_path / "often", False, "3")
    processes(2, run_normed, tmp_path / "stopped", True, "1h")
    folder = Run(tmp_path / "stopped").named_checkpoint("last")
    first, second = read_training_state(folder)["statistics"]
    assert apart(first, second) > 0
    saved = weights_of(tmp_path / "stopped")
    assert apart({k: saved[k] for k in first}, {k: (first[k] + second[k]) / 2 for k in first}) < 1e-6
    processes(2, go_on, tmp_path / "stopped")
    for name in ("often", "stopped"):
        assert apart(weights_of(tmp_path / name), weights_of(tmp_path / "unbroken")) == 0.0
        assert figures(tmp_path / name) == figures(tmp_path / "unbroken")


class StopWhileValidating(StopAt):
    def step(self, *_: object) -> None:
        pass

    def update(self, done: int, total: int, what: str) -> None:
        if what == "evaluating":
            os.kill(os.getpid(), signal.SIGTERM)


def run_until_validation(folder: Path, data: Path, stop: bool) -> tuple[int, int]:
    """The first process, which has more to validate, is told to stop when it has validated a batch."""
    evaluated: list[int] = []
    told = stop and os.environ["RANK"] == "0"
    gather, patience, trainer.EVAL_GRACE_S = data_parallel.DataParallel.gather, trainer.EVAL_GRACE_S, 0.0
    try:
        data_parallel.DataParallel.gather = lambda self, outputs: (evaluated.append(1), gather(self, outputs))[1]
        train("folder", data=data, out=folder, progress=StopWhileValidating() if told else Silent(), **SHORT)
    except Interrupted as error:
        return error.exit_code, len(evaluated)
    finally:
        data_parallel.DataParallel.gather, trainer.EVAL_GRACE_S = gather, patience
    return 0, len(evaluated)


def test_a_stop_while_several_processes_validate_saves_first(processes: Ranks, tmp_path: Path) -> None:
    """600 pictures are three batches: the first process has two of them."""
    make_image_folder(tmp_path / "data" / "val", ("apple", "leaf"), count=300)
    make_image_folder(tmp_path / "data" / "train", ("apple", "leaf"), count=32)
    assert processes(2, run_until_validation, tmp_path / "stopped", tmp_path / "data", True) == [(143, 0)] * 2
    assert processes(2, run_until_validation, tmp_path / "unbroken", tmp_path / "data", False) == [(0, 1)] * 2
    run = Run(tmp_path / "stopped")
    assert run.metrics() == []
    assert read_training_state(run.named_checkpoint("last"))["position"]["step"] == 2
    processes(2, go_on, run.path)
    assert apart(weights_of(run.path), weights_of(tmp_path / "unbroken")) == 0.0
    assert figures(run.path) == figures(tmp_path / "unbroken")


def test_another_number_of_processes_goes_on_and_says_what_can_differ(processes: Ranks, tmp_path: Path) -> None:
    processes(2, run_all, tmp_path / "two", True)
    (said,) = processes(1, go_on, tmp_path / "two")
    assert any(s.startswith("Saved in 2, going on in 1") for s in said)
    processes(1, run_all, tmp_path / "one", False)
    (two,), (one,) = figures(tmp_path / "two"), figures(tmp_path / "one")
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=CURVE)
    assert apart(weights_of(tmp_path / "two"), weights_of(tmp_path / "one")) < 1e-4


def test_as_a_user_starts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any flag; one document on stdout, one line an epoch, one writer."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.json").write_text(replace(named_recipe("digits"), **SHORT).to_json())
    two = torchrun(2, "train", "recipe.json", "--out", "two", "--json")
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("epoch 1/1") == 1
    assert "in 2 processes on cpu" in two.stderr
    assert "Warning" not in two.stderr
    assert alexnet(["train", "recipe.json", "--out", "one"]) == 0
    ours, theirs = json.loads(two.stdout), json.loads(Path("one/summary.json").read_text())
    assert ours["steps"] == theirs["steps"]
    assert ours["final"]["val_loss"] == pytest.approx(theirs["final"]["val_loss"], rel=CURVE)
    files = [{str(p.relative_to(name)) for p in Path(name).rglob("*")} for name in ("two", "one")]
    assert files[0] == files[1]


# ── when one is lost ──────────────────────────────────────────────────────────────────────────────────────────


class Trouble(Silent):
    """Does something to this process when it has looked at the loss."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def step(self, *_: object) -> None:
        if self.kind == "bug":
            raise ZeroDivisionError("a bug")
        if self.kind == "sentence":
            raise TrainingFailed("This process alone has a reason.")
        if self.kind == "silent":
            time.sleep(6)


def trouble(folder: Path, kind: str) -> tuple[str, str, float]:
    last = os.environ["RANK"] == "1"
    began = time.monotonic()
    try:
        train("digits", out=folder, progress=Trouble(kind if last else ""), **{**SHORT, "dist_timeout": 2.0})
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - began
    raise AssertionError("it went on")


@pytest.mark.parametrize("kind", ["bug", "sentence", "silent"])
def test_no_process_waits_for_one_that_is_gone(processes: Ranks, tmp_path: Path, kind: str) -> None:
    (name, sentence, seconds), (theirs, reason, _) = processes(2, trouble, tmp_path / "run", kind)
    assert seconds < 15
    if kind == "sentence":
        assert (name, sentence) == (theirs, reason)
        assert sentence == "This process alone has a reason."
    else:
        assert name == "ProcessLost"
        assert sentence.startswith("Process 0 of 2 cannot reach another one (")
        assert "--resume" in sentence
        assert theirs == {"bug": "ZeroDivisionError", "silent": "ProcessLost"}[kind]


def refuse_in_one(folder: Path) -> str:
    def spoil(*_: Any, **__: Any) -> None:
        raise UserError("This machine lacks the data.")

    load, last = api.prepare_training, os.environ["RANK"] == "1"
    api.prepare_training = spoil if last else load
    try:
        train("digits", out=folder, progress=Silent(), **SHORT)
    except UserError as error:
        return str(error)
    finally:
        api.prepare_training = load
    raise AssertionError("it went on")


def test_what_one_process_alone_finds_wrong_all_say(processes: Ranks, tmp_path: Path) -> None:
    assert processes(2, refuse_in_one, tmp_path / "run") == ["This machine lacks the data."] * 2
    assert not (tmp_path / "run").exists()


def read_badly() -> tuple[int, str]:
    with closing(make_parallel("data", "cpu")) as parallel:
        batches = iter(make_loop(parallel, SHORT).setup.train.batches(0))

        def failing() -> Iterator[Any]:
            yield next(batches)
            yield next(batches)
            if parallel.shard.rank == 1:
                raise UserError("cat.jpg cannot be read.")
            yield from batches

        done = 0
        try:
            for _ in parallel.sync_data_errors(failing()):
                done += 1
        except UserError as error:
            return done, str(error)
        raise AssertionError("it went on")


def test_a_picture_that_one_cannot_read_stops_all_before_the_same_step(processes: Ranks) -> None:
    assert processes(2, read_badly) == [(2, "cat.jpg cannot be read.")] * 2


def meet_again(folder: Path) -> list[int]:
    """Through a store that holds what processes wrote that are dead, as torchrun's does after a restart."""
    rank = int(os.environ["RANK"])
    store = dist.FileStore(str(folder / "store"), 2)
    if rank == 1:
        time.sleep(0.5)  # the first comes first, or last
    found = []
    for turn in range(3):
        if rank == turn % 2:
            time.sleep(0.2)
        place = data_parallel._place_of_our_own(store, rank, 2)
        assert not place.check(["greeting"])
        dist.PrefixStore(f"{turn}", store).set(f"done{rank}", "")
        dist.PrefixStore(f"{turn}", store).wait(["done0", "done1"])
        if rank == 0:
            place.set("greeting", f"{turn}")
        found.append(int(place.get("greeting")))
    return found


def test_processes_that_restart_do_not_meet_the_dead(processes: Ranks, tmp_path: Path) -> None:
    assert processes(2, meet_again, tmp_path) == [[0, 1, 2]] * 2


def wait_long() -> float:
    with closing(make_parallel("data", "cpu", 1.0)) as parallel:
        began = time.monotonic()
        parallel.on_rank0(lambda: time.sleep(3))
        return time.monotonic() - began


@pytest.mark.slow  # what it tells is in seconds, and a busy machine has none to spare
def test_work_of_the_first_may_take_longer_than_silence_may(processes: Ranks) -> None:
    assert all(seconds >= 3 for seconds in processes(2, wait_long))


def test_the_sentence_of_a_lost_process_is_said_by_each(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def lose(*_: object, **__: object) -> None:
        raise ProcessLost("Process 1 of 2 cannot reach another one.")

    monkeypatch.setattr("alexnet.training.api.train", lose)
    monkeypatch.setenv("RANK", "1")
    assert alexnet(["train"]) == 1
    assert capsys.readouterr().err == "alexnet: Process 1 of 2 cannot reach another one.\n"


def test_a_batch_smaller_than_the_processes_is_refused(processes: Ranks, tmp_path: Path) -> None:
    found = processes(4, too_small, tmp_path / "run")
    assert (
        found
        == ["--batch-size 3 is for all 4 processes together and leaves some without a picture; give 4 or more."] * 4
    )


def too_small(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        train("digits", out=folder, progress=Silent(), **{**SHORT, "batch_size": 3})
    return str(error.value)
